/**
 * The shape of a model: what fixes its parameters, and what follows from that by arithmetic alone.
 *
 * @module
 */

import { ATTENTION_FORMS, type AttentionForm } from "../ffi/mod.ts";

/** Which embedding tables are one: none, target input with output, or source with both (a joint vocabulary). */
export type Tying = "none" | "target" | "all";

/** Shape of a Transformer (Vaswani et al. 2017, table 3). */
export interface ModelConfig {
  /** Ids of the source vocabulary. */
  sourceVocabulary: number;
  /** Ids of the target vocabulary, V. */
  targetVocabulary: number;
  /** Encoder layers. */
  encoderLayers: number;
  /** Decoder layers. */
  decoderLayers: number;
  /** Model width C, a multiple of 8. */
  width: number;
  /** Attention heads H; C / H is a multiple of 8 up to 128. */
  heads: number;
  /** Width of the feed-forward layers, a multiple of 8. */
  feedForward: number;
  /** Positions that the sinusoidal table holds: the longest sentence in tokens. */
  maxLength: number;
  /** Which embedding tables are one. An untied output layer has a bias, a tied one has none. */
  tied: Tying;
  /** Attention algorithm: changes no parameter, and no result beyond rounding. */
  attention: AttentionForm;
}

const WHOLE = [
  "sourceVocabulary",
  "targetVocabulary",
  "encoderLayers",
  "decoderLayers",
  "width",
  "heads",
  "feedForward",
  "maxLength",
] as const;

/**
 * Checks a configuration.
 *
 * @throws {RangeError} If a size is out of range or does not divide.
 */
export function checkModelConfig(config: ModelConfig): void {
  for (const key of WHOLE) {
    const value = config[key];
    if (!Number.isSafeInteger(value) || value < 1) {
      throw new RangeError(
        `Cannot build a model as ${key} must be a whole number from 1: current value is ${value}`,
      );
    }
  }
  for (const key of ["width", "feedForward"] as const) {
    if (config[key] % 8 !== 0) {
      throw new RangeError(
        `Cannot build a model as ${key} must be a multiple of 8: current value is ${config[key]}`,
      );
    }
  }
  const D = config.width / config.heads;
  if (!Number.isInteger(D) || D % 8 !== 0 || D > 128) {
    throw new RangeError(
      `Cannot build a model as width / heads must be a multiple of 8 up to 128: ` +
        `current value is ${config.width} / ${config.heads}`,
    );
  }
  if (!["none", "target", "all"].includes(config.tied)) {
    throw new RangeError(
      `Cannot build a model as tied must be none, target or all: current value is ${config.tied}`,
    );
  }
  if (config.tied === "all" && config.sourceVocabulary !== config.targetVocabulary) {
    throw new RangeError(
      `Cannot tie all embeddings as the vocabularies must be one: current sizes are ` +
        `${config.sourceVocabulary} and ${config.targetVocabulary}`,
    );
  }
  if (!ATTENTION_FORMS.includes(config.attention)) {
    throw new RangeError(
      `Cannot build a model as attention must be ${
        ATTENTION_FORMS.join(", ")
      }: current value is ${config.attention}`,
    );
  }
}

/** `vocabulary` rounded up to the multiple of 8 that tables and logits have. */
export function paddedVocabulary(vocabulary: number): number {
  return Math.ceil(vocabulary / 8) * 8;
}

/** Trainable numbers of a model, padding of the vocabulary not counted. */
export function parameterCount(config: ModelConfig): number {
  const { width: C, feedForward: F } = config;
  const attention = 4 * (C * C + C);
  const feedForward = 2 * C * F + F + C;
  const norm = 2 * C;
  const encoder = config.encoderLayers * (attention + feedForward + 2 * norm) + norm;
  const decoder = config.decoderLayers * (2 * attention + feedForward + 3 * norm) + norm;
  const source = config.tied === "all" ? 0 : config.sourceVocabulary * C;
  const output = config.tied === "none" ? config.targetVocabulary * (C + 1) : 0;
  return encoder + decoder + source + config.targetVocabulary * C + output;
}

/**
 * Floating-point operations of one training step (forward and backward, a multiply-add is 2) over `sentences` pairs of
 * equal lengths: 6 per weight of a matrix and token, 12 per score and channel of attention, causal halves not counted
 * (Kaplan et al. 2020, table 1; Dao et al. 2022 for attention).
 */
export function trainingFlops(
  config: ModelConfig,
  batch: { sentences: number; sourceLength: number; targetLength: number },
): number {
  const { width: C, feedForward: F } = config;
  const { sentences: B, sourceLength: M, targetLength: N } = batch;
  const weightsOfSource = config.encoderLayers * (4 * C * C + 2 * C * F) + config.decoderLayers * 2 * C * C;
  const weightsOfTarget = config.decoderLayers * (6 * C * C + 2 * C * F) + config.targetVocabulary * C;
  const scores = config.encoderLayers * M * M + config.decoderLayers * (N * N / 2 + N * M);
  return B * (6 * (weightsOfSource * M + weightsOfTarget * N) + 12 * scores * C);
}

/** Device memory of training, in bytes. */
export interface TrainingMemory {
  /** Weights, master weights, gradients and both moments. */
  parameters: number;
  /** Activations and their gradients within a step, about. */
  activations: number;
}

/**
 * What training needs of the device: parameters exactly but for alignment, activations by counting the tensors that a
 * step makes. `dotscale` needs its matrices of scores besides, quadratic in the sentences' length.
 *
 * @param rows The most rows of a batch on either side.
 * @param elementBytes Bytes of an activation: 2 on a GPU, 4 on the CPU.
 */
export function trainingMemory(config: ModelConfig, rows: number, elementBytes: number): TrainingMemory {
  const { width: C, feedForward: F } = config;
  const weights = elementBytes === 4 ? 0 : elementBytes; // in float the master weights are the weights
  const encoder = config.encoderLayers * (10 * C + F);
  const decoder = config.decoderLayers * (16 * C + F + 2 * C);
  const logits = paddedVocabulary(config.targetVocabulary);
  return {
    parameters: parameterCount(config) * (4 * 4 + weights),
    activations: rows * elementBytes * (2 * (encoder + decoder + 4 * C) + logits),
  };
}
