/**
 * Attention in float64 by plain loops, forward and backward, with the masks and dropout of cuda/flashattn.h:
 * what the kernels are checked against. Shares nothing with them.
 *
 * @module
 */

/** A batch of sequences on the host. Rows are packed; row r of a tensor starts at r * H * D. */
export interface Problem {
  /** H. */
  heads: number;
  /** D. */
  headDim: number;
  /** B + 1 offsets of queries, ascending. */
  offsetsQ: readonly number[];
  /** B + 1 offsets of keys, ascending. */
  offsetsK: readonly number[];
  /** Keys that count, for each sequence; all where null. */
  keyLengths: readonly number[] | null;
  /** Rows of q; those from the last offset up belong to no sequence. */
  rowsQ: number;
  /** Rows of k and v. */
  rowsK: number;
  /** Query i sees keys j <= i + M - N. */
  causal: boolean;
  /** Factor of the scores. */
  scale: number;
  /** Dropout of the probabilities. */
  dropout: { p: number; seed: bigint; step: bigint; site: number } | null;
  /** [rowsQ, H * D]. */
  q: Float32Array;
  /** [rowsK, H * D]. */
  k: Float32Array;
  /** [rowsK, H * D]. */
  v: Float32Array;
  /** [rowsQ, H * D]: gradient of the output. */
  dout: Float32Array;
}

/** What attention gives, and its gradients. */
export interface Solution {
  /** [rowsQ, H * D]. */
  out: Float64Array;
  /** [H, rowsQ]. */
  lse: Float64Array;
  /** As q. */
  dq: Float64Array;
  /** As k. */
  dk: Float64Array;
  /** As v. */
  dv: Float64Array;
}

const PHILOX_ROUNDS = 7;
const WORD = 0xffffffffn;

/** Philox4x32-7 of one counter under a 64-bit key: four words (Salmon et al. 2011). */
export function philox(key: bigint, counter: readonly [number, number, number, number]): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = [key & WORD, (key >> 32n) & WORD];
  for (let round = 0; round < PHILOX_ROUNDS; round++) {
    const a = 0xD2511F53n * c0;
    const b = 0xCD9E8D57n * c2;
    [c0, c1, c2, c3] = [(b >> 32n) ^ c1 ^ k0, b & WORD, (a >> 32n) ^ c3 ^ k1, a & WORD];
    k0 = (k0 + 0x9E3779B9n) & WORD;
    k1 = (k1 + 0xBB67AE85n) & WORD;
  }
  return [c0, c1, c2, c3].map(Number);
}

/** The factors, 0 or 65536 / (65536 - T), of the N x M scores of head `plane` = b * H + h. */
export function dropoutFactors(
  { p, seed, step, site }: { p: number; seed: bigint; step: bigint; site: number },
  plane: number,
  n: number,
  m: number,
): Float64Array {
  const threshold = Math.round(p * 65536);
  const kept = 65536 / (65536 - threshold);
  const key = BigInt.asUintN(64, seed + step * 0x9E3779B97F4A7C15n);
  const words = new Map<number, number[]>();
  const factors = new Float64Array(n * m);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      const row = Math.floor(i / 16) * 8 + i % 8;
      const column = Math.floor(j / 32) * 8 + j % 8;
      const at = row * 2 ** 20 + column;
      const drawn = words.get(at) ?? philox(key, [row, column, site, 1 + plane]);
      words.set(at, drawn);
      const e = (Math.floor(i / 8) % 2) * 4 + Math.floor(j / 8) % 4;
      const value = ((drawn[e >> 1] ?? 0) >>> (16 * (e % 2))) & 0xffff;
      factors[i * m + j] = value >= threshold ? kept : 0;
    }
  }
  return factors;
}

/** How many keys query `i` of `n` sees, of `m` keys of which `keys` count. */
export function visibleKeys(i: number, n: number, m: number, keys: number, causal: boolean): number {
  return causal ? Math.max(0, Math.min(keys, i + m - n + 1)) : keys;
}

