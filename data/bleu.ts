/**
 * BLEU (Papineni et al. 2002) with the numbers of sacreBLEU 2.6.0 (Post 2018), to the last digit. A score always comes
 * with its signature: without it BLEU cannot be compared.
 *
 * @module
 */
import {
  bootstrapConfidence,
  type BootstrapOptions,
  type Confidence,
  countAll,
  fixed,
  gatherReferences,
  type References,
  scoreText,
  signatures,
  splitWords,
  sumRows,
  trimEnd,
} from "./_metric.ts";
import { BLEU_TOKENIZERS, type BleuTokenizer, tokenizeForBleu } from "./tokenizers.ts";

/** How to smooth an n-gram order without a match (Chen and Cherry 2014). */
export type BleuSmoothing = "exp" | "floor" | "add-k" | "none";

/** How BLEU is computed; the defaults are sacreBLEU's. */
export interface BleuOptions extends BootstrapOptions {
  /** Default "13a"; take "zh" where the target is Chinese. */
  tokenize?: BleuTokenizer;
  /** Default false. */
  lowercase?: boolean;
  /** Default "exp". */
  smooth?: BleuSmoothing;
  /** Parameter of "floor" (default 0.1) and "add-k" (default 1). */
  smoothValue?: number;
  /** Longest n-gram. Default 4. */
  maxOrder?: number;
  /** Count only orders that the hypotheses have. Default false for a corpus, true for a sentence. */
  effectiveOrder?: boolean;
}

/** A BLEU score and what it is made of. */
export interface BleuScore {
  /** 0 to 100. */
  score: number;
  /** Matched n-grams, orders 1 to maxOrder. */
  counts: number[];
  /** n-grams in the hypotheses, likewise. */
  totals: number[];
  /** In percent, likewise. */
  precisions: number[];
  /** Brevity penalty, 0 to 1. */
  brevityPenalty: number;
  /** Tokens in the hypotheses. */
  hypothesisLength: number;
  /** Tokens in the references closest in length. */
  referenceLength: number;
  /** For example `nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0-compat`. */
  signature: string;
  /** The signature in short: `#:1|c:mixed|e:no|tok:zh|s:exp|v:2.6.0-compat`. */
  shortSignature: string;
  /** The whole line: `BLEU|<signature> = 19.25 57.4/30.5/15.8/10.9 (BP = ...)`. */
  verbose: string;
  /** With the option `bootstrap`. */
  confidence?: Confidence;
}

const SMOOTH_VALUES: Record<BleuSmoothing, number | undefined> = {
  "exp": undefined,
  "floor": 0.1,
  "add-k": 1,
  "none": undefined,
};

type Settings = Required<Omit<BleuOptions, "smoothValue" | keyof BootstrapOptions>> & { smoothValue: number };

function settle(options: BleuOptions, effectiveOrder: boolean): Settings {
  const settings = {
    tokenize: options.tokenize ?? "13a",
    lowercase: options.lowercase ?? false,
    smooth: options.smooth ?? "exp",
    smoothValue: options.smoothValue ?? SMOOTH_VALUES[options.smooth ?? "exp"] ?? 0,
    maxOrder: options.maxOrder ?? 4,
    effectiveOrder: options.effectiveOrder ?? effectiveOrder,
  };
  if (!BLEU_TOKENIZERS.includes(settings.tokenize)) {
    throw new RangeError(
      `Cannot compute BLEU as the tokenizer must be one of ${BLEU_TOKENIZERS.join(", ")}: current value is ` +
        `"${settings.tokenize}"`,
    );
  }
  if (!Object.hasOwn(SMOOTH_VALUES, settings.smooth)) {
    throw new RangeError(
      `Cannot compute BLEU as the smoothing must be one of ${
        Object.keys(SMOOTH_VALUES).join(", ")
      }: current value ` +
        `is "${settings.smooth}"`,
    );
  }
  if (!Number.isInteger(settings.maxOrder) || settings.maxOrder < 1) {
    throw new RangeError(
      `Cannot compute BLEU as maxOrder must be at least 1: current value is ${settings.maxOrder}`,
    );
  }
  return settings;
}

/** All n-grams of one order. Tokens hold no space, so joining with one is unambiguous. */
function ngrams(tokens: readonly string[], order: number): Map<string, number> {
  const last = tokens.length - order + 1;
  return countAll(Array.from({ length: Math.max(0, last) }, (_, i) => tokens.slice(i, i + order).join(" ")));
}

/** [hypothesis length, closest reference length, matches of each order, n-grams of each order] of a segment. */
function segmentCounts(hypothesis: string[], references: readonly string[][], maxOrder: number): number[] {
  let closest = references[0]?.length ?? 0;
  for (const { length } of references) {
    const better = Math.abs(length - hypothesis.length) - Math.abs(closest - hypothesis.length);
    if (better < 0 || (better === 0 && length < closest)) closest = length;
  }
  const matches: number[] = [];
  const totals: number[] = [];
  for (let order = 1; order <= maxOrder; order++) {
    const expected = references.map((reference) => ngrams(reference, order));
    let matched = 0;
    for (const [ngram, count] of ngrams(hypothesis, order)) {
      // Clipped by the reference that has most of them.
      matched += Math.min(count, Math.max(...expected.map((counts) => counts.get(ngram) ?? 0)));
    }
    matches.push(matched);
    totals.push(Math.max(0, hypothesis.length - order + 1));
  }
  return [hypothesis.length, closest, ...matches, ...totals];
}

