/**
 * Whole training steps - forward, loss, backward, clipping, Adam - on random sentences of one length, in tokens a second.
 *
 * @module
 */

import type { AttentionForm, Context } from "../ffi/mod.ts";
import { type Batch, type ModelConfig, Trainer, trainingFlops, Transformer } from "../models/mod.ts";
import { quantile } from "./timing.ts";

/** What a step trains, and on how much. */
export interface StepJob {
  /** Name of the model's size. */
  model: "base" | "small" | "small-cpu" | "tiny";
  /** Sentences. */
  B: number;
  /** Tokens of each sentence, source and target alike. */
  L: number;
}

/** One measurement of a training step. */
export interface StepRow {
  /** The form, or the name of a peer. */
  attn: string;
  /** Name of the model's size. */
  model: string;
  /** Sentences. */
  B: number;
  /** Tokens of each sentence, source and target alike. */
  L: number;
  /** Median milliseconds of a step. */
  ms: number;
  /** 10th percentile. */
  ms_low: number;
  /** 90th percentile. */
  ms_high: number;
  /** Source and target tokens a second. */
  tokens_per_second: number;
  /** TFLOP/s of the model's arithmetic; NaN for peers. */
  tflops: number;
}

/** The models timed: Vaswani et al. 2017 base, and the small ones of the CPU comparison. */
export const STEP_MODELS = {
  base: { layers: 6, width: 512, feedForward: 2048, heads: 8, vocabulary: 32_000 },
  small: { layers: 3, width: 256, feedForward: 1024, heads: 4, vocabulary: 4000 },
  "small-cpu": { layers: 2, width: 128, feedForward: 512, heads: 4, vocabulary: 2000 },
  tiny: { layers: 4, width: 128, feedForward: 256, heads: 4, vocabulary: 10_000 },
} as const;

const WARM_UPS = 5;
const ROUNDS = 5;

/** The configuration of a named model. */
export function stepModel(name: StepJob["model"], L: number, attention: AttentionForm): ModelConfig {
  const { layers, width, feedForward, heads, vocabulary } = STEP_MODELS[name];
  return {
    sourceVocabulary: vocabulary,
    targetVocabulary: vocabulary,
    encoderLayers: layers,
    decoderLayers: layers,
    width,
    heads,
    feedForward,
    maxLength: L + 1,
    tied: "none",
    attention,
  };
}

/** B random sentence pairs of L tokens each. */
export function randomBatch(B: number, L: number, vocabulary: number): Batch {
  let state = 12345;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return 4 + state % (vocabulary - 4);
  };
  const ids = (): Int32Array => Int32Array.from({ length: B * L }, next);
  const positions = Int32Array.from({ length: B * L }, (_, i) => i % L);
  const offsets = Int32Array.from({ length: B + 1 }, (_, b) => b * L);
  return {
    sentences: B,
    sourceIds: ids(),
    sourcePositions: positions,
    sourceOffsets: offsets,
    targetInput: ids(),
    targetOutput: ids(),
    targetPositions: positions,
    targetOffsets: offsets,
    maxSource: L,
    maxTarget: L,
    targetTokens: B * L,
  };
}

/** Times steps of one job with one attention form, in `ROUNDS` rounds of `steps` each; a round's mean is one sample. */
export function benchStep(context: Context, job: StepJob, form: AttentionForm, steps: number): StepRow {
  const { B, L } = job;
  const config = stepModel(job.model, L, form);
  using model = new Transformer(context, config, 1);
  using trainer = new Trainer({
    model,
    schedule: { kind: "constant", rate: 1e-4 },
    optimizer: { clip: 1 },
    smoothing: 0.1,
    dropout: 0.1,
  });
  const batch = randomBatch(B, L, config.targetVocabulary);
  for (let i = 0; i < WARM_UPS; i++) trainer.step(batch);
  context.synchronize();
  const times = Array.from({ length: ROUNDS }, () => {
    const start = performance.now();
    for (let i = 0; i < steps; i++) trainer.step(batch);
    context.synchronize();
    return (performance.now() - start) / steps;
  }).sort((a, b) => a - b);
  const ms = quantile(times, 0.5);
  const flops = trainingFlops(config, { sentences: B, sourceLength: L, targetLength: L });
  return {
    attn: form,
    ...job,
    ms,
    ms_low: quantile(times, 0.1),
    ms_high: quantile(times, 0.9),
    tokens_per_second: (2 * B * L * 1000) / ms,
    tflops: flops / ms / 1e9,
  };
}
