/**
 * Synthetic sentence pairs for measuring the tokenizer: words by Zipf's law, about 22 spaced English-like words on one
 * side and about 24 unspaced Chinese characters on the other, as in news. They mean nothing.
 *
 * @module
 */
import type { SentencePair } from "./formats.ts";
import { Random } from "./random.ts";

/** Size of the synthetic text. */
export interface SyntheticOptions {
  /** Number of pairs. Default 250,000. */
  pairs?: number;
  /** Default 1. */
  seed?: number;
  /** Distinct words of the spaced side. Default 120,000. */
  words?: number;
  /** Distinct words, of 1 to 4 characters out of 5,000, of the unspaced side. Default 80,000. */
  unspacedWords?: number;
}

/** Draws ranks from 0 with probability 1 / (rank + 1). */
class Zipf {
  #sums: Float64Array;
  constructor(size: number) {
    this.#sums = new Float64Array(size);
    let sum = 0;
    for (let rank = 0; rank < size; rank++) this.#sums[rank] = sum += 1 / (rank + 1);
  }
  draw(random: Random): number {
    const wanted = random.next() * (this.#sums.at(-1) ?? 0);
    let low = 0;
    let high = this.#sums.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#sums[middle] ?? 0) < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

const ONSETS = "b c d f g h j k l m n p r s t v w st tr pr ch sh th br cl".split(" ");
const VOWELS = "a e i o u ai ea ou io".split(" ");
const CODAS = ["", "", "", "n", "r", "s", "t", "l", "nd", "ng", "st"];

function inventWord(random: Random, rank: number): string {
  // Frequent words are short.
  const syllables = 1 + Math.min(4, Math.floor(Math.log10(rank + 1) * 0.7 + random.next() * 1.5));
  return Array.from(
    { length: syllables },
    () => random.pick(ONSETS) + random.pick(VOWELS) + random.pick(CODAS),
  ).join("");
}

/** Distinct words by rank. */
function vocabulary(size: number, invent: (rank: number) => string): string[] {
  const words = new Set<string>();
  for (let tries = 0; words.size < size && tries < size * 20; tries++) words.add(invent(words.size));
  return [...words];
}

/** Draws the pairs one after another, the same for the same options. */
export function* syntheticPairs(options: SyntheticOptions = {}): Generator<SentencePair, void, void> {
  const { pairs = 250_000, seed = 1, words = 120_000, unspacedWords = 80_000 } = options;
  const random = new Random(seed);
  const characters = new Zipf(5000);
  const spaced = vocabulary(words, (rank) => inventWord(random, rank));
  const unspaced = vocabulary(unspacedWords, () => {
    const length = 1 + Math.min(3, Math.floor(random.next() * 2.4));
    // 4E00: the first Chinese character of Unicode.
    return String.fromCharCode(...Array.from({ length }, () => 0x4e00 + characters.draw(random)));
  });
  const spacedRank = new Zipf(spaced.length);
  const unspacedRank = new Zipf(unspaced.length);
  for (let i = 0; i < pairs; i++) {
    const source = Array.from({ length: 10 + random.int(25) }, () => spaced[spacedRank.draw(random)]).join(
      " ",
    );
    let target = "";
    const wanted = 10 + random.int(28);
    while (target.length < wanted) {
      target += unspaced[unspacedRank.draw(random)];
      if (random.chance(0.1)) target += "，";
    }
    yield { source: `${source}.`, target: `${target}。` };
  }
}
