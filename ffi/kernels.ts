/**
 * The rest of the Transformer's kernels, checked: embedding, layer norm, dropout, loss, optimizer, copies.
 *
 * Rows R are packed tokens, C the model width, V the vocabulary. Outputs are written in place of what they held.
 *
 * @module
 */

import {
  type Dropout,
  dropoutArguments,
  dtypeCode,
  expectContext,
  expectMatrix,
  expectSize,
  expectType,
  pointer,
} from "./_arguments.ts";
import type { Context } from "./context.ts";
import { ELEMENT_BYTES } from "./dtype.ts";
import type { Tensor } from "./tensor.ts";

/** Scratch for reductions over [rows, columns]: its pointer and size as the C functions take them. */
function workspace(
  context: Context,
  rows: number,
  columns: number,
  tableRows = 0,
): readonly [Deno.PointerValue, bigint] {
  const bytes = new BigInt64Array(1);
  const status = context.symbols.fa_workspace_bytes(
    context.handle,
    BigInt(rows),
    BigInt(columns),
    BigInt(tableRows),
    bytes,
  );
  context.check("fa_workspace_bytes", status);
  const size = bytes[0] ?? 0n;
  return [Deno.UnsafePointer.create(context.scratch(Number(size))), size];
}

/** Parameters of {@linkcode embeddingForward} and {@linkcode embeddingBackward}. */
export interface EmbeddingParameters {
  /** i32 [R]. */
  ids: Tensor;
  /** Factor of the table's rows, sqrt(C) in Vaswani et al. 2017 section 3.4. */
  scale: number;
  /** Dropout of the sum. */
  dropout?: Dropout | null;
}

/**
 * out [R, C] = dropout(table[ids] * scale + positions[pos]).
 *
 * @param table [V, C]; an id outside it counts as a row of zeros.
 * @param positions f32 [P, C] and i32 [R] indexes into it.
 */
export function embeddingForward(
  out: Tensor,
  table: Tensor,
  positions: { table: Tensor; index: Tensor } | null,
  { ids, scale, dropout }: EmbeddingParameters,
): void {
  const { context } = out;
  const name = "embeddingForward";
  expectContext(name, context, [table, ids, positions?.table, positions?.index]);
  expectType(name, out.dtype, { table });
  expectType(name, "i32", { ids, index: positions?.index });
  expectType(name, "f32", { positions: positions?.table });
  const [V, C] = [table.rows, table.columns];
  expectSize(name, "out", out, ids.size * C);
  expectSize(name, "table", table, V * C);
  expectSize(name, "index", positions?.index, ids.size);
  if (positions) expectMatrix(name, "positions", positions.table, positions.table.rows, C);
  const drop = dropoutArguments(name, dropout);
  const status = context.symbols.fa_embedding_forward(
    context.handle,
    out.pointer,
    ids.pointer,
    pointer(positions?.index),
    table.pointer,
    pointer(positions?.table),
    ids.size,
    C,
    V,
    positions?.table.rows ?? 0,
    scale,
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode(name, out),
  );
  context.check("fa_embedding_forward", status);
}

/** dtable f32 [V, C] (+)= the gradient of the table; rows of id `skipId` give none. */
export function embeddingBackward(
  dtable: Tensor,
  dout: Tensor,
  { ids, scale, dropout }: EmbeddingParameters,
  options: { accumulate: boolean; skipId?: number },
): void {
  const { context } = dtable;
  const name = "embeddingBackward";
  expectContext(name, context, [dout, ids]);
  expectType(name, "f32", { dtable });
  expectType(name, "i32", { ids });
  const [V, C] = [dtable.rows, dtable.columns];
  expectSize(name, "dtable", dtable, V * C);
  expectSize(name, "dout", dout, ids.size * C);
  const drop = dropoutArguments(name, dropout);
  const [scratch, bytes] = workspace(context, ids.size, C, V);
  const status = context.symbols.fa_embedding_backward(
    context.handle,
    dtable.pointer,
    ids.pointer,
    dout.pointer,
    ids.size,
    C,
    V,
    options.skipId ?? -1,
    scale,
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode(name, dout),
    Number(options.accumulate),
    scratch,
    bytes,
  );
  context.check("fa_embedding_backward", status);
}

