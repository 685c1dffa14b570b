/**
 * Attention in float64 on the host, for a sample of what a kernel computed: the benchmark's check.
 *
 * @module
 */

/** One head of one sequence: float64 copies of what the device holds, [L, D] each. */
export interface Head {
  /** Sequence length L. */
  L: number;
  /** Head dimension D. */
  D: number;
  /** Queries, keys, values, gradient of the output. */
  q: Float64Array;
  /** Keys. */
  k: Float64Array;
  /** Values. */
  v: Float64Array;
  /** Gradient of the output. */
  dout: Float64Array;
  /** Whether query i sees keys j <= i only. */
  causal: boolean;
}

/** What attention should give for a head: sampled rows only. */
export interface Sample {
  /** The rows (of q, k and v alike) that follow, one after another. */
  rows: readonly number[];
  /** Rows of the output, [rows, D]. */
  out: Float64Array;
  /** Rows of the gradients; empty where they were not asked for. */
  dq: Float64Array;
  /** Gradient of k; empty where only queries' rows were asked for. */
  dk: Float64Array;
  /** Gradient of v; likewise. */
  dv: Float64Array;
}

/** What to work out: the output alone, with the gradient of the queries, or with all gradients. */
export type Wanted = "out" | "dq" | "all";

function dot(a: Float64Array, i: number, b: Float64Array, j: number, D: number): number {
  let sum = 0;
  for (let d = 0; d < D; d++) sum += (a[i * D + d] ?? 0) * (b[j * D + d] ?? 0);
  return sum;
}

function addScaled(
  out: Float64Array,
  i: number,
  x: Float64Array,
  j: number,
  factor: number,
  D: number,
): void {
  for (let d = 0; d < D; d++) out[i * D + d] = (out[i * D + d] ?? 0) + factor * (x[j * D + d] ?? 0);
}

/** The probabilities of query i over the keys it sees. */
function probabilities(head: Head, i: number): Float64Array {
  const { L, D, q, k } = head;
  const p = new Float64Array(head.causal ? i + 1 : L);
  let max = -Infinity;
  for (let j = 0; j < p.length; j++) {
    const score = dot(q, i, k, j, D) / Math.sqrt(D);
    p[j] = score;
    max = Math.max(max, score);
  }
  let total = 0;
  for (let j = 0; j < p.length; j++) total += p[j] = Math.exp((p[j] ?? 0) - max);
  for (let j = 0; j < p.length; j++) p[j] = (p[j] ?? 0) / total;
  return p;
}

/**
 * Rows of the output, and as `wanted` says of dq, dk and dv, of one head.
 *
 * A row of the output or of dq costs O(L D). dk and dv of a key need every query's probabilities: O(L² D).
 */
export function sampleHead(head: Head, rows: readonly number[], wanted: Wanted): Sample {
  const { L, D, k, v, q, dout } = head;
  const room = (needed: boolean): Float64Array => new Float64Array(needed ? rows.length * D : 0);
  const [gradients, all] = [wanted !== "out", wanted === "all"];
  const sample: Sample = { rows, out: room(true), dq: room(gradients), dk: room(all), dv: room(all) };
  const scale = 1 / Math.sqrt(D);
  const place = new Map(rows.map((row, index) => [row, index]));
  for (let i = 0; i < L; i++) {
    const at = place.get(i);
    if (at === undefined && !all) continue;
    const p = probabilities(head, i);
    if (at !== undefined) p.forEach((pj, j) => addScaled(sample.out, at, v, j, pj, D));
    if (!gradients) continue;
    const dp = p.map((_, j) => dot(dout, i, v, j, D));
    const delta = p.reduce((sum, pj, j) => sum + pj * (dp[j] ?? 0), 0);
    const ds = p.map((pj, j) => pj * ((dp[j] ?? 0) - delta) * scale);
    if (at !== undefined) ds.forEach((dsj, j) => addScaled(sample.dq, at, k, j, dsj, D));
    for (const [j, column] of all ? place : []) {
      if (j >= p.length) continue;
      addScaled(sample.dv, column, dout, i, p[j] ?? 0, D);
      addScaled(sample.dk, column, q, i, ds[j] ?? 0, D);
    }
  }
  return sample;
}

/** The largest difference between a kernel's rows (all L of a head, [L, D]) and the sample's. */
export function largestError(
  actual: Float32Array,
  expected: Float64Array,
  rows: readonly number[],
  D: number,
): number {
  let error = 0;
  rows.forEach((row, index) => {
    for (let d = 0; d < D; d++) {
      const difference = Math.abs((actual[row * D + d] ?? NaN) - (expected[index * D + d] ?? NaN));
      error = Number.isNaN(difference) ? Infinity : Math.max(error, difference);
    }
  });
  return error;
}
