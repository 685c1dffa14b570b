/**
 * The decoder one token at a time, with the keys and values of what it has said kept on the device.
 *
 * N hypotheses of B sentences, T the longest translation, C width, V vocabulary.
 *
 * @module
 */

import { Arena, attentionForward, copyRows, type Tensor, topk } from "../ffi/mod.ts";
import { IntegerBuffer } from "./integers.ts";
import type { Pass } from "./layers.ts";
import { Tape, Value } from "./tape.ts";
import type { Attend, Transformer } from "./transformer.ts";

/** The best tokens of each hypothesis, best first. */
export interface Candidates {
  /** Tokens per hypothesis. */
  k: number;
  /** [N * k] log-probabilities. */
  scores: Float32Array;
  /** [N * k] ids. */
  ids: Int32Array;
}

type StepArrays = "ids" | "positions" | "rows" | "ones" | "caches" | "lengths" | "sentences" | "parents";

/** Decoding of one group of sentences. Rows are hypotheses, those of a sentence side by side, in the order of sentences. */
export class Decoder implements Disposable {
  readonly #model: Transformer;
  readonly #kept: Arena; // lives as long as the group
  readonly #scratch: Arena; // reset every step
  readonly #memory: readonly Tensor[]; // per layer [Rs, 2C]: keys and values of the sources
  readonly #sourceOffsets: Tensor; // i32 [B + 1]
  readonly #longest: number;
  readonly #integers: IntegerBuffer<StepArrays>;
  readonly #limit: number; // T
  readonly #caches: Tensor[]; // per layer [N * T, 2C]: keys and values of the hypotheses
  #spare: Tensor; // one more, for reordering
  #length = 0; // tokens in the caches