/** Tensors of {@linkcode residualNormForward}. */
export interface ResidualNormForward {
  /** [R, C]: the residual stream. */
  x: Tensor;
  /** [R, C]: what a sublayer adds to it; null: plain layer norm. */
  branch?: Tensor | null;
  /** [R, C]: x + dropout(branch); may be x, or null where there is no branch. */
  sum?: Tensor | null;
  /** [R, C]: the normalised sum; null: only the sum. */
  out?: Tensor | null;
  /** f32 [R]; with out. */
  mean?: Tensor | null;
  /** f32 [R]; with out. */
  rstd?: Tensor | null;
  /** [C]; with out. */
  gamma?: Tensor | null;
  /** [C]; with out. */
  beta?: Tensor | null;
  /** Dropout of the branch. */
  dropout?: Dropout | null;
  /** Added to the variance; default 1e-5. */
  eps?: number;
}

/** sum = x + dropout(branch), out = layerNorm(sum) (Ba et al. 2016), in one pass. */
export function residualNormForward(p: ResidualNormForward): void {
  const { context } = p.x;
  const name = "residualNormForward";
  const { x, branch, sum, out, mean, rstd, gamma, beta } = p;
  const [R, C] = [x.rows, x.columns];
  expectContext(name, context, [branch, sum, out, mean, rstd, gamma, beta]);
  expectType(name, x.dtype, { branch, sum, out, gamma, beta });
  expectType(name, "f32", { mean, rstd });
  for (const [label, tensor] of Object.entries({ x, branch, sum, out })) {
    expectSize(name, label, tensor, R * C);
  }
  for (const [label, tensor] of Object.entries({ mean, rstd })) expectSize(name, label, tensor, R);
  for (const [label, tensor] of Object.entries({ gamma, beta })) expectSize(name, label, tensor, C);
  const drop = dropoutArguments(name, p.dropout);
  const status = context.symbols.fa_residual_norm_forward(
    context.handle,
    pointer(sum),
    pointer(out),
    pointer(mean),
    pointer(rstd),
    x.pointer,
    pointer(branch),
    pointer(gamma),
    pointer(beta),
    R,
    C,
    p.eps ?? 1e-5,
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode(name, x),
  );
  context.check("fa_residual_norm_forward", status);
}

/** Tensors of {@linkcode residualNormBackward}. */
export interface ResidualNormBackward {
  /** [R, C]: gradient of x, written; may be dsum or dout. */
  dx: Tensor;
  /** [R, C]: gradient of the branch, written; may be dx where dropout is 0. */
  dbranch?: Tensor | null;
  /** f32 [C]. */
  dgamma?: Tensor | null;
  /** f32 [C]. */
  dbeta?: Tensor | null;
  /** [R, C]: gradient of out; null: none. */
  dout?: Tensor | null;
  /** [R, C]: gradient that reaches the sum by the residual path; null: none. */
  dsum?: Tensor | null;
  /** [R, C]: what the forward pass normalised. */
  sum?: Tensor | null;
  /** f32 [R]. */
  mean?: Tensor | null;
  /** f32 [R]. */
  rstd?: Tensor | null;
  /** [C]. */
  gamma?: Tensor | null;
  /** As in the forward pass. */
  dropout?: Dropout | null;
  /** Add to dgamma and dbeta. */
  accumulate: boolean;
}

