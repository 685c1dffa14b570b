/**
 * The Transformer of Vaswani et al. 2017, with layer norm before each sublayer and after the last (Xiong et al. 2020).
 *
 * Rs source rows, Rt target rows, C width, V vocabulary (padded to a multiple of 8).
 *
 * @module
 */

import { Arena, type Context, type Tensor } from "../ffi/mod.ts";
import { CrossAttention, SelfAttention } from "./attention.ts";
import { checkModelConfig, type ModelConfig, paddedVocabulary, parameterCount } from "./config.ts";
import {
  dropoutAt,
  Embedding,
  FeedForward,
  Linear,
  type Pass,
  ResidualNorm,
  sinusoids,
  Sites,
  xavierBound,
} from "./layers.ts";
import {
  type AttentionOptions,
  crossAttention,
  crossEntropyLoss,
  type CrossEntropyOptions,
  linear,
  project,
  type RowLosses,
  selfAttention,
} from "./ops.ts";
import { type Parameter, ParameterSet } from "./parameters.ts";
import type { Value } from "./tape.ts";

/** One side of a batch on the device. */
export interface Sequences {
  /** i32 [R]. */
  ids: Tensor;
  /** i32 [R]. */
  positions: Tensor;
  /** i32 [B + 1]. */
  offsets: Tensor;
  /** i32 [B], in the padded layout; else null. */
  keyLengths: Tensor | null;
  /** At least the rows of the longest sentence. */
  maxLength: number;
}

/** A batch on the device. */
export interface DeviceBatch {
  /** What the encoder reads. */
  source: Sequences;
  /** What the decoder reads. */
  target: Sequences;
  /** i32 [Rt]: what the decoder must say. */
  targets: Tensor;
}

/** How the decoder's layers attend: over packed rows in training, to a cache in decoding. */
export interface Attend {
  /** Queries, keys and values [R, 3C] of decoder layer `layer` to [R, C]. */
  self(layer: number, qkv: Value): Value;
  /** Queries [R, C] of decoder layer `layer` to [R, C]. */
  cross(layer: number, q: Value): Value;
}

class EncoderLayer {
  readonly #norms: readonly [ResidualNorm, ResidualNorm];
  readonly #attention: SelfAttention;
  readonly #feedForward: FeedForward;
  readonly #site: number;

  constructor(set: ParameterSet, sites: Sites, name: string, { width, feedForward }: ModelConfig) {
    const norm = (index: number): ResidualNorm => new ResidualNorm(set, sites, `${name}.norm${index}`, width);
    this.#norms = [norm(1), norm(2)];
    this.#attention = new SelfAttention(set, `${name}.self`, width);
    this.#feedForward = new FeedForward(set, sites, `${name}.feedForward`, width, feedForward);
    this.#site = sites.take();
  }

  /** The stream x [R, C] and the branch still to be added to it, to the same after this layer. */
  forward(pass: Pass, stream: Stream, options: AttentionOptions): Stream {
    const { tape } = pass;
    const dropout = dropoutAt(pass, this.#site);
    const first = this.#norms[0].forward(pass, stream.x, stream.branch); // [R, C]
    const attended = this.#attention.forward(
      tape,
      first.out,
      (qkv) => selfAttention(tape, qkv, { ...options, dropout }),
    );
    const second = this.#norms[1].forward(pass, first.sum, attended); // [R, C]
    return { x: second.sum, branch: this.#feedForward.forward(pass, second.out) }; // [R, C]
  }
}

class DecoderLayer {
  /** Dropout sites of the two attentions. */
  readonly sites: { readonly self: number; readonly cross: number };
  readonly cross: CrossAttention;
  readonly #norms: readonly [ResidualNorm, ResidualNorm, ResidualNorm];
  readonly #self: SelfAttention;
  readonly #feedForward: FeedForward;

  constructor(set: ParameterSet, sites: Sites, name: string, { width, feedForward }: ModelConfig) {
    const norm = (index: number): ResidualNorm => new ResidualNorm(set, sites, `${name}.norm${index}`, width);
    this.#norms = [norm(1), norm(2), norm(3)];
    this.#self = new SelfAttention(set, `${name}.self`, width);
    this.cross = new CrossAttention(set, `${name}.cross`, width);
    this.#feedForward = new FeedForward(set, sites, `${name}.feedForward`, width, feedForward);
    this.sites = { self: sites.take(), cross: sites.take() };
  }