/**
 * Attention and its gradients.
 *
 * @param round Rounds scores, probabilities, the output and the gradients of probabilities and scores, as attention written
 * out in a 16-bit type does between its operations. None in the reference proper.
 */
export function solve(problem: Problem, round: (x: number) => number = (x) => x): Solution {
  const { heads, headDim, rowsQ, rowsK } = problem;
  const width = heads * headDim;
  const solution: Solution = {
    out: new Float64Array(rowsQ * width),
    lse: new Float64Array(heads * rowsQ).fill(-Infinity),
    dq: new Float64Array(rowsQ * width),
    dk: new Float64Array(rowsK * width),
    dv: new Float64Array(rowsK * width),
  };
  for (let b = 0; b + 1 < problem.offsetsQ.length; b++) {
    for (let h = 0; h < heads; h++) solveHead(problem, solution, b, h, round);
  }
  return solution;
}

function solveHead(
  problem: Problem,
  solution: Solution,
  b: number,
  h: number,
  round: (x: number) => number,
): void {
  const { heads, headDim, offsetsQ, offsetsK, keyLengths, causal } = problem;
  const [q0 = 0, q1 = 0] = offsetsQ.slice(b, b + 2);
  const [k0 = 0, k1 = 0] = offsetsK.slice(b, b + 2);
  const [n, m] = [q1 - q0, k1 - k0];
  const keys = Math.min(m, keyLengths?.[b] ?? m);
  const width = heads * headDim;
  const factors = problem.dropout && dropoutFactors(problem.dropout, b * heads + h, n, m);
  for (let i = 0; i < n; i++) {
    const seen = visibleKeys(i, n, m, keys, causal);
    if (seen === 0) continue;
    const row = { query: (q0 + i) * width + h * headDim, keys: k0 * width + h * headDim, seen };
    const lse = solveRow(problem, solution, row, factors?.subarray(i * m, i * m + seen) ?? null, round);
    solution.lse[h * problem.rowsQ + q0 + i] = lse;
  }
}

/** One query: `row` says where it and the first key begin, and how many keys it sees. */
function solveRow(
  problem: Problem,
  { out, dq, dk, dv }: Solution,
  row: { query: number; keys: number; seen: number },
  factors: Float64Array | null,
  round: (x: number) => number,
): number {
  const { q, k, v, dout, heads, headDim: D, scale } = problem;
  const width = heads * D;
  const { query, keys, seen } = row;
  const p = new Float64Array(seen);
  for (let j = 0; j < seen; j++) p[j] = round(scale * dot(q, query, k, keys + j * width, D));
  const top = p.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let j = 0; j < seen; j++) sum += p[j] = Math.exp((p[j] ?? 0) - top);
  const dp = new Float64Array(seen);
  for (let j = 0; j < seen; j++) {
    const factor = factors?.[j] ?? 1;
    const probability = (p[j] ?? 0) / sum;
    p[j] = probability;
    const rounded = round(probability * factor);
    axpy(out, query, rounded, v, keys + j * width, D);
    axpy(dv, keys + j * width, rounded, dout, query, D);
    dp[j] = factor * round(dot(dout, query, v, keys + j * width, D));
  }
  let delta = 0; // the sum of p dp is dout · out, which is how kernels have it
  for (let d = 0; d < D; d++) delta += (dout[query + d] ?? 0) * round(out[query + d] ?? 0);
  for (let j = 0; j < seen; j++) {
    const ds = round((p[j] ?? 0) * ((dp[j] ?? 0) - delta)) * scale;
    axpy(dq, query, ds, k, keys + j * width, D);
    axpy(dk, keys + j * width, ds, q, query, D);
  }
  return top + Math.log(sum);
}

function dot(a: Float32Array, atA: number, b: Float32Array, atB: number, n: number): number {
  let sum = 0;
  for (let d = 0; d < n; d++) sum += (a[atA + d] ?? 0) * (b[atB + d] ?? 0);
  return sum;
}

function axpy(y: Float64Array, atY: number, a: number, x: Float32Array, atX: number, n: number): void {
  for (let d = 0; d < n; d++) y[atY + d] = (y[atY + d] ?? 0) + a * (x[atX + d] ?? 0);
}