/** dx = dsum + the layer norm's gradient of dout; dbranch = mask * dx. */
export function residualNormBackward(p: ResidualNormBackward): void {
  const { context } = p.dx;
  const name = "residualNormBackward";
  const { dx, dbranch, dgamma, dbeta, dout, dsum, sum, mean, rstd, gamma } = p;
  const [R, C] = [dx.rows, dx.columns];
  expectContext(name, context, [dbranch, dgamma, dbeta, dout, dsum, sum, mean, rstd, gamma]);
  expectType(name, dx.dtype, { dbranch, dout, dsum, sum, gamma });
  expectType(name, "f32", { dgamma, dbeta, mean, rstd });
  for (const [label, tensor] of Object.entries({ dx, dbranch, dout, dsum, sum })) {
    expectSize(name, label, tensor, R * C);
  }
  for (const [label, tensor] of Object.entries({ mean, rstd })) expectSize(name, label, tensor, R);
  for (const [label, tensor] of Object.entries({ dgamma, dbeta, gamma })) expectSize(name, label, tensor, C);
  const drop = dropoutArguments(name, p.dropout);
  const [scratch, bytes] = workspace(context, R, C);
  const status = context.symbols.fa_residual_norm_backward(
    context.handle,
    dx.pointer,
    pointer(dbranch),
    pointer(dgamma),
    pointer(dbeta),
    pointer(dout),
    pointer(dsum),
    pointer(sum),
    pointer(mean),
    pointer(rstd),
    pointer(gamma),
    R,
    C,
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode(name, dx),
    Number(p.accumulate),
    scratch,
    bytes,
  );
  context.check("fa_residual_norm_backward", status);
}

/** y [R, n] = dropout(max(0, x + bias)); y may be x. */
export function biasReluDropoutForward(
  y: Tensor,
  x: Tensor,
  bias: Tensor | null,
  dropout?: Dropout | null,
): void {
  const { context } = y;
  const name = "biasReluDropoutForward";
  expectContext(name, context, [x, bias]);
  expectType(name, y.dtype, { x, bias });
  expectSize(name, "x", x, y.size);
  expectSize(name, "y", y, y.size);
  expectSize(name, "bias", bias, y.columns);
  const drop = dropoutArguments(name, dropout);
  const status = context.symbols.fa_bias_relu_dropout_forward(
    context.handle,
    y.pointer,
    x.pointer,
    pointer(bias),
    y.rows,
    y.columns,
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode(name, y),
  );
  context.check("fa_bias_relu_dropout_forward", status);
}

/** dx = dy where y > 0, scaled as the dropout was, else 0; dbias f32 [n] (+)= its column sums. dx may be dy. */
export function biasReluDropoutBackward(
  dx: Tensor,
  dy: Tensor,
  y: Tensor,
  options: { dbias?: Tensor | null; p?: number; accumulate: boolean },
): void {
  const { context } = dx;
  const name = "biasReluDropoutBackward";
  expectContext(name, context, [dy, y, options.dbias]);
  expectType(name, dx.dtype, { dy, y });
  expectType(name, "f32", { dbias: options.dbias });
  for (const [label, tensor] of Object.entries({ dx, dy, y })) expectSize(name, label, tensor, dx.size);
  expectSize(name, "dbias", options.dbias, dx.columns);
  const [scratch, bytes] = workspace(context, dx.rows, dx.columns);
  const status = context.symbols.fa_bias_relu_dropout_backward(
    context.handle,
    dx.pointer,
    pointer(options.dbias),
    dy.pointer,
    y.pointer,
    dx.rows,
    dx.columns,
    options.p ?? 0,
    dtypeCode(name, dx),
    Number(options.accumulate),
    scratch,
    bytes,
  );
  context.check("fa_bias_relu_dropout_backward", status);
}

