/**
 * From a configuration or a checkpoint to a model on a device, and from sentences to translations.
 *
 * @module
 */

import { join } from "@std/path";
import { markSource } from "../data/batching.ts";
import { type AttentionForm, Context, type Device } from "../ffi/mod.ts";
import {
  beamSearch,
  greedy,
  type Hypothesis,
  type ModelConfig,
  type Schedule,
  Transformer,
} from "../models/mod.ts";
import {
  type Checkpoint,
  expectTensors,
  expectTokenizer,
  openCheckpoint,
  readMoments,
  readWeights,
} from "./checkpoint.ts";
import { nextTurn } from "./cli.ts";
import type { Config } from "./config.ts";
import type { NamedTensor } from "./safetensors.ts";
import { loadTokenizer, type Tokenizer } from "./vocabulary.ts";

/** Positions of the sinusoidal table, at least: the longest sentence that can be translated, in tokens. */
const POSITIONS = 1024;
/** Sentences translated between two looks at the signals. */
const GROUP = 256;

/** The shape of the model that a configuration and its vocabularies make. */
export function modelConfig(config: Config, tokenizer: Tokenizer): ModelConfig {
  const joint = tokenizer.source === tokenizer.target;
  return {
    sourceVocabulary: tokenizer.source.size,
    targetVocabulary: tokenizer.target.size,
    encoderLayers: config.encoderLayers,
    decoderLayers: config.decoderLayers,
    width: config.dModel,
    heads: config.heads,
    feedForward: config.ff,
    maxLength: Math.max(POSITIONS, config.maxTrainLength, config.maxLen + 1),
    tied: !config.tied ? "none" : joint ? "all" : "target",
    attention: config.attn,
  };
}

/** The learning rate's course that a configuration asks for. */
export function scheduleOf(config: Config): Schedule {
  const { lr, warmup, dModel } = config;
  if (config.schedule === "noam") return { kind: "noam", factor: lr, width: dModel, warmup };
  return { kind: config.schedule, rate: lr, warmup };
}

/** The shapes that a checkpoint of `model` must have, with a prefix to the names for Adam's moments. */
function shapesOf(model: Transformer, prefix = ""): { name: string; shape: readonly number[] }[] {
  return model.parameters.all.map(({ name, shape }) => ({ name: prefix + name, shape }));
}

function arrays(
  tensors: ReadonlyMap<string, NamedTensor>,
  prefix = "",
): Record<string, Float32Array<ArrayBuffer>> {
  const found: Record<string, Float32Array<ArrayBuffer>> = {};
  for (const [name, { data }] of tensors) {
    if (name.startsWith(prefix)) found[name.slice(prefix.length)] = Float32Array.from(data);
  }
  return found;
}

/** One buffer of a model as tensors for a checkpoint. */
export function namedTensors(
  model: Transformer,
  values: Readonly<Record<string, Float32Array>>,
  prefix = "",
): NamedTensor[] {
  return model.parameters.all.map(({ name, shape }) => ({
    name: prefix + name,
    shape,
    data: values[name] ?? new Float32Array(0),
  }));
}

/**
 * Puts a checkpoint's weights into a model.
 *
 * @throws {SyntaxError} If the checkpoint is damaged.
 * @throws {RangeError} If it is of another model.
 */
export function loadWeights(model: Transformer, checkpoint: Checkpoint): void {
  const weights = readWeights(checkpoint);
  expectTensors(weights, shapesOf(model), checkpoint.folder);
  model.parameters.write("master", arrays(weights));
}

/** What a resumed run takes from a checkpoint: weights and moments by name, compared with the model's. */
export function trainingTensors(model: Transformer, checkpoint: Checkpoint): {
  weights: Record<string, Float32Array<ArrayBuffer>>;
  m: Record<string, Float32Array<ArrayBuffer>>;
  v: Record<string, Float32Array<ArrayBuffer>>;
} {
  const weights = readWeights(checkpoint);
  expectTensors(weights, shapesOf(model), checkpoint.folder);
  const moments = readMoments(checkpoint);
  expectTensors(moments, [...shapesOf(model, "m."), ...shapesOf(model, "v.")], checkpoint.folder);
  return { weights: arrays(weights), m: arrays(moments, "m."), v: arrays(moments, "v.") };
}

/** A trained model with what it needs to translate. */
export interface Trained extends Disposable {
  /** Its device. */
  readonly context: Context;
  /** The model. */
  readonly model: Transformer;
  /** Its vocabularies. */
  readonly tokenizer: Tokenizer;
  /** Where it comes from. */
  readonly checkpoint: Checkpoint;
}

