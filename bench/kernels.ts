/**
 * The kernels beside attention: matrix products against the machine's peak, memory-bound kernels against its copy speed.
 *
 * @module
 */

import {
  adam,
  add,
  Arena,
  biasReluDropoutBackward,
  biasReluDropoutForward,
  columnSum,
  type Context,
  copy,
  crossEntropy,
  type DType,
  ELEMENT_BYTES,
  embeddingBackward,
  embeddingForward,
  gemm,
  gradNorm,
  residualNormBackward,
  residualNormForward,
  type Tensor,
} from "../ffi/mod.ts";
import { drawUniform } from "./draw.ts";
import { Stopwatch, type TimingOptions } from "./timing.ts";

/** One matrix product, [m, k] by [k, n]. */
export interface GemmRow {
  /** Where it stands in a Transformer. */
  name: string;
  /** Rows of the result. */
  m: number;
  /** Columns of the result. */
  n: number;
  /** Length of the sums. */
  k: number;
  /** Median milliseconds. */
  ms: number;
  /** GFLOP/s, 2 m n k operations. */
  gflops: number;
  /** GFLOP/s that the arithmetic units could do at most; NaN where unknown. */
  peak: number;
}

/** One memory-bound kernel. */
export interface KernelRow {
  /** Its name. */
  name: string;
  /**
   * Bytes that it must read and write at least: every input once, every result once. Of a table only the rows that are
   * looked up count, each once; what an implementation keeps for itself (sorted ids, partial sums) does not count.
   */
  bytes: number;
  /** Median milliseconds. */
  ms: number;
  /** GB/s of those bytes. */
  gbps: number;
  /** Share of the copy kernel's GB/s. */
  share: number;
  /** Share of the GB/s of a copy that moves as many bytes: what a launch costs weighs as much there. */
  equal_share: number;
}

/** Sizes of the memory-bound kernels: a training step's. */
export interface KernelSizes {
  /** Packed rows R. */
  rows: number;
  /** Model width C. */
  C: number;
  /** Feed-forward width. */
  ff: number;
  /** Vocabulary V. */
  V: number;
  /** Parameters. */
  parameters: number;
}

const SEED = 7n;

function draw(arena: Arena, shape: readonly number[], dtype: DType = arena.context.dtype): Tensor {
  return drawUniform(arena.tensor(shape, dtype), { bound: 1, seed: SEED, site: shape.length });
}

/** GFLOP/s of one fused multiply-add per vector lane, two units, on every core: x86-64's present form. */
function cpuPeak(context: Context): number {
  const { units, simdWidth, clockMhz } = context.info();
  return clockMhz > 0 ? (units * simdWidth * 2 * 2 * clockMhz) / 1000 : NaN;
}

/** Times matrix products. */
export function* benchGemm(
  context: Context,
  shapes: readonly { name: string; m: number; n: number; k: number }[],
  options: TimingOptions,
): Generator<GemmRow> {
  using stopwatch = new Stopwatch(context);
  const peak = context.device === "cpu" ? cpuPeak(context) : NaN;
  for (const { name, m, n, k } of shapes) {
    using arena = new Arena(context);
    const [a, b, c] = [draw(arena, [m, k]), draw(arena, [k, n]), arena.tensor([m, n])];
    const { ms } = stopwatch.time(() => gemm({ a, b, c }), options);
    yield { name, m, n, k, ms, gflops: (2 * m * n * k) / ms / 1e6, peak };
  }
}

interface Job {
  name: string;
  bytes: number;
  call: () => void;
}

/** Times the memory-bound kernels, the copy first. */
export function* benchKernels(
  context: Context,
  sizes: KernelSizes,
  options: TimingOptions,
): Generator<KernelRow> {
  using stopwatch = new Stopwatch(context);
  let copySpeed = NaN;
  for (const makeJobs of [copyJobs, normJobs, feedForwardJobs, embeddingJobs, lossJobs, optimizerJobs]) {
    using arena = new Arena(context);
    for (const { name, bytes, call } of makeJobs(arena, sizes)) {
      const { ms } = stopwatch.time(call, options);
      const gbps = bytes / ms / 1e6;
      if (Number.isNaN(copySpeed)) copySpeed = gbps;
      const equal_share = copyMilliseconds(context, stopwatch, bytes, options) / ms;
      yield { name, bytes, ms, gbps, share: gbps / copySpeed, equal_share };
    }
  }
}

/** Of a copy that reads and writes `bytes` in all. */
function copyMilliseconds(
  context: Context,
  stopwatch: Stopwatch,
  bytes: number,
  options: TimingOptions,
): number {
  using arena = new Arena(context);
  const from = draw(arena, [Math.ceil(bytes / 8)], "f32");
  const to = arena.tensor(from.shape, "f32");
  return stopwatch.time(() => copy(to, from), options).ms;
}

function copyJobs(arena: Arena, { rows, ff }: KernelSizes): Job[] {
  const [a, b, out] = [draw(arena, [rows, ff]), draw(arena, [rows, ff]), arena.tensor([rows, ff])];
  return [
    { name: "copy", bytes: 2 * a.byteLength, call: () => copy(out, a) },
    { name: "add", bytes: 3 * a.byteLength, call: () => add(out, a, b) },
  ];
}

function dropoutOf(arena: Arena): { p: number; rng: Tensor; site: number } {
  return { p: 0.1, rng: arena.from(BigUint64Array.of(1n, 1n), [2], "u64"), site: 1 };
}

