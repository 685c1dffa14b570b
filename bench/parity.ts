/**
 * Training parity: the same model, seed and batches with each attention form, without dropout; the loss of every step.
 *
 * The forms differ in algorithm, not in result, so the curves must agree up to rounding, and a GPU's with the CPU's.
 *
 * @module
 */

import { Batcher, encodePairs, generateCorpus, loadCorpus, trainVocabularies } from "../data/mod.ts";
import type { AttentionForm, Context } from "../ffi/mod.ts";
import { type Batch, Trainer, Transformer } from "../models/mod.ts";

/** The loss of one step. */
export interface ParityRow {
  /** Attention form. */
  attn: string;
  /** `cpu` or `cuda`. */
  device: string;
  /** Step, from 1. */
  step: number;
  /** Smoothed loss of a target token, in nats. */
  loss: number;
}

/** What is trained. */
export interface ParityOptions {
  /** Forms to compare. */
  forms: readonly AttentionForm[];
  /** A folder of sentence pairs; undefined: the built-in corpus. */
  data: string | undefined;
  /** Steps. */
  steps: number;
  /** Tokens of a batch on its longer side. */
  batchTokens: number;
}

const SEED = 1;
const BASE = {
  layers: 6,
  width: 512,
  heads: 8,
  feedForward: 2048,
  vocabulary: 32_000,
  longest: 128,
} as const;

/** The first `steps` batches of a shuffled corpus, and the sizes of its vocabularies. */
async function prepare(
  options: ParityOptions,
): Promise<{ batches: Batch[]; source: number; target: number }> {
  const corpus = options.data === undefined
    ? generateCorpus()
    : await loadCorpus(options.data, { parts: ["train"] });
  const { source, target } = trainVocabularies(corpus.train, { vocabSize: BASE.vocabulary });
  const limits = { maxSource: BASE.longest, maxTarget: BASE.longest };
  const encoded = encodePairs(corpus.train, source, target, limits);
  const batcher = new Batcher(encoded, { rows: Math.max(options.batchTokens, BASE.longest), seed: SEED });
  const batches: Batch[] = [];
  for (let epoch = 0; batches.length < options.steps; epoch++) {
    batches.push(...[...batcher.epoch(epoch)].slice(0, options.steps - batches.length));
  }
  return { batches, source: source.size, target: target.size };
}

/** Trains the base Transformer with each form and gives every step's loss. */
export async function parity(context: Context, options: ParityOptions): Promise<ParityRow[]> {
  const { batches, source, target } = await prepare(options);
  return options.forms.flatMap((attention) => {
    using model = new Transformer(context, {
      sourceVocabulary: source,
      targetVocabulary: target,
      encoderLayers: BASE.layers,
      decoderLayers: BASE.layers,
      width: BASE.width,
      heads: BASE.heads,
      feedForward: BASE.feedForward,
      maxLength: BASE.longest,
      tied: "none",
      attention,
    }, SEED);
    using trainer = new Trainer({
      model,
      schedule: { kind: "inverse_sqrt", rate: 5e-4, warmup: 100 },
      optimizer: { clip: 1 },
      smoothing: 0.1,
      seed: SEED,
    });
    for (const batch of batches) trainer.step(batch);
    const { steps } = trainer.readMetrics();
    return steps.map(({ step, loss }) => ({ attn: attention, device: context.device, step, loss }));
  });
}

/** The largest relative difference of a form's losses from the first form's, over windows of ten steps. */
export function largestDeparture(rows: readonly ParityRow[]): number {
  const curve = (attn: string): number[] => {
    const losses = rows.filter((row) => row.attn === attn).map((row) => row.loss);
    const windows = Math.ceil(losses.length / 10);
    return Array.from({ length: windows }, (_, i) => {
      const window = losses.slice(10 * i, 10 * (i + 1));
      return window.reduce((sum, loss) => sum + loss, 0) / window.length;
    });
  };
  const names = [...new Set(rows.map((row) => row.attn))];
  const first = curve(names[0] ?? "");
  const departures = names.slice(1).flatMap((name) =>
    curve(name).map((loss, i) => Math.abs(loss - (first[i] ?? NaN)) / (first[i] ?? NaN))
  );
  return Math.max(0, ...departures);
}
