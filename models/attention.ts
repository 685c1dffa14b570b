/**
 * Multi-head attention (Vaswani et al. 2017, section 3.2.2). Heads are columns of one matrix, reached by stride: nothing is
 * transposed or copied, and the inputs' projections are one product.
 *
 * @module
 */

import { Linear } from "./layers.ts";
import type { ParameterSet } from "./parameters.ts";
import type { Tape, Value } from "./tape.ts";

/** Attends within a sequence; how is up to the caller: packed rows in training, a cache in decoding. */
export class SelfAttention {
  readonly #qkv: Linear;
  readonly #out: Linear;

  /** Declares the projections; that to queries, keys and values is one matrix [C, 3C]. */
  constructor(set: ParameterSet, name: string, width: number) {
    this.#qkv = new Linear(set, `${name}.qkv`, { in: width, out: 3 * width }, { blocks: 3 });
    this.#out = new Linear(set, `${name}.out`, { in: width, out: width });
  }

  /** [R, C] to [R, C]; `attend` takes queries, keys and values [R, 3C] to [R, C]. */
  forward(tape: Tape, x: Value, attend: (qkv: Value) => Value): Value {
    const qkv = this.#qkv.forward(tape, x); // [R, 3C]
    return this.#out.forward(tape, attend(qkv)); // [R, C]
  }
}

/** Attends to the encoder's output. */
export class CrossAttention {
  readonly #q: Linear;
  readonly #kv: Linear;
  readonly #out: Linear;

  /** Declares the projections; that to keys and values is one matrix [C, 2C]. */
  constructor(set: ParameterSet, name: string, width: number) {
    this.#q = new Linear(set, `${name}.q`, { in: width, out: width });
    this.#kv = new Linear(set, `${name}.kv`, { in: width, out: 2 * width }, { blocks: 2 });
    this.#out = new Linear(set, `${name}.out`, { in: width, out: width });
  }

  /** Keys and values of the encoder's output: [M, C] to [M, 2C]. */
  keysValues(tape: Tape, memory: Value): Value {
    return this.#kv.forward(tape, memory);
  }

  /** [R, C] to [R, C]; `attend` takes queries [R, C] to [R, C]. */
  forward(tape: Tape, x: Value, attend: (q: Value) => Value): Value {
    const q = this.#q.forward(tape, x); // [R, C]
    return this.#out.forward(tape, attend(q)); // [R, C]
  }
}
