/**
 * The differentiable ops, forward and backward side by side. R rows, C width, H heads.
 *
 * Each op runs its kernel, and records on the tape how the gradient of its output becomes those of its inputs.
 *
 * @module
 */

import {
  attentionBackward,
  attentionForward,
  type AttentionInputs,
  biasReluDropoutBackward,
  biasReluDropoutForward,
  crossEntropy,
  type Dropout,
  embeddingBackward,
  embeddingForward,
  gemm,
  type GemmParameters,
  residualNormBackward,
  residualNormForward,
  type Tensor,
} from "../ffi/mod.ts";
import { PAD_ID } from "./batch.ts";
import type { Parameter } from "./parameters.ts";
import { type Tape, Value } from "./tape.ts";

/** Adds a matrix product to the gradient of `value`. */
function giveProduct(
  tape: Tape,
  value: Value,
  product: Pick<GemmParameters, "a" | "b" | "transA" | "transB">,
): void {
  // A fresh tensor even where a gradient is present: that one may be shared with another value.
  const gradient = tape.tensor(value.data.shape); // [R, in]
  gemm({ ...product, c: gradient });
  tape.give(value, gradient);
}

/** y = x W + b. */
export function linear(tape: Tape, x: Value, weight: Parameter, bias: Parameter | null): Value {
  const W = weight.data; // [in, out]
  const y = new Value(tape.tensor([x.data.rows, W.columns])); // [R, out]
  gemm({ a: x.data, b: W, c: y.data, bias: bias?.data ?? null });
  tape.record(() => {
    const dy = y.gradient; // [R, out]
    if (dy === null) return;
    const beta = Number(weight.claim());
    bias?.claim();
    gemm({ a: x.data, transA: true, b: dy, c: weight.gradient, beta, biasGrad: bias?.gradient ?? null }); // [in, out]
    giveProduct(tape, x, { a: dy, b: W, transB: true }); // [R, in]
  });
  return y;
}

/** y = x Eᵀ: logits from a table of embeddings (Press & Wolf 2017). */
export function project(tape: Tape, x: Value, table: Parameter): Value {
  const E = table.data; // [V, C]
  const y = new Value(tape.tensor([x.data.rows, E.rows])); // [R, V]
  gemm({ a: x.data, b: E, transB: true, c: y.data });
  tape.record(() => {
    const dy = y.gradient; // [R, V]
    if (dy === null) return;
    gemm({ a: dy, transA: true, b: x.data, c: table.gradient, beta: Number(table.claim()) }); // [V, C]
    giveProduct(tape, x, { a: dy, b: E }); // [R, C]
  });
  return y;
}

/** y = dropout(max(0, x W + b)). */
export function linearRelu(
  tape: Tape,
  x: Value,
  weight: Parameter,
  bias: Parameter,
  dropout: Dropout | null,
): Value {
  const W = weight.data; // [C, F]
  const y = new Value(tape.tensor([x.data.rows, W.columns])); // [R, F]
  if (dropout === null) {
    gemm({ a: x.data, b: W, c: y.data, bias: bias.data, relu: true });
  } else {
    gemm({ a: x.data, b: W, c: y.data });
    biasReluDropoutForward(y.data, y.data, bias.data, dropout);
  }
  tape.record(() => {
    const dy = y.gradient; // [R, F]
    if (dy === null) return;
    const accumulate = weight.claim();
    bias.claim();
    biasReluDropoutBackward(dy, dy, y.data, { dbias: bias.gradient, p: dropout?.p ?? 0, accumulate });
    gemm({ a: x.data, transA: true, b: dy, c: weight.gradient, beta: Number(accumulate) }); // [C, F]
    giveProduct(tape, x, { a: dy, b: W, transB: true }); // [R, C]
  });
  return y;
}

/** Gain and bias of a layer norm. */
export interface NormParameters {
  /** [C]. */
  gamma: Parameter;
  /** [C]. */
  beta: Parameter;
}

/**
 * sum = x + dropout(branch); out = layerNorm(sum). One pass each way over what is three ops in the paper, since the
 * residual stream of a pre-norm model is touched nowhere else (Xiong et al. 2020, figure 1b).
 *
 * @param branch What the last sublayer gives; null at the bottom, where sum is x itself.
 */
export function residualNorm(
  tape: Tape,
  x: Value,
  branch: Value | null,
  norm: NormParameters,
  dropout: Dropout | null,
): { sum: Value; out: Value } {
  const [R, C] = [x.data.rows, x.data.columns];
  const sum = branch === null ? x : new Value(tape.tensor([R, C])); // [R, C]
  const out = new Value(tape.tensor([R, C])); // [R, C]
  const mean = tape.tensor([R], "f32"); // [R]
  const rstd = tape.tensor([R], "f32"); // [R]
  const drop = branch === null ? null : dropout;
  const gamma = norm.gamma.data; // [C]
  residualNormForward({
    x: x.data,
    branch: branch?.data ?? null,
    sum: branch === null ? null : sum.data,
    out: out.data,
    mean,
    rstd,
    gamma,
    beta: norm.beta.data,
    dropout: drop,
  });
  tape.record(() => {
    const [dout, dsum] = [out.gradient, sum.gradient]; // [R, C]
    if (dout === null) return;
    const dx = dsum ?? dout; // in place: both have been read by all who need them
    const dbranch = branch === null ? null : drop === null ? dx : tape.tensor([R, C]); // [R, C]
    const accumulate = norm.gamma.claim();
    norm.beta.claim();
    const gradients = { dx, dbranch, dgamma: norm.gamma.gradient, dbeta: norm.beta.gradient };
    residualNormBackward({
      ...gradients,
      dout,
      dsum,
      sum: sum.data,
      mean,
      rstd,
      gamma,
      dropout: drop,
      accumulate,
    });
    if (branch === null || dbranch === null) {
      x.gradient = dx; // sum is x: its gradient is replaced, not added to
    } else {
      tape.give(x, dx);
      tape.give(branch, dbranch);
    }
  });
  return { sum, out };
}

