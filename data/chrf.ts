/**
 * chrF (Popović 2015) and chrF++ (Popović 2017) with the numbers of sacreBLEU 2.6.0.
 *
 * @module
 */
import {
  bootstrapConfidence,
  type BootstrapOptions,
  type Confidence,
  countAll,
  gatherReferences,
  type References,
  scoreText,
  signatures,
  splitWords,
  sumRows,
} from "./_metric.ts";

/** How chrF is computed; the defaults are sacreBLEU's. */
export interface ChrfOptions extends BootstrapOptions {
  /** Longest character n-gram. Default 6. */
  charOrder?: number;
  /** Longest word n-gram: 0 for chrF, 2 for chrF++. Default 0. */
  wordOrder?: number;
  /** Weight of recall against precision. Default 2. */
  beta?: number;
  /** Default false. */
  lowercase?: boolean;
  /** Count white space among the characters. Default false. */
  whitespace?: boolean;
  /** Average the F scores of all orders with a tiny floor, as chrF++.py does. Default false. */
  epsSmoothing?: boolean;
}

/** A chrF score. */
export interface ChrfScore {
  /** 0 to 100. */
  score: number;
  /** "chrF2", "chrF2++". */
  name: string;
  /** For example `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0-compat`. */
  signature: string;
  /** The signature in short. */
  shortSignature: string;
  /** The whole line: `chrF2|<signature> = 18.05`. */
  verbose: string;
  /** With the option `bootstrap`. */
  confidence?: Confidence;
}

type Settings = Required<Omit<ChrfOptions, keyof BootstrapOptions>>;

const PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/** Words with one punctuation mark taken off the end, or else the beginning. */
function wordsOf(text: string): string[] {
  return splitWords(text).flatMap((word) => {
    const chars = Array.from(word);
    const first = chars[0] ?? "";
    const last = chars.at(-1) ?? "";
    if (chars.length === 1) return [word];
    if (PUNCTUATION.includes(last)) return [chars.slice(0, -1).join(""), last];
    return PUNCTUATION.includes(first) ? [first, chars.slice(1).join("")] : [word];
  });
}

function windows(items: readonly string[], order: number, joint: string): Map<string, number> {
  const last = items.length - order + 1;
  return countAll(Array.from({ length: Math.max(0, last) }, (_, i) => items.slice(i, i + order).join(joint)));
}

/** n-gram counts of a text: character orders, then word orders. */
function ngramCounts(text: string, settings: Settings): Map<string, number>[] {
  const cased = settings.lowercase ? text.toLowerCase() : text;
  const chars = Array.from(settings.whitespace ? cased : splitWords(cased).join(""));
  const words = settings.wordOrder > 0 ? wordsOf(cased) : [];
  return [
    ...Array.from({ length: settings.charOrder }, (_, i) => windows(chars, i + 1, "")),
    ...Array.from({ length: settings.wordOrder }, (_, i) => windows(words, i + 1, " ")),
  ];
}

/** For each order [n-grams of the hypothesis, of the reference, matches]. */
function matchCounts(
  hypothesis: readonly Map<string, number>[],
  reference: readonly Map<string, number>[],
): number[] {
  return hypothesis.flatMap((counts, i) => {
    const expected = reference[i] ?? new Map<string, number>();
    let total = 0;
    let matched = 0;
    for (const [ngram, count] of counts) {
      total += count;
      matched += Math.min(count, expected.get(ngram) ?? 0);
    }
    let wanted = 0;
    for (const count of expected.values()) wanted += count;
    // Where the reference is too short for this order, the hypothesis is not blamed.
    return [wanted > 0 ? total : 0, wanted, matched];
  });
}

function fScore(sums: readonly number[], settings: Settings): number {
  const EPSILON = 1e-16;
  const factor = settings.beta ** 2;
  const orders = settings.charOrder + settings.wordOrder;
  let precisions = 0;
  let recalls = 0;
  let effective = 0;
  let smoothed = 0;
  for (let i = 0; i < orders; i++) {
    const [total = 0, wanted = 0, matched = 0] = sums.slice(3 * i, 3 * i + 3);
    const precision = total > 0 ? matched / total : EPSILON;
    const recall = wanted > 0 ? matched / wanted : EPSILON;
    const weighted = factor * precision + recall;
    smoothed += weighted > 0 ? (1 + factor) * precision * recall / weighted : EPSILON;
    if (total > 0 && wanted > 0) {
      precisions += precision;
      recalls += recall;
      effective++;
    }
  }
  if (settings.epsSmoothing) return 100 * smoothed / orders;
  if (effective === 0) return 0;
  precisions /= effective;
  recalls /= effective;
  if (precisions + recalls === 0) return 0;
  return 100 * ((1 + factor) * precisions * recalls / (factor * precisions + recalls));
}

/** The counts of the reference that scores best. */
function segmentCounts(hypothesis: string, references: readonly string[], settings: Settings): number[] {
  const counts = ngramCounts(hypothesis, settings);
  let best: number[] = [];
  let bestScore = -1;
  for (const reference of references) {
    const row = matchCounts(counts, ngramCounts(reference, settings));
    const score = fScore(row, settings);
    if (score > bestScore) {
      best = row;
      bestScore = score;
    }
  }
  return best;
}

/**
 * chrF of a corpus.
 *
 * @param hypotheses Translations, detokenised.
 * @param references One for each; or several sets of references, each with one (or null) for each.
 * @throws {RangeError} If their numbers differ, or a segment has no reference.
 */
export function corpusChrf(
  hypotheses: readonly string[],
  references: References,
  options: ChrfOptions = {},
): ChrfScore {
  const settings: Settings = {
    charOrder: options.charOrder ?? 6,
    wordOrder: options.wordOrder ?? 0,
    beta: options.beta ?? 2,
    lowercase: options.lowercase ?? false,
    whitespace: options.whitespace ?? false,
    epsSmoothing: options.epsSmoothing ?? false,
  };
  const { segments, count } = gatherReferences(hypotheses, references);
  const rows = hypotheses.map((hypothesis, i) => segmentCounts(hypothesis, segments[i] ?? [], settings));
  const length = 3 * (settings.charOrder + settings.wordOrder);
  const score = fScore(sumRows(rows, length), settings);
  const confidence = bootstrapConfidence(rows, length, (sum) => fScore(sum, settings), options);
  const names = signatures(
    {
      case: settings.lowercase ? "lc" : "mixed",
      eff: settings.epsSmoothing ? "no" : "yes",
      nc: settings.charOrder,
      nw: settings.wordOrder,
      space: settings.whitespace ? "yes" : "no",
    },
    count,
    options,
  );
  const name = `chrF${settings.beta}${"+".repeat(settings.wordOrder)}`;
  const verbose = `${name}|${names.signature} = ${scoreText(score, confidence)}`;
  return { score, name, ...names, verbose, ...(confidence === undefined ? {} : { confidence }) };
}

/**
 * chrF of one sentence.
 *
 * @throws {RangeError} If there is no reference.
 */
export function sentenceChrf(
  hypothesis: string,
  references: readonly string[],
  options: ChrfOptions = {},
): ChrfScore {
  return corpusChrf([hypothesis], references.map((text) => [text]), options);
}
