/**
 * What the tests of native operations share: random tensors, guarded outputs, tolerances, and Philox in plain integers.
 *
 * @module
 */

import { assert } from "@std/assert";
import { type Arena, type Context, type DType, type Tensor, unitRoundoff } from "../../ffi/mod.ts";

/** Uniform numbers in [-1, 1) from a 32-bit linear congruential generator: enough for test data. */
export function randomFloats(n: number, seed: number): Float32Array<ArrayBuffer> {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length: n }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** A tensor of random values, and those values as the device holds them. */
export interface Sample {
  /** The device's. */
  tensor: Tensor;
  /** The same after rounding to its type. */
  values: Float32Array<ArrayBuffer>;
}

/** Random values, times `scale`, in a tensor of the context's type. */
export function sample(arena: Arena, shape: number[], seed: number, dtype?: DType, scale = 1): Sample {
  const n = shape.reduce((total, size) => total * size, 1);
  const values = randomFloats(n, seed).map((value) => value * scale);
  const tensor = arena.from(values, shape, dtype ?? arena.context.dtype);
  return { tensor, values: tensor.floats() };
}

/** A size that rows may have on this device: 16-bit rows start on 16 bytes. */
export function rowSize(context: Context, size: number): number {
  return context.dtype === "f32" ? size : Math.ceil(size / 8) * 8;
}

const GUARD = 64; // elements before and after an output; whole multiples of 16 bytes in every type

/** An output between guard bands, all its bytes 0xff: NaN, or -1. */
export interface Guarded {
  /** Where the operation writes. */
  tensor: Tensor;
  /** Fails if anything was written beside it. */
  assertIntact(): void;
}

/** Takes an output of `shape` from the arena, poisoned and guarded. */
export function guarded(arena: Arena, shape: number[], dtype?: DType): Guarded {
  const n = shape.reduce((total, size) => total * size, 1);
  const whole = arena.tensor([n + 2 * GUARD], dtype ?? arena.context.dtype).fill(0xff);
  const isPoison = (value: number | bigint): boolean => Number.isNaN(value) || value === -1;
  return {
    tensor: whole.slice(GUARD, n).reshape(...shape),
    assertIntact(): void {
      const edges = [...whole.slice(0, GUARD).read(), ...whole.slice(GUARD + n, GUARD).read()];
      assert(edges.every(isPoison), "an operation wrote outside its output");
    },
  };
}

/** How far a result may lie from its float64 reference. */
export interface Tolerance {
  /** Type of the stored result. */
  dtype: DType;
  /** Size of the terms that cancel in a result; 1 by default. */
  scale?: number;
  /** Number of terms that are summed in single precision; 1 by default. */
  terms?: number;
}

/** Asserts |actual - expected| within the rounding of the result's type and of a sum in single precision. */
export function assertClose(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { dtype, scale = 1, terms = 1 }: Tolerance,
): void {
  assert(actual.length === expected.length, `${name}: ${actual.length} results, not ${expected.length}`);
  const rounding = 4 * unitRoundoff(dtype);
  const summing = unitRoundoff("f32") * (8 + Math.sqrt(terms) * 4) * scale;
  for (let i = 0; i < expected.length; i++) {
    const [got, want] = [actual[i] ?? NaN, expected[i] ?? NaN];
    if (Object.is(got, want)) continue;
    const bound = rounding * (Math.abs(want) + scale / 4) + summing;
    assert(
      Math.abs(got - want) <= bound,
      `${name}[${i}] is ${got}, not ${want}: off by ${Math.abs(got - want)}, allowed ${bound}`,
    );
  }
}

const WORD = 0xffffffffn;

/** Philox4x32-7 (Salmon et al. 2011): four 32-bit words from a counter of four and a 64-bit key. */
export function philox(counter: readonly bigint[], key: bigint): bigint[] {
  let [c0 = 0n, c1 = 0n, c2 = 0n, c3 = 0n] = counter;
  let [k0, k1] = [key & WORD, (key >> 32n) & WORD];
  for (let round = 0; round < 7; round++) {
    const [p0, p1] = [0xD2511F53n * c0, 0xCD9E8D57n * c2];
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & WORD, (p0 >> 32n) ^ c3 ^ k1, p0 & WORD];
    [k0, k1] = [(k0 + 0x9E3779B9n) & WORD, (k1 + 0xBB67AE85n) & WORD];
  }
  return [c0, c1, c2, c3];
}

/** The dropout factors of elements 0 .. n - 1 at a site: 0 or 65536 / (65536 - T), as cuda/flashattn.h defines them. */
export function dropoutFactors(n: number, p: number, seed: bigint, step: bigint, site: number): Float64Array {
  const threshold = Math.round(Math.fround(p) * 65536);
  const key = BigInt.asUintN(64, seed + step * 0x9E3779B97F4A7C15n);
  const factors = new Float64Array(n);
  for (let first = 0; first < n; first += 8) {
    const words = philox([BigInt(first / 8), 0n, BigInt(site), 0n], key);
    for (let e = 0; e < 8 && first + e < n; e++) {
      const value = Number(((words[e >> 1] ?? 0n) >> BigInt(16 * (e % 2))) & 0xffffn);
      factors[first + e] = value >= threshold ? 65536 / (65536 - threshold) : 0;
    }
  }
  return factors;
}

/** The device's dropout state. */
export function rngTensor(arena: Arena, seed: bigint, step: bigint): Tensor {
  return arena.from(new BigUint64Array([seed, step]), [2], "u64");
}

/** A Float64Array of `n` results of `f`. */
export function float64(n: number, f: (index: number) => number): Float64Array {
  return Float64Array.from({ length: n }, (_, index) => f(index));
}

/** `values[index]`, which has to exist. */
export function at(values: ArrayLike<number>, index: number): number {
  const value = values[index];
  if (value === undefined) throw new RangeError(`no element ${index} of ${values.length}`);
  return value;
}
