/**
 * Matrix products.
 *
 * @module
 */

import { dtypeCode, expectContext, expectSize, StructWriter } from "./_arguments.ts";
import type { Tensor } from "./tensor.ts";

const GEMM_ARGS_BYTES = 104;
const EPILOGUES = { none: 0, bias: 1, biasRelu: 2, biasGrad: 3 } as const;

/** A product c = alpha op(a) op(b) + beta c and what follows it. */
export interface GemmParameters {
  /** op(a) is [m, k]: a itself, or transposed. */
  a: Tensor;
  /** op(b) is [k, n]. */
  b: Tensor;
  /** [m, n], of the type of a and b, or f32. */
  c: Tensor;
  /** Take a as [k, m]. */
  transA?: boolean;
  /** Take b as [n, k]. */
  transB?: boolean;
  /** Default 1. */
  alpha?: number;
  /** Default 0: c is overwritten. */
  beta?: number;
  /** [n], added to each row of c. */
  bias?: Tensor | null;
  /** After the bias, max(0, .). */
  relu?: boolean;
  /** f32 [n]: set to the column sums of op(b), or added to where beta is not 0. Not together with bias. */
  biasGrad?: Tensor | null;
}

/**
 * c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c; all may have gaps between rows.
 *
 * @throws {RangeError} If the shapes do not fit.
 * @throws {TypeError} If the types do not.
 */
export function gemm(parameters: GemmParameters): void {
  const { a, b, c, bias, biasGrad, transA = false, transB = false, alpha = 1, beta = 0 } = parameters;
  const context = c.context;
  expectContext("gemm", context, [a, b, c, bias, biasGrad]);
  const [m, k] = transA ? [a.columns, a.rows] : [a.rows, a.columns];
  const [kOfB, n] = transB ? [b.columns, b.rows] : [b.rows, b.columns];
  if (k !== kOfB || c.rows !== m || c.columns !== n) {
    const op = (tensor: Tensor, transposed: boolean): string => `[${tensor.shape}]${transposed ? "ᵀ" : ""}`;
    throw new RangeError(`Cannot multiply ${op(a, transA)} by ${op(b, transB)} into [${c.shape}]`);
  }
  if (a.dtype !== b.dtype || (c.dtype !== a.dtype && c.dtype !== "f32")) {
    throw new TypeError(`Cannot multiply ${a.dtype} by ${b.dtype} into ${c.dtype}`);
  }
  expectSize("gemm", "bias", bias, n);
  expectSize("gemm", "biasGrad", biasGrad, n);
  let epilogue: number = EPILOGUES.none;
  if (bias) epilogue = parameters.relu === true ? EPILOGUES.biasRelu : EPILOGUES.bias;
  if (biasGrad) epilogue = EPILOGUES.biasGrad;
  if ((bias && biasGrad) || (parameters.relu === true && !bias)) {
    throw new TypeError("Cannot run gemm with that epilogue: relu needs a bias, and biasGrad excludes one");
  }
  const args = new StructWriter(GEMM_ARGS_BYTES)
    .pointers(a, b, c, bias, biasGrad)
    .longs(a.stride, b.stride, c.stride)
    .ints(m, n, k, Number(transA), Number(transB), dtypeCode("gemm", a), dtypeCode("gemm", c), epilogue)
    .floats(alpha, beta);
  context.check("fa_gemm", context.symbols.fa_gemm(context.handle, args.bytes));
}