/** y = dropout(x); y may be x. Applied to a gradient, its own backward pass. */
export function dropoutForward(y: Tensor, x: Tensor, dropout: Dropout): void {
  const { context } = y;
  expectContext("dropout", context, [x]);
  expectType("dropout", y.dtype, { x });
  expectSize("dropout", "x", x, y.size);
  expectSize("dropout", "y", y, y.size);
  const drop = dropoutArguments("dropout", dropout);
  const status = context.symbols.fa_dropout(
    context.handle,
    y.pointer,
    x.pointer,
    BigInt(y.size),
    drop.p,
    drop.rng,
    drop.site,
    dtypeCode("dropout", y),
  );
  context.check("fa_dropout", status);
}

/** out = a + b; out may be a or b. */
export function add(out: Tensor, a: Tensor, b: Tensor): void {
  const { context } = out;
  expectContext("add", context, [a, b]);
  expectType("add", out.dtype, { a, b });
  for (const [label, tensor] of Object.entries({ out, a, b })) expectSize("add", label, tensor, out.size);
  const status = context.symbols.fa_add(
    context.handle,
    out.pointer,
    a.pointer,
    b.pointer,
    BigInt(out.size),
    dtypeCode("add", out),
  );
  context.check("fa_add", status);
}

/** out f32 [n] (+)= the column sums of x [R, n]. */
export function columnSum(out: Tensor, x: Tensor, accumulate: boolean): void {
  const { context } = out;
  expectContext("columnSum", context, [x]);
  expectType("columnSum", "f32", { out });
  expectSize("columnSum", "out", out, x.columns);
  const [scratch, bytes] = workspace(context, x.rows, x.columns);
  const status = context.symbols.fa_column_sum(
    context.handle,
    out.pointer,
    x.pointer,
    x.rows,
    x.columns,
    BigInt(x.stride),
    dtypeCode("columnSum", x),
    Number(accumulate),
    scratch,
    bytes,
  );
  context.check("fa_column_sum", status);
}

/** out[0] (+)= the sum of x, both f32. */
export function sum(out: Tensor, x: Tensor, accumulate: boolean): void {
  const { context } = out;
  expectContext("sum", context, [x]);
  expectType("sum", "f32", { out, x });
  expectSize("sum", "out", out, 1);
  expectSize("sum", "x", x, x.size);
  const [scratch, bytes] = workspace(context, x.size, 1);
  const status = context.symbols.fa_sum(
    context.handle,
    out.pointer,
    x.pointer,
    BigInt(x.size),
    Number(accumulate),
    scratch,
    bytes,
  );
  context.check("fa_sum", status);
}

/** Tensors and options of {@linkcode crossEntropy}. */
export interface CrossEntropyParameters {
  /** [R, stride], of which V columns count; the gradient takes their place. */
  logits: Tensor;
  /** i32 [R]. */
  targets: Tensor;
  /** Classes; at most the columns of `logits`. */
  V: number;
  /** f32 [R]: the smoothed loss of each row, in nats. */
  loss: Tensor;
  /** f32 [R]: minus the log-probability of the target. */
  nll: Tensor;
  /** i32 [R]: 1 where the most probable class is the target. */
  correct?: Tensor | null;
  /** Label smoothing, 0 to less than 1. */
  smoothing: number;
  /** The target of rows that count nothing. */
  padId: number;
  /** f32 [1]: factor of the gradient; null: no gradient is written. */
  gradScale?: Tensor | null;
}

