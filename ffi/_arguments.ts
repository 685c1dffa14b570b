/**
 * What the kernel wrappers share: argument checks, and packing of parameter structures.
 *
 * @module
 */

import type { Context } from "./context.ts";
import { type DType, DTYPE_CODES } from "./dtype.ts";
import type { Tensor } from "./tensor.ts";

/** A tensor's pointer, or NULL where there is none. */
export function pointer(tensor: Tensor | null | undefined): Deno.PointerValue {
  return tensor?.pointer ?? null;
}

/** The C number of a floating type. */
export function dtypeCode(name: string, tensor: Tensor): number {
  const code = DTYPE_CODES[tensor.dtype];
  if (code === undefined) {
    throw new TypeError(`Cannot run ${name} on ${tensor.dtype}: it takes floating-point tensors`);
  }
  return code;
}

/** Checks that all tensors are of one context, and of the type asked for. */
export function expectType(
  name: string,
  dtype: DType,
  tensors: Record<string, Tensor | null | undefined>,
): void {
  for (const [label, tensor] of Object.entries(tensors)) {
    if (tensor !== null && tensor !== undefined && tensor.dtype !== dtype) {
      throw new TypeError(`Cannot run ${name} as ${label} must be ${dtype}: it is ${tensor.dtype}`);
    }
  }
}

/** Checks that tensors belong to the context. */
export function expectContext(
  name: string,
  context: Context,
  tensors: readonly (Tensor | null | undefined)[],
): void {
  for (const tensor of tensors) {
    if (tensor !== null && tensor !== undefined && tensor.context !== context) {
      throw new TypeError(`Cannot run ${name} on tensors of different contexts`);
    }
  }
}

/** Checks a tensor's number of elements, and that they have no gaps. */
export function expectSize(
  name: string,
  label: string,
  tensor: Tensor | null | undefined,
  size: number,
): void {
  if (tensor === null || tensor === undefined) return;
  if (tensor.size !== size || !tensor.contiguous) {
    throw new RangeError(
      `Cannot run ${name} as ${label} must hold ${size} elements: its shape is [${tensor.shape}]`,
    );
  }
}

/** Checks that a tensor is a matrix of this shape, gaps between rows allowed. */
export function expectMatrix(
  name: string,
  label: string,
  tensor: Tensor,
  rows: number,
  columns: number,
): void {
  if (tensor.rows !== rows || tensor.columns !== columns) {
    throw new RangeError(
      `Cannot run ${name} as ${label} must be [${rows},${columns}]: its shape is [${tensor.shape}]`,
    );
  }
}

/** A place where dropout acts: probability, the device's {seed, step}, and the number of the place. */
export interface Dropout {
  /** Probability of a zero, 0 to less than 1. */
  p: number;
  /** u64 [2] on the device: seed and step. */
  rng: Tensor;
  /** Number of the place: no two in a model share one. */
  site: number;
}

/** Checks a dropout and gives its C arguments. */
export function dropoutArguments(
  name: string,
  dropout: Dropout | null | undefined,
): { p: number; rng: Deno.PointerValue; site: number } {
  if (dropout === null || dropout === undefined || dropout.p === 0) return { p: 0, rng: null, site: 0 };
  if (!(dropout.p > 0 && dropout.p < 1)) {
    throw new RangeError(
      `Cannot run ${name} as dropout must be from 0 to less than 1: current value is ${dropout.p}`,
    );
  }
  if (dropout.rng.dtype !== "u64" || dropout.rng.size !== 2) {
    throw new TypeError(
      `Cannot run ${name} as the dropout state must be u64 [2]: it is ${dropout.rng.dtype}`,
    );
  }
  return { p: dropout.p, rng: dropout.rng.pointer, site: dropout.site };
}

/** Writes a C structure, field after field. */
export class StructWriter {
  /** The structure's bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  #offset = 0;

  /** An empty structure of `size` bytes. */
  constructor(size: number) {
    this.bytes = new Uint8Array(size);
    this.#view = new DataView(this.bytes.buffer);
  }

  /** Device addresses; NULL for none. */
  pointers(...tensors: readonly (Tensor | null | undefined)[]): this {
    for (const tensor of tensors) this.#long(tensor?.address ?? 0n);
    return this;
  }

  /** Raw device addresses. */
  addresses(...addresses: readonly bigint[]): this {
    for (const address of addresses) this.#long(address);
    return this;
  }

  /** 64-bit integers. */
  longs(...values: readonly number[]): this {
    for (const value of values) this.#long(BigInt(value));
    return this;
  }

  /** 32-bit integers. */
  ints(...values: readonly number[]): this {
    for (const value of values) {
      this.#view.setInt32(this.#offset, value, true);
      this.#offset += 4;
    }
    return this;
  }

  /** 32-bit floats. */
  floats(...values: readonly number[]): this {
    for (const value of values) {
      this.#view.setFloat32(this.#offset, value, true);
      this.#offset += 4;
    }
    return this;
  }

  #long(value: bigint): void {
    this.#view.setBigInt64(this.#offset, value, true);
    this.#offset += 8;
  }
}