/** out = dropout(table[ids] * scale + positions[index]). */
export function embedding(
  tape: Tape,
  table: Parameter,
  ids: Tensor,
  positions: { table: Tensor; index: Tensor },
  options: { scale: number; dropout: Dropout | null },
): Value {
  const out = new Value(tape.tensor([ids.size, table.data.columns])); // [R, C]
  embeddingForward(out.data, table.data, positions, { ids, ...options });
  tape.record(() => {
    if (out.gradient === null) return;
    const accumulate = table.claim();
    embeddingBackward(table.gradient, out.gradient, { ids, ...options }, { accumulate, skipId: PAD_ID }); // [V, C]
  });
  return out;
}

/** What attention needs beside q, k and v. */
export type AttentionOptions = Omit<AttentionInputs, "q" | "k" | "v">;

/** Attention of rows among themselves: `qkv` holds queries, keys and values side by side. */
export function selfAttention(tape: Tape, qkv: Value, options: AttentionOptions): Value {
  const C = qkv.data.columns / 3;
  const inputs = { ...thirds(qkv.data, C), ...options }; // 3 x [R, C], views
  const outputs = attentionForward(inputs, tape.arena);
  const out = new Value(outputs.out); // [R, C]
  tape.record(() => {
    if (out.gradient === null) return;
    const dqkv = tape.tensor(qkv.data.shape); // [R, 3C]
    const { q: dq, k: dk, v: dv } = thirds(dqkv, C);
    attentionBackward(inputs, outputs, out.gradient, { dq, dk, dv });
    tape.give(qkv, dqkv);
  });
  return out;
}

function thirds(qkv: Tensor, C: number): { q: Tensor; k: Tensor; v: Tensor } {
  return { q: qkv.columnSlice(0, C), k: qkv.columnSlice(C, C), v: qkv.columnSlice(2 * C, C) };
}

/** Attention of rows to other rows: `kv` holds keys and values side by side. */
export function crossAttention(tape: Tape, q: Value, kv: Value, options: AttentionOptions): Value {
  const C = q.data.columns;
  const halves = (tensor: Tensor): readonly [Tensor, Tensor] => [
    tensor.columnSlice(0, C),
    tensor.columnSlice(C, C),
  ];
  const [k, v] = halves(kv.data); // [M, C], views
  const inputs = { q: q.data, k, v, ...options };
  const outputs = attentionForward(inputs, tape.arena);
  const out = new Value(outputs.out); // [R, C]
  tape.record(() => {
    if (out.gradient === null) return;
    const dq = tape.tensor(q.data.shape); // [R, C]
    const dkv = tape.tensor(kv.data.shape); // [M, 2C]
    const [dk, dv] = halves(dkv);
    attentionBackward(inputs, outputs, out.gradient, { dq, dk, dv });
    tape.give(q, dq);
    tape.give(kv, dkv);
  });
  return out;
}

/** Targets and constants of {@linkcode crossEntropyLoss}. */
export interface CrossEntropyOptions {
  /** i32 [R]; padding counts nothing. */
  targets: Tensor;
  /** Classes V; further columns of the logits are padding. */
  classes: number;
  /** Label smoothing, 0 to less than 1. */
  smoothing: number;
  /** f32 [1] on the device: factor of the gradient, one over the target tokens of the step; null: no gradient. */
  gradientScale: Tensor | null;
}

/** Losses of each row, in nats. */
export interface RowLosses {
  /** f32 [R]: with label smoothing. */
  loss: Tensor;
  /** f32 [R]: minus the log-probability of the target. */
  nll: Tensor;
}

/**
 * Softmax cross-entropy with label smoothing (Szegedy et al. 2016, section 7). Given a scale, the gradient takes the place of
 * the logits.
 */
export function crossEntropyLoss(tape: Tape, logits: Value, options: CrossEntropyOptions): RowLosses {
  const loss = tape.tensor([logits.data.rows], "f32"); // [R]
  const nll = tape.tensor([logits.data.rows], "f32"); // [R]
  crossEntropy({
    logits: logits.data,
    targets: options.targets,
    V: options.classes,
    loss,
    nll,
    smoothing: options.smoothing,
    padId: PAD_ID,
    gradScale: options.gradientScale,
  });
  if (options.gradientScale !== null) logits.gradient = logits.data;
  return { loss, nll };
}