/** Softmax cross-entropy with label smoothing (Szegedy et al. 2016); logits become their gradient. */
export function crossEntropy(p: CrossEntropyParameters): void {
  const { context } = p.logits;
  const name = "crossEntropy";
  const R = p.logits.rows;
  expectContext(name, context, [p.targets, p.loss, p.nll, p.correct, p.gradScale]);
  expectType(name, "f32", { loss: p.loss, nll: p.nll, gradScale: p.gradScale });
  expectType(name, "i32", { targets: p.targets, correct: p.correct });
  for (const [label, tensor] of Object.entries({ targets: p.targets, loss: p.loss, nll: p.nll })) {
    expectSize(name, label, tensor, R);
  }
  expectSize(name, "correct", p.correct, R);
  expectSize(name, "gradScale", p.gradScale, 1);
  if (!(p.V >= 1 && p.V <= p.logits.columns)) {
    throw new RangeError(`Cannot run ${name} as V must be 1 to ${p.logits.columns}: current value is ${p.V}`);
  }
  if (!(p.smoothing >= 0 && p.smoothing < 1)) {
    throw new RangeError(
      `Cannot run ${name} as smoothing must be from 0 to less than 1: current value is ${p.smoothing}`,
    );
  }
  const status = context.symbols.fa_cross_entropy(
    context.handle,
    p.loss.pointer,
    p.nll.pointer,
    pointer(p.correct),
    p.logits.pointer,
    p.targets.pointer,
    R,
    p.V,
    BigInt(p.logits.stride),
    p.smoothing,
    p.padId,
    pointer(p.gradScale),
    p.gradScale ? 1 : 0,
    dtypeCode(name, p.logits),
  );
  context.check("fa_cross_entropy", status);
}

/** norm f32 [2]: the 2-norm of grad, and the factor that clips it to maxNorm (0 where it is not finite). */
export function gradNorm(norm: Tensor, grad: Tensor, maxNorm: number): void {
  const { context } = norm;
  expectContext("gradNorm", context, [grad]);
  expectType("gradNorm", "f32", { norm, grad });
  expectSize("gradNorm", "norm", norm, 2);
  expectSize("gradNorm", "grad", grad, grad.size);
  const [scratch, bytes] = workspace(context, grad.size, 1);
  const status = context.symbols.fa_grad_norm(
    context.handle,
    norm.pointer,
    grad.pointer,
    BigInt(grad.size),
    maxNorm,
    scratch,
    bytes,
  );
  context.check("fa_grad_norm", status);
}

/** Tensors and constants of {@linkcode adam}. */
export interface AdamParameters {
  /** [n] in the context's type; on the CPU it may be `master`. */
  weights: Tensor;
  /** f32 [n]. */
  master: Tensor;
  /** f32 [n]: first moments. */
  m: Tensor;
  /** f32 [n]: second moments. */
  v: Tensor;
  /** f32 [n]. */
  grad: Tensor;
  /** f32 [3]: learning rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t). */
  hyper: Tensor;
  /** f32 [2], from {@linkcode gradNorm}; null: no clipping. */
  norm?: Tensor | null;
  /** Decay of the first moments. */
  beta1: number;
  /** Decay of the second moments. */
  beta2: number;
  /** Added to the root of the second moment. */
  eps: number;
  /** Decoupled weight decay. */
  weightDecay: number;
}

/** One step of Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019). */
export function adam(p: AdamParameters): void {
  const { context } = p.master;
  const n = p.master.size;
  expectContext("adam", context, [p.weights, p.m, p.v, p.grad, p.hyper, p.norm]);
  expectType("adam", "f32", { master: p.master, m: p.m, v: p.v, grad: p.grad, hyper: p.hyper, norm: p.norm });
  for (const [label, tensor] of Object.entries({ weights: p.weights, m: p.m, v: p.v, grad: p.grad })) {
    expectSize("adam", label, tensor, n);
  }
  expectSize("adam", "hyper", p.hyper, 3);
  expectSize("adam", "norm", p.norm, 2);
  const status = context.symbols.fa_adam(
    context.handle,
    p.weights.pointer,
    p.master.pointer,
    p.m.pointer,
    p.v.pointer,
    p.grad.pointer,
    BigInt(n),
    p.hyper.pointer,
    pointer(p.norm),
    p.beta1,
    p.beta2,
    p.eps,
    p.weightDecay,
    dtypeCode("adam", p.weights),
  );
  context.check("fa_adam", status);
}