  /** As in the encoder, with attention to the encoder's output between the two sublayers. */
  forward(pass: Pass, stream: Stream, self: (qkv: Value) => Value, cross: (q: Value) => Value): Stream {
    const first = this.#norms[0].forward(pass, stream.x, stream.branch); // [R, C]
    const attended = this.#self.forward(pass.tape, first.out, self); // [R, C]
    const second = this.#norms[1].forward(pass, first.sum, attended); // [R, C]
    const crossed = this.cross.forward(pass.tape, second.out, cross); // [R, C]
    const third = this.#norms[2].forward(pass, second.sum, crossed); // [R, C]
    return { x: third.sum, branch: this.#feedForward.forward(pass, third.out) }; // [R, C]
  }
}

/** The residual stream: x [R, C], and what the last sublayer adds to it, which the next norm's kernel does. */
interface Stream {
  x: Value;
  branch: Value | null;
}

/**
 * An encoder-decoder Transformer and its parameters.
 *
 * @example A model on the CPU
 * ```ts
 * import { Context } from "../ffi/mod.ts";
 * import { Transformer } from "./mod.ts";
 * using context = new Context({ device: "cpu" });
 * const config = {
 *   sourceVocabulary: 2000, targetVocabulary: 2000, encoderLayers: 2, decoderLayers: 2, width: 128, heads: 4,
 *   feedForward: 512, maxLength: 256, tied: "none", attention: "imp_flash_attn",
 * } as const;
 * using model = new Transformer(context, config, 1);
 * console.log(model.parameterCount);
 * ```
 */
export class Transformer implements Disposable {
  /** Device of the parameters. */
  readonly context: Context;
  /** Its shape. */
  readonly config: Readonly<ModelConfig>;
  /** Its weights. */
  readonly parameters: ParameterSet;
  readonly #arena: Arena;
  readonly #positions: Tensor; // f32 [P, C]
  readonly #source: Embedding;
  readonly #target: Embedding;
  readonly #encoder: readonly EncoderLayer[];
  readonly #decoder: readonly DecoderLayer[];
  readonly #encoderNorm: ResidualNorm;
  readonly #decoderNorm: ResidualNorm;
  readonly #output: Linear | Parameter;

