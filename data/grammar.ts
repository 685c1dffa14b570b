/**
 * The built-in corpus: English sentences and their Chinese translations, drawn from a grammar of this project. It holds
 * what makes the pair hard: word order (time, company, place and manner before the verb), measure words, aspect (了 着 过
 * 正在), questions with the question word in place, negation (不 没有), numbers (两 for two of a kind), relative clauses
 * before the noun, comparison with 比, 把 and 被, modals. Each English sentence has exactly one translation, so that
 * a model can in principle reach BLEU 100.
 *
 * @module
 */
import type { Corpus } from "./corpus.ts";
import type { SentencePair } from "./formats.ts";
import type { Sentence } from "./grammar/sentence.ts";
import { drawSentence } from "./grammar/sentences.ts";
import { Random } from "./random.ts";

/** Size and seed of the built-in corpus. */
export interface GrammarOptions {
  /** Default 1. */
  seed?: number;
  /** Training pairs. Default 12,000. */
  train?: number;
  /** Default 500. */
  dev?: number;
  /** Default 500. */
  test?: number;
}

const CHINESE_MARKS = { ".": "。", "?": "？", "!": "！" } as const;

/** Capital, end mark and Chinese punctuation. */
function finish({ en, zh, mark }: Sentence): SentencePair {
  return { source: en.charAt(0).toUpperCase() + en.slice(1) + mark, target: zh + CHINESE_MARKS[mark] };
}

/** Draws sentence pairs without end; they repeat. */
export function* drawPairs(seed = 1): Generator<SentencePair, never, void> {
  const random = new Random(seed);
  while (true) yield finish(drawSentence(random));
}

/**
 * Generates the built-in corpus. No English and no Chinese sentence stands in it twice, so the parts are disjoint.
 *
 * @throws {RangeError} If a size is no whole number >= 0, or more sentences are asked for than the grammar has.
 */
export function generateCorpus(options: GrammarOptions = {}): Corpus {
  const { seed = 1, train = 12_000, dev = 500, test = 500 } = options;
  for (const [name, size] of Object.entries({ train, dev, test })) {
    if (!Number.isInteger(size) || size < 0) {
      throw new RangeError(
        `Cannot generate a corpus as ${name} must be a whole number >= 0: current value is ${size}`,
      );
    }
  }
  const count = train + dev + test;
  const pairs: SentencePair[] = [];
  const seen = new Set<string>();
  let misses = 0;
  const source = drawPairs(seed);
  while (pairs.length < count) {
    const pair = source.next().value;
    if (seen.has(pair.source) || seen.has(pair.target)) {
      if (++misses > 100_000) {
        throw new RangeError(
          `Cannot generate ${count} sentence pairs as the grammar repeats itself: ask for fewer`,
        );
      }
      continue;
    }
    misses = 0;
    seen.add(pair.source).add(pair.target);
    pairs.push(pair);
  }
  // Short sentences run out first: without the shuffle they would be commoner at the start.
  new Random(seed, 1).shuffle(pairs);
  return {
    source: "en",
    target: "zh",
    train: pairs.slice(0, train),
    dev: pairs.slice(train, train + dev),
    test: pairs.slice(train + dev),
    files: { train: [], dev: [], test: [] },
  };
}