type Parts = Omit<BleuScore, "signature" | "shortSignature" | "verbose" | "confidence">;

/** BLEU from summed counts. */
function scoreCounts(sums: readonly number[], settings: Settings): Parts {
  const { maxOrder, smooth, smoothValue, effectiveOrder } = settings;
  const [hypothesisLength = 0, referenceLength = 0] = sums;
  const counts = sums.slice(2, 2 + maxOrder);
  const totals = sums.slice(2 + maxOrder);
  const precisions = new Array<number>(maxOrder).fill(0);
  let brevityPenalty = 1;
  if (hypothesisLength < referenceLength) {
    brevityPenalty = hypothesisLength > 0 ? Math.exp(1 - referenceLength / hypothesisLength) : 0;
  }
  const parts = { counts, totals, precisions, brevityPenalty, hypothesisLength, referenceLength };
  if (counts.every((count) => count === 0)) return { score: 0, ...parts };
  let halving = 1;
  let orders = maxOrder;
  for (let i = 0; i < maxOrder; i++) {
    if (smooth === "add-k" && i > 0) {
      counts[i] = (counts[i] ?? 0) + smoothValue;
      totals[i] = (totals[i] ?? 0) + smoothValue;
    }
    const count = counts[i] ?? 0;
    const total = totals[i] ?? 0;
    if (total === 0) break;
    if (effectiveOrder) orders = i + 1;
    if (count !== 0) precisions[i] = 100 * count / total;
    else if (smooth === "exp") precisions[i] = 100 / ((halving *= 2) * total);
    else if (smooth === "floor") precisions[i] = 100 * smoothValue / total;
  }
  // sacreBLEU's logarithm of 0 is a very large negative number.
  const logs = precisions.slice(0, orders).map((precision) =>
    precision === 0 ? -9999999999 : Math.log(precision)
  );
  const score = brevityPenalty * Math.exp(logs.reduce((sum, log) => sum + log, 0) / orders);
  return { score, ...parts };
}

function computeBleu(
  hypotheses: readonly string[],
  references: References,
  settings: Settings,
  options: BootstrapOptions,
): BleuScore {
  const { segments, count } = gatherReferences(hypotheses, references);
  const tokens = (text: string): string[] =>
    splitWords(tokenizeForBleu(trimEnd(settings.lowercase ? text.toLowerCase() : text), settings.tokenize));
  const rows = hypotheses.map((hypothesis, i) =>
    segmentCounts(tokens(hypothesis), (segments[i] ?? []).map(tokens), settings.maxOrder)
  );
  const length = 2 + 2 * settings.maxOrder;
  const parts = scoreCounts(sumRows(rows, length), settings);
  const confidence = bootstrapConfidence(rows, length, (sum) => scoreCounts(sum, settings).score, options);
  const hasValue = SMOOTH_VALUES[settings.smooth] !== undefined;
  const names = signatures(
    {
      case: settings.lowercase ? "lc" : "mixed",
      eff: settings.effectiveOrder ? "yes" : "no",
      tok: settings.tokenize,
      smooth: hasValue ? `${settings.smooth}[${fixed(settings.smoothValue, 2)}]` : settings.smooth,
    },
    count,
    options,
  );
  const { hypothesisLength, referenceLength } = parts;
  const ratio = referenceLength === 0 ? 0 : hypothesisLength / referenceLength;
  const verbose = `BLEU|${names.signature} = ${scoreText(parts.score, confidence)} ` +
    `${parts.precisions.map((precision) => fixed(precision, 1)).join("/")} ` +
    `(BP = ${fixed(parts.brevityPenalty, 3)} ratio = ${fixed(ratio, 3)} hyp_len = ${hypothesisLength} ` +
    `ref_len = ${referenceLength})`;
  return { ...parts, ...names, verbose, ...(confidence === undefined ? {} : { confidence }) };
}

/**
 * BLEU of a corpus.
 *
 * @param hypotheses Translations, detokenised.
 * @param references One for each; or several sets of references, each with one (or null) for each.
 * @throws {RangeError} If their numbers differ, a segment has no reference, or an option is unknown.
 *
 * @example Chinese
 * ```ts
 * import { corpusBleu } from "./bleu.ts";
 *
 * const bleu = corpusBleu(["我喜欢这本书。"], ["我喜欢那本书。"], { tokenize: "zh" });
 * console.log(bleu.verbose);
 * ```
 */
export function corpusBleu(
  hypotheses: readonly string[],
  references: References,
  options: BleuOptions = {},
): BleuScore {
  return computeBleu(hypotheses, references, settle(options, false), options);
}

/**
 * BLEU of one sentence, with the effective order unless told otherwise.
 *
 * @param references One or more.
 * @throws {RangeError} If there is no reference, or an option is unknown.
 */
export function sentenceBleu(
  hypothesis: string,
  references: readonly string[],
  options: BleuOptions = {},
): BleuScore {
  return computeBleu([hypothesis], references.map((text) => [text]), settle(options, true), options);
}