function normJobs(arena: Arena, { rows, C }: KernelSizes): Job[] {
  const matrix = (): Tensor => draw(arena, [rows, C]);
  const [x, branch, sum, out] = [matrix(), matrix(), matrix(), matrix()];
  const [dx, dbranch] = [arena.tensor([rows, C]), arena.tensor([rows, C])];
  const [gamma, beta] = [draw(arena, [C]), draw(arena, [C])];
  const [mean, rstd] = [arena.zeros([rows], "f32"), arena.zeros([rows], "f32")];
  const [dgamma, dbeta] = [arena.zeros([C], "f32"), arena.zeros([C], "f32")];
  const dropout = dropoutOf(arena);
  const bytes = x.byteLength;
  const rowBytes = mean.byteLength + rstd.byteLength;
  const columnBytes = gamma.byteLength + beta.byteLength;
  return [
    {
      name: "residual + dropout + norm",
      bytes: 4 * bytes + rowBytes + columnBytes,
      call: () => residualNormForward({ x, branch, sum, out, mean, rstd, gamma, beta, dropout }),
    },
    {
      name: "residual + dropout + norm, backward",
      bytes: 5 * bytes + rowBytes + gamma.byteLength + dgamma.byteLength + dbeta.byteLength,
      call: () =>
        residualNormBackward({
          ...{ dx, dbranch, dgamma, dbeta, dout: out, dsum: branch, sum, mean, rstd, gamma, dropout },
          accumulate: false,
        }),
    },
  ];
}

function feedForwardJobs(arena: Arena, { rows, ff }: KernelSizes): Job[] {
  const [x, y, bias] = [draw(arena, [rows, ff]), arena.tensor([rows, ff]), draw(arena, [ff])];
  const dbias = arena.zeros([ff], "f32");
  const dropout = dropoutOf(arena);
  return [
    {
      name: "bias + relu + dropout",
      bytes: 2 * x.byteLength + bias.byteLength,
      call: () => biasReluDropoutForward(y, x, bias, dropout),
    },
    {
      name: "bias + relu + dropout, backward",
      bytes: 3 * x.byteLength + dbias.byteLength,
      call: () => biasReluDropoutBackward(x, x, y, { dbias, p: dropout.p, accumulate: false }),
    },
    {
      name: "column sum",
      bytes: x.byteLength + dbias.byteLength,
      call: () => columnSum(dbias, x, false),
    },
  ];
}

function embeddingJobs(arena: Arena, { rows, C, V }: KernelSizes): Job[] {
  const [table, out] = [draw(arena, [V, C]), draw(arena, [rows, C])];
  const dtable = arena.zeros([V, C], "f32");
  const numbers = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % V);
  const ids = arena.from(numbers, [rows], "i32");
  const positions = {
    table: draw(arena, [128, C], "f32"),
    index: arena.from(numbers.map((i) => i % 128), [rows], "i32"),
  };
  const parameters = { ids, scale: Math.sqrt(C), dropout: dropoutOf(arena) };
  const rowBytes = out.byteLength;
  const wordBytes = new Set(numbers).size * C * ELEMENT_BYTES[table.dtype];
  const indexBytes = ids.byteLength + positions.index.byteLength;
  return [
    {
      name: "embedding",
      bytes: rowBytes + wordBytes + indexBytes + positions.table.byteLength,
      call: () => embeddingForward(out, table, positions, parameters),
    },
    {
      name: "embedding, backward",
      bytes: rowBytes + ids.byteLength + dtable.byteLength,
      call: () => embeddingBackward(dtable, out, parameters, { accumulate: false, skipId: 0 }),
    },
  ];
}

function lossJobs(arena: Arena, { rows, V }: KernelSizes): Job[] {
  const R = Math.min(rows, Math.floor((1 << 29) / V)); // 1 GiB of 16-bit logits at most
  const logits = draw(arena, [R, V]);
  const targets = arena.from(
    Int32Array.from({ length: R }, (_, i) => 1 + (i * 104_729) % (V - 1)),
    [R],
    "i32",
  );
  const [loss, nll] = [arena.zeros([R], "f32"), arena.zeros([R], "f32")];
  const gradScale = arena.from(Float32Array.of(1), [1], "f32");
  return [{
    name: "softmax cross-entropy with gradient",
    bytes: 2 * logits.byteLength,
    call: () => crossEntropy({ logits, targets, V, loss, nll, smoothing: 0.1, padId: 0, gradScale }),
  }];
}

function optimizerJobs(arena: Arena, { parameters: n }: KernelSizes): Job[] {
  const [grad, master, m] = [draw(arena, [n], "f32"), draw(arena, [n], "f32"), draw(arena, [n], "f32")];
  const [v, norm] = [arena.zeros([n], "f32"), arena.zeros([2], "f32")];
  const weights = arena.context.dtype === "f32" ? master : arena.tensor([n]);
  const hyper = arena.from(Float32Array.of(1e-4, 1, 1), [3], "f32");
  const written = weights === master ? 0 : weights.byteLength;
  return [
    { name: "gradient norm", bytes: grad.byteLength, call: () => gradNorm(norm, grad, 1) },
    {
      name: "adam",
      bytes: 7 * grad.byteLength + written,
      call: () =>
        adam({
          weights,
          master,
          m,
          v,
          grad,
          hyper,
          norm,
          beta1: 0.9,
          beta2: 0.98,
          eps: 1e-9,
          weightDecay: 0,
        }),
    },
  ];
}
