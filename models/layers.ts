/**
 * The layers of the Transformer that have parameters, but for attention.
 *
 * @module
 */

import type { Dropout, Tensor } from "../ffi/mod.ts";
import { embedding, linear, linearRelu, type NormParameters, residualNorm } from "./ops.ts";
import type { Parameter, ParameterSet } from "./parameters.ts";
import type { Tape, Value } from "./tape.ts";

/** The bound of a uniform distribution with variance 2 / (in + out) (Glorot & Bengio 2010, equation 16). */
export function xavierBound(fanIn: number, fanOut: number): number {
  return Math.sqrt(6 / (fanIn + fanOut));
}

/** One forward pass: where its tensors go, and its dropout. */
export interface Pass {
  /** Ops and their tensors. */
  readonly tape: Tape;
  /** Probability of dropout and the device's {seed, step}; null in evaluation. */
  readonly dropout: { readonly p: number; readonly rng: Tensor } | null;
  /** Ask for gradients of attention that are the same bit for bit on a GPU. */
  readonly deterministic: boolean;
}

/** Dropout at a numbered place of the model; null where there is none. */
export function dropoutAt(pass: Pass, site: number): Dropout | null {
  return pass.dropout === null || pass.dropout.p === 0 ? null : { ...pass.dropout, site };
}

/** Hands out numbers of places, so that no two share a dropout mask. */
export class Sites {
  #next = 1;

  /** The next number. */
  take(): number {
    return this.#next++;
  }
}

/** y = x W + b. */
export class Linear {
  /** [in, out]. */
  readonly weight: Parameter;
  /** [out]. */
  readonly bias: Parameter;

  /**
   * Declares weights by Xavier's uniform rule and a bias of zeros.
   *
   * @param options.blocks Matrices of that rule side by side: 3 for packed queries, keys and values.
   * @param options.classes Columns that count towards the rule; default all.
   */
  constructor(
    set: ParameterSet,
    name: string,
    sizes: { in: number; out: number },
    options: { blocks?: number; classes?: number } = {},
  ) {
    const bound = xavierBound(sizes.in, options.classes ?? sizes.out / (options.blocks ?? 1));
    this.weight = set.declare(`${name}.weight`, [sizes.in, sizes.out], { kind: "uniform", bound });
    this.bias = set.declare(`${name}.bias`, [sizes.out], { kind: "zeros" });
  }

  /** [R, in] to [R, out]. */
  forward(tape: Tape, x: Value): Value {
    return linear(tape, x, this.weight, this.bias);
  }
}

/** Residual sum, dropout of the branch, and the layer norm (Ba et al. 2016) that the next sublayer begins with. */
export class ResidualNorm implements NormParameters {
  /** [C], from ones. */
  readonly gamma: Parameter;
  /** [C], from zeros. */
  readonly beta: Parameter;
  readonly #site: number;

  /** Declares gain and bias. */
  constructor(set: ParameterSet, sites: Sites, name: string, width: number) {
    this.gamma = set.declare(`${name}.gamma`, [width], { kind: "ones" });
    this.beta = set.declare(`${name}.beta`, [width], { kind: "zeros" });
    this.#site = sites.take();
  }

  /** sum = x + dropout(branch), out = layerNorm(sum); all [R, C]. */
  forward(pass: Pass, x: Value, branch: Value | null): { sum: Value; out: Value } {
    return residualNorm(pass.tape, x, branch, this, dropoutAt(pass, this.#site));
  }
}

/** max(0, x W1 + b1) W2 + b2 (Vaswani et al. 2017, equation 2), with dropout between. */
export class FeedForward {
  readonly #inner: Linear;
  readonly #outer: Linear;
  readonly #site: number;

  /** Declares both layers. */
  constructor(set: ParameterSet, sites: Sites, name: string, width: number, inner: number) {
    this.#inner = new Linear(set, `${name}.inner`, { in: width, out: inner });
    this.#outer = new Linear(set, `${name}.outer`, { in: inner, out: width });
    this.#site = sites.take();
  }

  /** [R, C] to [R, C]. */
  forward(pass: Pass, x: Value): Value {
    const { weight, bias } = this.#inner;
    const h = linearRelu(pass.tape, x, weight, bias, dropoutAt(pass, this.#site)); // [R, F]
    return this.#outer.forward(pass.tape, h); // [R, C]
  }
}

/** Scaled embeddings plus positions, with dropout (Vaswani et al. 2017, sections 3.4 and 3.5). */
export class Embedding {
  /** [V, C], V padded. */
  readonly table: Parameter;
  readonly #site: number;

  /** On a table of its own or a shared one. */
  constructor(sites: Sites, table: Parameter) {
    this.table = table;
    this.#site = sites.take();
  }

  /** ids i32 [R] and positions i32 [R] to [R, C]. */
  forward(pass: Pass, ids: Tensor, positions: { table: Tensor; index: Tensor }): Value {
    const scale = Math.sqrt(this.table.data.columns);
    return embedding(pass.tape, this.table, ids, positions, { scale, dropout: dropoutAt(pass, this.#site) });
  }
}

/** The table of sinusoids: sin(pos / 10000^(2i / C)) in column 2i, cos in 2i + 1 (Vaswani et al. 2017, section 3.5). */
export function sinusoids(positions: number, width: number): Float32Array<ArrayBuffer> {
  const table = new Float32Array(positions * width);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < width; i += 2) {
      const angle = position / 10000 ** (i / width);
      table[position * width + i] = Math.sin(angle);
      if (i + 1 < width) table[position * width + i + 1] = Math.cos(angle);
    }
  }
  return table;
}