/** Fills x (f32) with uniform numbers in [low, high), the same on every device for the same seed and site. */
export function randomUniform(x: Tensor, low: number, high: number, seed: bigint, site: number): void {
  const { context } = x;
  expectType("randomUniform", "f32", { x });
  expectSize("randomUniform", "x", x, x.size);
  const { symbols, handle } = context;
  const status = symbols.fa_random_uniform(handle, x.pointer, BigInt(x.size), low, high, seed, site);
  context.check("fa_random_uniform", status);
}

/** The k best classes of log_softmax per row: scores f32 [R, k] and ids i32 [R, k], best first, ties to the lower id. */
export function topk(scores: Tensor, ids: Tensor, logits: Tensor, V: number): void {
  const { context } = logits;
  const k = ids.columns;
  expectContext("topk", context, [scores, ids]);
  expectType("topk", "f32", { scores });
  expectType("topk", "i32", { ids });
  expectSize("topk", "scores", scores, logits.rows * k);
  expectSize("topk", "ids", ids, logits.rows * k);
  if (k < 1 || k > 64 || k > V || V > logits.columns) {
    throw new RangeError(
      `Cannot run topk as k must be 1 to 64 and at most V, V at most ${logits.columns}: k ${k}, V ${V}`,
    );
  }
  const status = context.symbols.fa_topk(
    context.handle,
    scores.pointer,
    ids.pointer,
    logits.pointer,
    logits.rows,
    V,
    BigInt(logits.stride),
    k,
    dtypeCode("topk", logits),
  );
  context.check("fa_topk", status);
}

/** dst = src, same shape and type, no gaps. */
export function copy(dst: Tensor, src: Tensor): void {
  const { context } = dst;
  expectContext("copy", context, [src]);
  expectType("copy", dst.dtype, { src });
  expectSize("copy", "dst", dst, dst.size);
  expectSize("copy", "src", src, dst.size);
  const { symbols, handle } = context;
  context.check("fa_copy", symbols.fa_copy(handle, dst.pointer, src.pointer, BigInt(dst.byteLength)));
}

/** dst[dstIndex[r]] = src[srcIndex[r]] for `rows` rows; an index outside its tensor skips the row. */
export function copyRows(
  dst: Tensor,
  src: Tensor,
  options: { rows?: number; dstIndex?: Tensor | null; srcIndex?: Tensor | null } = {},
): void {
  const { context } = dst;
  const { dstIndex, srcIndex } = options;
  expectContext("copyRows", context, [src, dstIndex, srcIndex]);
  expectType("copyRows", dst.dtype, { src });
  expectType("copyRows", "i32", { dstIndex, srcIndex });
  const rows = options.rows ?? dstIndex?.size ?? srcIndex?.size ?? Math.min(dst.rows, src.rows);
  expectMatrix("copyRows", "src", src, src.rows, dst.columns);
  for (const [label, index] of Object.entries({ dstIndex, srcIndex })) {
    if (index && index.size < rows) {
      throw new RangeError(`Cannot copy ${rows} rows as ${label} holds only ${index.size}`);
    }
  }
  const size = ELEMENT_BYTES[dst.dtype];
  const status = context.symbols.fa_copy_rows(
    context.handle,
    dst.pointer,
    BigInt(dst.stride * size),
    dst.rows,
    pointer(dstIndex),
    src.pointer,
    BigInt(src.stride * size),
    src.rows,
    pointer(srcIndex),
    rows,
    dst.columns * size,
  );
  context.check("fa_copy_rows", status);
}

/** dst = src in dst's floating type, rounded to nearest even. */
export function cast(dst: Tensor, src: Tensor): void {
  const { context } = dst;
  expectContext("cast", context, [src]);
  expectSize("cast", "dst", dst, dst.size);
  expectSize("cast", "src", src, dst.size);
  const { symbols, handle } = context;
  const status = symbols.fa_cast(
    handle,
    dst.pointer,
    dtypeCode("cast", dst),
    src.pointer,
    dtypeCode("cast", src),
    BigInt(dst.size),
  );
  context.check("fa_cast", status);
}