  /**
   * Declares and initialises the parameters: Xavier uniform for matrices, the same on every device for the same seed.
   *
   * @throws {RangeError} If the configuration is out of range.
   * @throws {OutOfMemoryError} If the device has no room.
   */
  constructor(context: Context, config: ModelConfig, seed = 0) {
    checkModelConfig(config);
    this.context = context;
    this.config = { ...config };
    const set = new ParameterSet(context);
    const sites = new Sites();
    const { width: C, tied } = config;
    const table = (name: string, vocabulary: number): Parameter => {
      const bound = xavierBound(vocabulary, C);
      return set.declare(name, [paddedVocabulary(vocabulary), C], { kind: "uniform", bound }); // [V, C]
    };
    const target = table("target.embedding", config.targetVocabulary);
    const source = tied === "all" ? target : table("source.embedding", config.sourceVocabulary);
    this.#source = new Embedding(sites, source);
    this.#target = new Embedding(sites, target);
    const layers = <T>(count: number, make: (index: number) => T): T[] =>
      Array.from({ length: count }, (_, i) => make(i));
    this.#encoder = layers(config.encoderLayers, (i) => new EncoderLayer(set, sites, `encoder.${i}`, config));
    this.#encoderNorm = new ResidualNorm(set, sites, "encoder.norm", C);
    this.#decoder = layers(config.decoderLayers, (i) => new DecoderLayer(set, sites, `decoder.${i}`, config));
    this.#decoderNorm = new ResidualNorm(set, sites, "decoder.norm", C);
    const V = config.targetVocabulary;
    const sizes = { in: C, out: paddedVocabulary(V) };
    this.#output = tied === "none" ? new Linear(set, "output", sizes, { classes: V }) : target;
    this.parameters = set;
    this.#arena = new Arena(context, { chunkBytes: 1 });
    try {
      set.initialise(seed);
      this.#positions = this.#arena.from(sinusoids(config.maxLength, C), [config.maxLength, C], "f32"); // [P, C]
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Trainable numbers, padding of the vocabulary not counted. */
  get parameterCount(): number {
    return parameterCount(this.config);
  }

  /** Source rows to memory [Rs, C]. */
  encode(pass: Pass, source: Sequences): Value {
    const options = this.#lengths(pass, source, source);
    let stream: Stream = { x: this.#embed(pass, this.#source, source), branch: null }; // [Rs, C]
    for (const layer of this.#encoder) stream = layer.forward(pass, stream, options); // [Rs, C]
    return this.#encoderNorm.forward(pass, stream.x, stream.branch).out; // [Rs, C]
  }

  /** Target rows to the last layer's output [Rt, C], attending to packed rows. */
  decode(pass: Pass, memory: Value, source: Sequences, target: Sequences): Value {
    const { tape } = pass;
    const within = { ...this.#lengths(pass, target, target), causal: true };
    const across = this.#lengths(pass, target, source);
    return this.decodeWith(pass, target, {
      self: (layer, qkv) =>
        selfAttention(tape, qkv, { ...within, dropout: this.#dropout(pass, layer, "self") }),
      cross: (layer, q) => {
        const kv = this.memoryKeysValues(pass, layer, memory); // [Rs, 2C]
        return crossAttention(tape, q, kv, { ...across, dropout: this.#dropout(pass, layer, "cross") });
      },
    });
  }

  /** The same, attending as the caller says. */
  decodeWith(pass: Pass, target: Pick<Sequences, "ids" | "positions">, attend: Attend): Value {
    let stream: Stream = { x: this.#embed(pass, this.#target, target), branch: null }; // [Rt, C]
    this.#decoder.forEach((layer, i) => {
      stream = layer.forward(pass, stream, (qkv) => attend.self(i, qkv), (q) => attend.cross(i, q)); // [Rt, C]
    });
    return this.#decoderNorm.forward(pass, stream.x, stream.branch).out; // [Rt, C]
  }

  /** Keys and values [Rs, 2C] that decoder layer `layer` takes from the encoder's output. */
  memoryKeysValues(pass: Pass, layer: number, memory: Value): Value {
    const decoder = this.#decoder[layer];
    if (decoder === undefined) {
      throw new RangeError(`Cannot use decoder layer ${layer} of ${this.#decoder.length}`);
    }
    return decoder.cross.keysValues(pass.tape, memory);
  }

  /** Hidden rows [R, C] to logits [R, V], V padded. */
  logits(pass: Pass, hidden: Value): Value {
    const output = this.#output;
    return output instanceof Linear
      ? linear(pass.tape, hidden, output.weight, output.bias)
      : project(pass.tape, hidden, output);
  }

  /** Logits [Rt, V] of every target row, given those before it. */
  forward(pass: Pass, batch: Omit<DeviceBatch, "targets">): Value {
    const memory = this.encode(pass, batch.source); // [Rs, C]
    const hidden = this.decode(pass, memory, batch.source, batch.target); // [Rt, C]
    return this.logits(pass, hidden); // [Rt, V]
  }

  /** Losses of every target row; on a recording tape, the start of the backward pass. */
  forwardLoss(
    pass: Pass,
    batch: DeviceBatch,
    options: Omit<CrossEntropyOptions, "targets" | "classes">,
  ): RowLosses {
    const logits = this.forward(pass, batch); // [Rt, V]
    const classes = this.config.targetVocabulary;
    return crossEntropyLoss(pass.tape, logits, { ...options, targets: batch.targets, classes }); // [Rt]
  }

  /** Frees the parameters. Idempotent. */
  [Symbol.dispose](): void {
    this.parameters[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
  }

  #embed(pass: Pass, table: Embedding, rows: Pick<Sequences, "ids" | "positions">): Value {
    return table.forward(pass, rows.ids, { table: this.#positions, index: rows.positions }); // [R, C]
  }

  #dropout(pass: Pass, layer: number, kind: "self" | "cross"): ReturnType<typeof dropoutAt> {
    return dropoutAt(pass, this.#decoder[layer]?.sites[kind] ?? 0);
  }

  #lengths(pass: Pass, queries: Sequences, keys: Sequences): AttentionOptions {
    return {
      form: this.config.attention,
      heads: this.config.heads,
      offsetsQ: queries.offsets,
      offsetsK: keys.offsets,
      keyLengths: keys.keyLengths,
      maxQ: queries.maxLength,
      maxK: keys.maxLength,
      deterministic: pass.deterministic,
    };
  }
}
