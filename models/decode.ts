/**
 * Translation: greedy and beam search.
 *
 * @module
 */

import type { Transformer } from "./transformer.ts";

/** A translation. */
export interface Hypothesis {
  /** Target ids without BOS and EOS. */
  ids: number[];
  /** Log-probability over the length penalty: what hypotheses are ranked by. */
  score: number;
  /** Sum of the log-probabilities of its tokens, EOS included where it ended. */
  logProbability: number;
  /** Whether it ended with EOS, rather than at the length limit. */
  finished: boolean;
}

/** Options of {@linkcode greedy}. */
export interface DecodeOptions {
  /** Most target tokens for a source of `length` tokens; default 1.5 * length + 10, and never beyond the model's positions. */
  maxLength?: (length: number) => number;
  /** Most source tokens decoded together, padding counted; default 4096. */
  batchTokens?: number;
  /** Called after each group of sentences with the number done so far. */
  onProgress?: (done: number) => void;
}

/** Options of {@linkcode beamSearch}. */
export interface BeamOptions extends DecodeOptions {
  /** Hypotheses kept per sentence, 1 to 32; default 4. */
  beam?: number;
  /** Exponent of the length penalty ((5 + length) / 6)^alpha (Wu et al. 2016, equation 14); default 0.6, 0: none. */
  alpha?: number;
  /** Hypotheses returned per sentence, best first, at most `beam`; default 1. */
  nbest?: number;
}

/** The most probable token at each step, sentence by sentence; one hypothesis each. */
export function greedy(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: DecodeOptions = {},
): Hypothesis[][] {
  void model;
  void sources;
  void options;
  throw new Error("Cannot decode yet");
}

/** The best hypotheses of each sentence, best first. */
export function beamSearch(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: BeamOptions = {},
): Hypothesis[][] {
  void model;
  void sources;
  void options;
  throw new Error("Cannot decode yet");
}
