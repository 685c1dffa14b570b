/**
 * Small models and batches for the tests.
 *
 * @module
 */

import {
  type Batch,
  BOS_ID,
  EOS_ID,
  type ModelConfig,
  PAD_ID,
  Trainer,
  Transformer,
} from "../../models/mod.ts";
import type { Context } from "../../ffi/mod.ts";

/** Sizes that divide nothing evenly but what must: odd vocabularies, two heads of 8. */
export const TINY: ModelConfig = {
  sourceVocabulary: 23,
  targetVocabulary: 19,
  encoderLayers: 1,
  decoderLayers: 1,
  width: 16,
  heads: 2,
  feedForward: 24,
  maxLength: 64,
  tied: "none",
  attention: "imp_flash_attn",
};

/** Larger, so that it can learn. */
export const SMALL: ModelConfig = {
  ...TINY,
  encoderLayers: 2,
  decoderLayers: 2,
  width: 32,
  heads: 4,
  feedForward: 64,
};

/** Pairs of sentences as ids, without marks. */
export interface Pairs {
  sources: number[][];
  targets: number[][];
}

/** A small generator, so that tests do not depend on another folder's (Park & Miller 1988). */
export function generator(seed: number): () => number {
  let state = (seed * 7919 + 1) % 2147483647;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

/** Random sentences of `lengths` with a target that is the source reversed, modulo the vocabulary. */
export function randomPairs(seed: number, lengths: readonly number[], config: ModelConfig = TINY): Pairs {
  const random = generator(seed);
  const most = Math.min(config.sourceVocabulary, config.targetVocabulary) - 4;
  const sources = lengths.map((length) => Array.from({ length }, () => 4 + Math.floor(random() * most)));
  return { sources, targets: sources.map((source) => source.toReversed()) };
}

/** Packs pairs into a batch; with `pad` rows of padding behind each sentence, as far as the longest. */
export function batchOf({ sources, targets }: Pairs, pad: number | null = null): Batch {
  const B = sources.length;
  const source = lay(sources.map((ids) => [...ids, EOS_ID]), pad);
  const input = lay(targets.map((ids) => [BOS_ID, ...ids]), pad);
  const output = lay(targets.map((ids) => [...ids, EOS_ID]), pad);
  const lengths = pad === null ? {} : {
    sourceKeyLengths: Int32Array.from(sources, (ids) => ids.length + 1),
    targetKeyLengths: Int32Array.from(targets, (ids) => ids.length + 1),
  };
  return {
    sentences: B,
    sourceIds: source.ids,
    sourcePositions: source.positions,
    sourceOffsets: source.offsets,
    targetInput: input.ids,
    targetOutput: output.ids,
    targetPositions: input.positions,
    targetOffsets: input.offsets,
    maxSource: source.longest,
    maxTarget: input.longest,
    targetTokens: targets.reduce((sum, ids) => sum + ids.length + 1, 0),
    ...lengths,
  };
}

function lay(
  sentences: readonly number[][],
  pad: number | null,
): { ids: Int32Array; positions: Int32Array; offsets: Int32Array; longest: number } {
  const longest = Math.max(...sentences.map((ids) => ids.length)) + (pad ?? 0);
  const filled = sentences.map((ids) =>
    pad === null ? ids : [...ids, ...new Array<number>(longest - ids.length).fill(PAD_ID)]
  );
  let end = 0;
  return {
    ids: Int32Array.from(filled.flat()),
    positions: Int32Array.from(filled.flatMap((ids) => ids.map((_, position) => position))),
    offsets: Int32Array.from([0, ...filled.map((ids) => end += ids.length)]),
    longest,
  };
}

/** A model that has begun to learn to reverse, for tests that need distinct probabilities and sentences that end. */
export function trainedModel(context: Context, config: ModelConfig = SMALL, steps = 120): Transformer {
  const model = new Transformer(context, config, 7);
  using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 3e-3 } });
  for (let step = 0; step < steps; step++) {
    trainer.step(batchOf(randomPairs(step, [3, 5, 4, 6, 2, 5, 3, 4, 7, 1, 4, 5, 3, 6, 2, 4], config)));
  }
  return model;
}

/** The largest |a - b| over the largest |b|. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [error, size] = [0, 1e-30];
  for (let i = 0; i < b.length; i++) {
    const [x = NaN, y = NaN] = [a[i], b[i]];
    error = Number.isNaN(x - y) ? Infinity : Math.max(error, Math.abs(x - y));
    size = Math.max(size, Math.abs(y));
  }
  return error / size;
}
