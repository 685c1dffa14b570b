/**
 * Inputs of benchmarks: random values on the device, never zeros, on which some hardware is faster.
 *
 * @module
 */

import { Arena, cast, randomUniform, type Tensor } from "../ffi/mod.ts";

/** Which numbers to draw. */
export interface Draw {
  /** Values lie in [-bound, bound). */
  bound: number;
  /** Seed of the generator. */
  seed: bigint;
  /** Which of the generator's sequences: tensors of one site are alike. */
  site: number;
}

/** Fills a floating-point tensor with uniform values, rounded to its type, and returns it. */
export function drawUniform(tensor: Tensor, { bound, seed, site }: Draw): Tensor {
  if (tensor.dtype === "f32") {
    randomUniform(tensor, -bound, bound, seed, site);
    return tensor;
  }
  using scratch = new Arena(tensor.context);
  const wide = scratch.tensor(tensor.shape, "f32");
  randomUniform(wide, -bound, bound, seed, site);
  cast(tensor, wide);
  return tensor;
}
