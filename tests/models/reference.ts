/**
 * The Transformer in float64, sentence by sentence with plain loops: an independent account of what models/ computes.
 *
 * @module
 */

import type { Batch, ModelConfig, NamedArrays } from "../../models/mod.ts";

type Matrix = Float64Array[];
type Weights = Record<string, ArrayLike<number>>;

const zeros = (rows: number, columns: number): Matrix =>
  Array.from({ length: rows }, () => new Float64Array(columns));
const at = (values: ArrayLike<number> | undefined, index: number): number => values?.[index] ?? NaN;

function affine(x: Matrix, weights: Weights, name: string): Matrix {
  const bias = weights[`${name}.bias`];
  const weight = weights[`${name}.weight`];
  const columns = bias?.length ?? 0;
  return x.map((row) =>
    Float64Array.from({ length: columns }, (_, j) => {
      let sum = at(bias, j);
      for (let i = 0; i < row.length; i++) sum += at(row, i) * at(weight, i * columns + j);
      return sum;
    })
  );
}

function layerNorm(x: Matrix, weights: Weights, name: string): Matrix {
  const [gamma, beta] = [weights[`${name}.gamma`], weights[`${name}.beta`]];
  return x.map((row) => {
    const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / row.length;
    return row.map((value, j) => (value - mean) / Math.sqrt(variance + 1e-5) * at(gamma, j) + at(beta, j));
  });
}

const sum = (a: Matrix, b: Matrix): Matrix => a.map((row, i) => row.map((value, j) => value + at(b[i], j)));
const slice = (x: Matrix, from: number, count: number): Matrix =>
  x.map((row) => row.slice(from, from + count));

function attention(q: Matrix, k: Matrix, v: Matrix, heads: number, causal: boolean): Matrix {
  const C = q[0]?.length ?? 0;
  const D = C / heads;
  const out = zeros(q.length, C);
  q.forEach((query, i) => {
    for (let h = 0; h < heads; h++) {
      const visible = causal ? k.slice(0, i + 1) : k;
      const scores = visible.map((key) => {
        let dot = 0;
        for (let d = h * D; d < (h + 1) * D; d++) dot += at(query, d) * at(key, d);
        return Math.exp(dot / Math.sqrt(D));
      });
      const total = scores.reduce((all, score) => all + score, 0);
      for (let d = h * D; d < (h + 1) * D; d++) {
        const mixed = scores.reduce((all, score, j) => all + score / total * at(v[j], d), 0);
        out[i]?.fill(mixed, d, d + 1);
      }
    }
  });
  return out;
}

function embed(ids: Int32Array, table: ArrayLike<number> | undefined, C: number): Matrix {
  return Array.from(ids, (id, position) =>
    Float64Array.from({ length: C }, (_, j) => {
      const angle = position / 10000 ** ((j - j % 2) / C);
      return at(table, id * C + j) * Math.sqrt(C) +
        Math.fround(j % 2 === 0 ? Math.sin(angle) : Math.cos(angle));
    }));
}

function selfAttention(x: Matrix, weights: Weights, name: string, heads: number, causal: boolean): Matrix {
  const C = x[0]?.length ?? 0;
  const qkv = affine(x, weights, `${name}.qkv`);
  const mixed = attention(slice(qkv, 0, C), slice(qkv, C, C), slice(qkv, 2 * C, C), heads, causal);
  return affine(mixed, weights, `${name}.out`);
}

function feedForward(x: Matrix, weights: Weights, name: string): Matrix {
  const inner = affine(x, weights, `${name}.inner`).map((row) => row.map((value) => Math.max(0, value)));
  return affine(inner, weights, `${name}.outer`);
}

function logits(config: ModelConfig, weights: Weights, source: Int32Array, target: Int32Array): Matrix {
  const { width: C, heads } = config;
  const targetTable = weights["target.embedding"];
  const sourceTable = config.tied === "all" ? targetTable : weights["source.embedding"];
  let x = embed(source, sourceTable, C);
  for (let layer = 0; layer < config.encoderLayers; layer++) {
    const name = `encoder.${layer}`;
    x = sum(x, selfAttention(layerNorm(x, weights, `${name}.norm1`), weights, `${name}.self`, heads, false));
    x = sum(x, feedForward(layerNorm(x, weights, `${name}.norm2`), weights, `${name}.feedForward`));
  }
  const memory = layerNorm(x, weights, "encoder.norm");
  let y = embed(target, targetTable, C);
  for (let layer = 0; layer < config.decoderLayers; layer++) {
    const name = `decoder.${layer}`;
    y = sum(y, selfAttention(layerNorm(y, weights, `${name}.norm1`), weights, `${name}.self`, heads, true));
    const q = affine(layerNorm(y, weights, `${name}.norm2`), weights, `${name}.cross.q`);
    const kv = affine(memory, weights, `${name}.cross.kv`);
    const mixed = attention(q, slice(kv, 0, C), slice(kv, C, C), heads, false);
    y = sum(y, affine(mixed, weights, `${name}.cross.out`));
    y = sum(y, feedForward(layerNorm(y, weights, `${name}.norm3`), weights, `${name}.feedForward`));
  }
  const hidden = layerNorm(y, weights, "decoder.norm");
  if (config.tied === "none") return affine(hidden, weights, "output");
  return hidden.map((row) =>
    Float64Array.from(
      { length: config.targetVocabulary },
      (_, id) => row.reduce((dot, value, j) => dot + value * at(targetTable, id * C + j), 0),
    )
  );
}

/** Mean loss of a target token with label smoothing, over a batch in the packed layout. */
export function referenceLoss(
  config: ModelConfig,
  weights: NamedArrays | Record<string, Float64Array>,
  batch: Batch,
  smoothing: number,
): number {
  const V = config.targetVocabulary;
  let total = 0;
  for (let b = 0; b < batch.sentences; b++) {
    const rows = [batch.targetOffsets[b] ?? 0, batch.targetOffsets[b + 1] ?? 0] as const;
    const source = batch.sourceIds.slice(batch.sourceOffsets[b], batch.sourceOffsets[b + 1]);
    const scores = logits(config, weights, source, batch.targetInput.slice(...rows));
    scores.forEach((row, i) => {
      const classes = row.slice(0, V);
      const highest = Math.max(...classes);
      const logTotal = highest + Math.log(classes.reduce((all, value) => all + Math.exp(value - highest), 0));
      const target = at(classes, batch.targetOutput[rows[0] + i] ?? -1);
      const mean = classes.reduce((all, value) => all + value, 0) / V;
      total += logTotal - (1 - smoothing) * target - smoothing * mean;
    });
  }
  return total / batch.targetTokens;
}