  /**
   * Encodes the sources.
   *
   * @param sources Source ids, EOS included.
   * @param rows Most hypotheses at a time, N.
   * @param limit Most target tokens, T.
   */
  constructor(model: Transformer, sources: readonly ArrayLike<number>[], rows: number, limit: number) {
    const { context, config } = model;
    this.#model = model;
    this.#limit = limit;
    this.#kept = new Arena(context);
    this.#scratch = new Arena(context);
    try {
      const total = sources.reduce((sum, source) => sum + source.length, 0);
      this.#longest = sources.reduce((most, source) => Math.max(most, source.length), 0);
      const packed = new IntegerBuffer(this.#kept, {
        ids: total,
        positions: total,
        offsets: sources.length + 1,
      });
      packed.set("ids", sources.flatMap((source) => Array.from(source)));
      packed.set("positions", sources.flatMap((source) => Array.from(source, (_, position) => position)));
      let end = 0;
      packed.set("offsets", [0, ...sources.map((source) => end += source.length)]);
      packed.upload();
      this.#sourceOffsets = packed.view("offsets");
      this.#memory = this.#encode(packed.view("ids"), packed.view("positions"));
      this.#integers = new IntegerBuffer(this.#kept, {
        ids: rows,
        positions: rows,
        rows,
        ones: rows + 1,
        caches: rows + 1,
        lengths: rows,
        sentences: sources.length + 1,
        parents: rows,
      });
      const cache = (): Tensor => this.#kept.tensor([rows * limit, 2 * config.width]); // [N * T, 2C]
      this.#caches = Array.from({ length: config.decoderLayers }, cache);
      this.#spare = cache();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Says one token more.
   *
   * @param ids [N] the last token of each hypothesis.
   * @param counts [B] hypotheses of each sentence; they add up to N.
   * @param parents [N] row in the step before that each hypothesis goes on from; absent where none has moved.
   * @returns The `k` best next tokens of each.
   */
  step(
    ids: ArrayLike<number>,
    counts: readonly number[],
    parents: ArrayLike<number> | null,
    k: number,
  ): Candidates {
    const N = ids.length;
    const T = this.#limit;
    const { config } = this.#model;
    this.#scratch.reset();
    const integers = this.#integers;
    const each = <U>(value: (row: number) => U): U[] => Array.from({ length: N }, (_, row) => value(row));
    let end = 0;
    integers.set("ids", ids);
    integers.set("positions", each(() => this.#length));
    integers.set("rows", each((row) => row * T + this.#length));
    integers.set("ones", [0, ...each((row) => row + 1)], N);
    integers.set("caches", [0, ...each((row) => (row + 1) * T)], N * T);
    integers.set("lengths", each(() => this.#length + 1));
    integers.set("sentences", [0, ...counts.map((count) => end += count)]);
    integers.set("parents", parents ?? []);
    integers.upload();
    if (parents !== null) this.#reorder(N);
    const pass = this.#pass(this.#scratch);
    const target = { ids: integers.view("ids", N), positions: integers.view("positions", N) }; // [N]
    const hidden = this.#model.decodeWith(pass, target, this.#attend(N, Math.max(0, ...counts))); // [N, C]
    const logits = this.#model.logits(pass, hidden).data; // [N, V]
    const scores = this.#scratch.tensor([N, k], "f32"); // [N, k]
    const best = this.#scratch.tensor([N, k], "i32"); // [N, k]
    topk(scores, best, logits, config.targetVocabulary);
    this.#length++;
    return { k, scores: scores.floats(), ids: best.ints() };
  }

  /** Frees what the group needed. Idempotent. */
  [Symbol.dispose](): void {
    this.#scratch[Symbol.dispose]();
    this.#kept[Symbol.dispose]();
  }

  /** Keys and values of the sources for each decoder layer. */
  #encode(ids: Tensor, positions: Tensor): readonly Tensor[] {
    const source = {
      ids,
      positions,
      offsets: this.#sourceOffsets,
      keyLengths: null,
      maxLength: this.#longest,
    };
    const memory = this.#model.encode(this.#pass(this.#scratch), source); // [Rs, C]
    const kept = this.#pass(this.#kept);
    const layers = Array.from({ length: this.#model.config.decoderLayers }, (_, layer) => layer);
    return layers.map((layer) => this.#model.memoryKeysValues(kept, layer, memory).data); // [Rs, 2C]
  }

  #pass(arena: Arena): Pass {
    return { tape: new Tape(arena, { recording: false }), dropout: null, deterministic: false };
  }

  /** Attention of N rows: each to its own cache, and the rows of a sentence together to that sentence's source. */
  #attend(N: number, width: number): Attend {
    const { attention: form, heads, width: C } = this.#model.config;
    const integers = this.#integers;
    const arena = this.#scratch;
    const keysValues = (tensor: Tensor): { k: Tensor; v: Tensor } => ({
      k: tensor.columnSlice(0, C),
      v: tensor.columnSlice(C, C),
    });
    return {
      self: (layer, qkv) => {
        const cache = this.#cache(layer); // [N * T, 2C]
        const fresh = qkv.data.columnSlice(C, 2 * C); // [N, 2C]
        copyRows(cache, fresh, { rows: N, dstIndex: integers.view("rows", N) });
        const inputs = {
          form,
          heads,
          q: qkv.data.columnSlice(0, C), // [N, C]
          ...keysValues(cache.slice(0, N * this.#limit)), // 2 x [N * T, C]
          offsetsQ: integers.view("ones", N + 1),
          offsetsK: integers.view("caches", N + 1),
          keyLengths: integers.view("lengths", N),
          maxQ: 1,
          maxK: this.#limit,
        };
        return new Value(attentionForward(inputs, arena).out); // [N, C]
      },
      cross: (layer, q) => {
        const memory = this.#memory[layer];
        if (memory === undefined) throw new RangeError(`Cannot attend to the source in layer ${layer}`);
        const offsets = { offsetsQ: integers.view("sentences"), offsetsK: this.#sourceOffsets };
        const inputs = {
          form,
          heads,
          q: q.data,
          ...keysValues(memory),
          ...offsets,
          maxQ: width,
          maxK: this.#longest,
        };
        return new Value(attentionForward(inputs, arena).out); // [N, C]
      },
    };
  }

  /** Moves the caches so that row r holds what row parents[r] held. */
  #reorder(N: number): void {
    const columns = 2 * this.#model.config.width;
    const parents = this.#integers.view("parents", N);
    const filled = (cache: Tensor): Tensor => {
      const rows = cache.rows / this.#limit;
      return cache.reshape(rows, this.#limit * columns).columnSlice(0, this.#length * columns); // [N, length * 2C]
    };
    for (let layer = 0; layer < this.#caches.length; layer++) {
      const from = this.#cache(layer);
      copyRows(filled(this.#spare), filled(from), { rows: N, srcIndex: parents });
      this.#caches[layer] = this.#spare;
      this.#spare = from;
    }
  }

  #cache(layer: number): Tensor {
    const cache = this.#caches[layer];
    if (cache === undefined) throw new RangeError(`Cannot find the cache of layer ${layer}`);
    return cache;
  }
}