/** How a trained model is opened. */
export interface OpenOptions {
  /** Where it shall run. */
  readonly device: Device | "auto";
  /** Attention form; default: that of its training. */
  readonly attn?: AttentionForm | undefined;
}

/**
 * Opens a run's or a checkpoint's model.
 *
 * @throws {UsageError} If it is missing or belongs to another vocabulary.
 * @throws {SyntaxError} If it is damaged.
 */
export function openTrained(path: string, options: OpenOptions): Trained {
  const checkpoint = openCheckpoint(path);
  const tokenizer = loadTokenizer(join(checkpoint.run, "tokenizer.json"));
  expectTokenizer(checkpoint, tokenizer.hash);
  using stack = new DisposableStack();
  const context = stack.use(new Context({ device: options.device }));
  const config = { ...checkpoint.config, attn: options.attn ?? checkpoint.config.attn };
  const model = stack.use(new Transformer(context, modelConfig(config, tokenizer)));
  loadWeights(model, checkpoint);
  const owned = stack.move();
  return { context, model, tokenizer, checkpoint, [Symbol.dispose]: () => owned.dispose() };
}

/** How sentences are translated. */
export interface TranslateOptions {
  /** Hypotheses of the beam search; 1 is greedy search. */
  readonly beam: number;
  /** Exponent of the length penalty. */
  readonly lengthPenalty: number;
  /** Most tokens of a translation; 0: 1.5 times the source plus 10. */
  readonly maxLen: number;
  /** Translations of each sentence, best first. */
  readonly nbest?: number;
  /** Called with the number of sentences done. */
  readonly onProgress?: (done: number) => void;
  /** Called with the place of a sentence that is longer than the model's positions; it is cut. */
  readonly onCut?: (index: number) => void;
  /** Ends the work early: what is not translated yet is "". */
  readonly stop?: () => boolean;
}

/** A translation of a sentence. */
export interface Translation {
  /** The text. */
  readonly text: string;
  /** Log-probability over the length penalty. */
  readonly score: number;
}

/**
 * Translates sentences. Sentences of like length are decoded together; the answer is in the order given. A blank sentence
 * has a blank translation.
 */
export async function translateAll(
  model: Transformer,
  tokenizer: Tokenizer,
  sentences: readonly string[],
  options: TranslateOptions,
): Promise<Translation[][]> {
  const longest = model.config.maxLength;
  const sources = sentences.map((sentence, index) => {
    const ids = tokenizer.source.encode(sentence);
    if (ids.length < longest) return ids.length === 0 ? undefined : markSource(ids);
    options.onCut?.(index);
    return markSource(Array.from(ids).slice(0, longest - 1));
  });
  const order: number[] = [];
  sources.forEach((ids, index) => {
    if (ids !== undefined) order.push(index);
  });
  order.sort((a, b) => (sources[a]?.length ?? 0) - (sources[b]?.length ?? 0));
  const found: Translation[][] = sentences.map(() => [{ text: "", score: 0 }]);
  let done = sentences.length - order.length;
  for (let start = 0; start < order.length; start += GROUP) {
    await nextTurn();
    if (options.stop?.() === true) break;
    const group = order.slice(start, start + GROUP);
    const hypotheses = decode(model, group.map((index) => sources[index] ?? []), options, (n) => {
      options.onProgress?.(done + n);
    });
    group.forEach((index, i) => {
      found[index] = (hypotheses[i] ?? []).map(({ ids, score }) => ({
        text: tokenizer.target.decode(ids),
        score,
      }));
    });
    done += group.length;
    options.onProgress?.(done);
  }
  return found;
}

function decode(
  model: Transformer,
  sources: readonly ArrayLike<number>[],
  options: TranslateOptions,
  onProgress: (done: number) => void,
): Hypothesis[][] {
  const { beam, lengthPenalty, maxLen, nbest = 1 } = options;
  const common = { onProgress, ...(maxLen > 0 ? { maxLength: (): number => maxLen } : {}) };
  if (beam === 1 && nbest === 1) return greedy(model, sources, common);
  return beamSearch(model, sources, { ...common, beam: Math.max(beam, nbest), alpha: lengthPenalty, nbest });
}

/** The text of each sentence's best translation. */
export function bestTexts(translations: readonly Translation[][]): string[] {
  return translations.map((list) => list[0]?.text ?? "");
}
