import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  Arena,
  ATTENTION_FORMS,
  attentionBackward,
  type AttentionForm,
  attentionForward,
  type Context,
  type DType,
  type Tensor,
  unitRoundoff,
} from "../../ffi/mod.ts";
import { fromBfloat16, toBfloat16 } from "../../ffi/dtype.ts";
import { openTestContext, testDevice } from "../context.ts";
import {
  dropoutFactors,
  philox,
  type Problem,
  type Solution,
  solve,
  visibleKeys,
} from "./attention_reference.ts";

// Opens the library here: the resource sanitizer would count it as a leak of the first test.
openTestContext()[Symbol.dispose]();

const DTYPES: readonly DType[] = testDevice() === "cuda" ? ["bf16", "f16"] : ["f32"];
const RNG = { seed: 0x1234_5678_9abc_def0n, step: 41n };
const GUARD = 3; // rows before and after each output, which no kernel may touch
const REPEATS = 250; // of a call whose results must be the same bits

/** A row of the table of cases; lengths of queries and keys for each sequence. */
interface Case {
  name: string;
  n: number[];
  m: number[];
  heads?: number;
  headDim?: number;
  causal?: boolean;
  keyLengths?: number[];
  dropout?: number;
  amplitudes?: [q: number, k: number, v: number];
  spareRows?: number;
  packed?: boolean;
  scale?: number;
}

/** Numbers from -1 to 1 by a linear congruential generator. */
function uniform(length: number, amplitude: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * amplitude;
  });
}

/** `values` as `dtype` holds them. */
function rounded(values: Float32Array<ArrayBuffer>, dtype: DType): Float32Array<ArrayBuffer> {
  if (dtype === "bf16") return fromBfloat16(toBfloat16(values));
  return dtype === "f16" ? Float32Array.from(Float16Array.from(values)) : values;
}

function roundNumber(dtype: DType): (x: number) => number {
  if (dtype === "f32") return (x) => x;
  const bits = 8 + (dtype === "f16" ? 3 : 0); // of the significand
  return (x) => {
    if (x === 0 || !Number.isFinite(x)) return x;
    const unit = 2 ** (Math.floor(Math.log2(Math.abs(x))) - bits + 1);
    return Math.round(x / unit) * unit;
  };
}

function offsets(lengths: readonly number[]): number[] {
  const sums = [0];
  for (const length of lengths) sums.push((sums.at(-1) ?? 0) + length);
  return sums;
}

function problemOf(c: Case, dtype: DType): Problem {
  const { heads = 2, headDim = 32, spareRows = 0, amplitudes = [1.5, 1.5, 1] } = c;
  const [offsetsQ, offsetsK] = [offsets(c.n), offsets(c.m)];
  const rowsQ = (offsetsQ.at(-1) ?? 0) + spareRows;
  const rowsK = (offsetsK.at(-1) ?? 0) + spareRows;
  const width = heads * headDim;
  const random = (rows: number, amplitude: number, seed: number) =>
    rounded(uniform(rows * width, amplitude, seed), dtype);
  const problem: Problem = {
    heads,
    headDim,
    offsetsQ,
    offsetsK,
    keyLengths: c.keyLengths ?? null,
    rowsQ,
    rowsK,
    causal: c.causal ?? false,
    scale: c.scale ?? 1 / Math.sqrt(headDim),
    dropout: c.dropout ? { p: c.dropout, ...RNG, site: 9 } : null,
    q: random(rowsQ, amplitudes[0], 1),
    k: random(rowsK, amplitudes[1], 2),
    v: random(rowsK, amplitudes[2], 3),
    dout: random(rowsQ, 1, 4),
  };
  // What rows of no sequence hold must not matter.
  for (const [x, last] of [[problem.q, offsetsQ.at(-1)], [problem.dout, offsetsQ.at(-1)]] as const) {
    x.fill(NaN, (last ?? 0) * width);
  }
  for (const x of [problem.k, problem.v]) x.fill(NaN, (offsetsK.at(-1) ?? 0) * width);
  return problem;
}

/** An output full of NaN between guard rows full of NaN. */
class Guarded {
  readonly tensor: Tensor;
  readonly #whole: Tensor;
  readonly #rows: number;

  constructor(arena: Arena, rows: number, width: number, dtype: DType) {
    this.#rows = rows;
    this.#whole = arena.tensor([rows + 2 * GUARD, width], dtype).fill(0xff);
    this.tensor = this.#whole.slice(GUARD, rows);
  }

  /** The output, after a look at the guards. */
  floats(label: string): Float32Array {
    const values = this.#whole.floats();
    const width = this.#whole.columns;
    const end = (GUARD + this.#rows) * width;
    const guards = [...values.subarray(0, GUARD * width), ...values.subarray(end)];
    assert(guards.every(Number.isNaN), `${label}: written outside of its rows`);
    return values.subarray(GUARD * width, end);
  }
}

/** Columns `first` .. `first + width` of rows of `pitch`. */
function columns(x: Float32Array, pitch: number, first: number, width: number): Float32Array {
  if (pitch === width) return x;
  return Float32Array.from(
    { length: x.length / pitch * width },
    (_, e) => x[Math.floor(e / width) * pitch + first + e % width] ?? NaN,
  );
}

const RESULTS = ["out", "lse", "dq", "dk", "dv"] as const;

interface Result {
  out: Float32Array;
  lse: Float32Array;
  dq: Float32Array;
  dk: Float32Array;
  dv: Float32Array;
}

interface RunOptions {
  /** q, k, v as columns of one matrix, gradients likewise: needs as many keys as queries. */
  packed?: boolean;
  /** Sums in a fixed order: yes by default. */
  deterministic?: boolean;
  /** What the device is told instead of the problem's own. */
  told?: { offsetsQ?: number[]; offsetsK?: number[]; keyLengths?: number[]; maxQ?: number; maxK?: number };
}

function longest(bounds: readonly number[]): number {
  return bounds.slice(1).reduce((most, end, b) => Math.max(most, end - (bounds[b] ?? 0)), 0);
}

/** Both passes on the device, outputs poisoned and guarded. */
function run(
  context: Context,
  form: AttentionForm,
  dtype: DType,
  problem: Problem,
  { packed = false, deterministic = true, told = {} }: RunOptions = {},
): Result {
  const { heads, headDim, rowsQ, rowsK } = problem;
  const width = heads * headDim;
  using arena = new Arena(context);
  const poison = arena.mark();
  arena.tensor([1 << 21], "f32").fill(0xff);
  arena.rewind(poison);
  const int = (values: readonly number[]) => arena.from(Int32Array.from(values), [values.length], "i32");
  const [q, k, v] = packed ? interleaved(arena, [problem.q, problem.k, problem.v], width, dtype) : [
    arena.from(Float32Array.from(problem.q), [rowsQ, width], dtype),
    arena.from(Float32Array.from(problem.k), [rowsK, width], dtype),
    arena.from(Float32Array.from(problem.v), [rowsK, width], dtype),
  ];
  assert(q && k && v);
  const keyLengths = told.keyLengths ?? problem.keyLengths;
  const inputs = {
    form,
    q,
    k,
    v,
    heads,
    offsetsQ: int(told.offsetsQ ?? problem.offsetsQ),
    offsetsK: int(told.offsetsK ?? problem.offsetsK),
    keyLengths: keyLengths && int(keyLengths),
    maxQ: told.maxQ ?? longest(problem.offsetsQ),
    maxK: told.maxK ?? longest(problem.offsetsK),
    causal: problem.causal,
    scale: problem.scale,
    deterministic,
    dropout: problem.dropout && {
      p: problem.dropout.p,
      site: problem.dropout.site,
      rng: arena.from(BigUint64Array.of(problem.dropout.seed, problem.dropout.step), [2], "u64"),
    },
  };
  const pitch = packed ? 3 * width : width;
  const dout = arena.from(Float32Array.from(problem.dout), [rowsQ, width], dtype);
  const out = new Guarded(arena, rowsQ, packed ? 2 * width : width, dtype);
  const dq = new Guarded(arena, rowsQ, pitch, dtype);
  const dk = packed ? dq : new Guarded(arena, rowsK, pitch, dtype);
  const dv = packed ? dq : new Guarded(arena, rowsK, pitch, dtype);
  const first = packed ? width : 0;
  const outputs = attentionForward(inputs, arena, out.tensor.columnSlice(first, width));
  attentionBackward(inputs, outputs, dout, {
    dq: dq.tensor.columnSlice(0, width),
    dk: dk.tensor.columnSlice(first, width),
    dv: dv.tensor.columnSlice(2 * first, width),
  });
  return {
    out: columns(out.floats("out"), packed ? 2 * width : width, first, width),
    lse: outputs.lse.floats(),
    dq: columns(dq.floats("dq"), pitch, 0, width),
    dk: columns(dk.floats("dk"), pitch, first, width),
    dv: columns(dv.floats("dv"), pitch, 2 * first, width),
  };
}

/** Matrices of `width` columns side by side in one, as views. */
function interleaved(arena: Arena, parts: readonly Float32Array[], width: number, dtype: DType): Tensor[] {
  const pitch = parts.length * width;
  const rows = (parts[0]?.length ?? 0) / width;
  const all = new Float32Array(rows * pitch);
  parts.forEach((part, at) => {
    for (let r = 0; r < rows; r++) all.set(part.subarray(r * width, (r + 1) * width), r * pitch + at * width);
  });
  const tensor = arena.from(all, [rows, pitch], dtype);
  return parts.map((_, at) => tensor.columnSlice(at * width, width));
}

const largest = (x: ArrayLike<number>): number => {
  let most = 0;
  for (let i = 0; i < x.length; i++) {
    const size = Math.abs(x[i] ?? 0);
    if (size > most && size < Infinity) most = size;
  }
  return most;
};

/** The largest difference; infinities must be the same, and nothing may be NaN. */
function difference(x: ArrayLike<number>, y: ArrayLike<number>): number {
  assertEquals(x.length, y.length);
  let most = 0;
  for (let i = 0; i < x.length; i++) {
    const error = x[i] === y[i] ? 0 : Math.abs((x[i] ?? NaN) - (y[i] ?? NaN));
    if (!(error <= most)) most = error;
    if (Number.isNaN(most)) return NaN;
  }
  return most;
}

/**
 * How far from the float64 solution a result in `dtype` may be. 16 bits: twice the error of attention written out in that
 * type, plus the rounding of the result (the rule of FlashAttention's own tests); but the fused forms keep their scores in
 * fp32, so their lse is as exact as in fp32. fp32: some hundred roundings of the tensor's magnitude; an error of the scores
 * grows with their size.
 */
function tolerances(
  problem: Problem,
  exact: Solution,
  dtype: DType,
): (form: AttentionForm) => Record<keyof Result, number> {
  const u = unitRoundoff(dtype);
  const score = largest(exact.lse);
  const rough = dtype === "f32" ? exact : solve(problem, roundNumber(dtype));
  return (form) => {
    const limit = (name: keyof Result): number => {
      const size = largest(exact[name]);
      const float = 2 ** -24 * (100 + 4 * score) * Math.max(size, 1);
      if (dtype === "f32" || (name === "lse" && form !== "dotscale")) return float;
      return 2 * difference(rough[name], exact[name]) + 2 * u * (size + 0.3) + float;
    };
    return Object.fromEntries(RESULTS.map((name) => [name, limit(name)])) as Record<keyof Result, number>;
  };
}

function assertClose(
  label: string,
  result: Result,
  exact: Solution,
  limits: Record<keyof Result, number>,
): void {
  for (const name of RESULTS) {
    const error = difference(result[name], exact[name]);
    assert(error <= limits[name], `${label}: ${name} is off by ${error}, limit ${limits[name]}`);
  }
}

const pair = (n: number, m: number, more: Partial<Case> = {}): Case => ({
  name: `N=${n} M=${m}${more.causal ? " causal" : ""}${more.headDim ? ` D=${more.headDim}` : ""}`,
  n: [n],
  m: [m],
  ...more,
});

const PAIRS: readonly (readonly [number, number])[] = [
  [1, 1],
  [64, 128],
  [128, 192],
  [256, 256],
  [239, 1],
  [113, 203],
  [113, 128],
  [128, 217],
  [113, 211],
  [108, 256],
];

const CASES: readonly Case[] = [
  ...PAIRS.flatMap(([n, m]) => [pair(n, m), pair(n, m, { causal: true })]),
  ...[8, 24, 40, 64, 80, 128].flatMap((headDim) => [
    pair(67, 97, { headDim }),
    pair(97, 67, { headDim, causal: true }),
  ]),
  pair(799, 3, { heads: 1 }),
  pair(3, 799, { heads: 1, causal: true }),
  pair(1023, 1024, { heads: 1, headDim: 64, causal: true }),
  pair(1024, 1023, { heads: 1, headDim: 64 }),
  { name: "varlen with zeros", n: [0, 17, 1, 50, 0], m: [5, 0, 1, 100, 0], spareRows: 4 },
  { name: "varlen, causal", n: [33, 0, 130, 2, 64], m: [33, 7, 65, 40, 64], causal: true, spareRows: 1 },
  { name: "no sequence", n: [], m: [], spareRows: 5 },
  { name: "no row", n: [0], m: [0] },
  { name: "padded keys", n: [40, 40, 40], m: [70, 70, 70], keyLengths: [70, 33, 0] },
  { name: "padded keys, causal", n: [90, 90], m: [90, 90], keyLengths: [41, 90], causal: true, spareRows: 2 },
  { name: "packed rows", n: [37, 70], m: [37, 70], packed: true, headDim: 40, spareRows: 3 },
  { name: "packed rows, causal", n: [100, 5], m: [100, 5], packed: true, headDim: 64, causal: true },
  { name: "dropout 0.1", n: [70, 33], m: [130, 97], dropout: 0.1, spareRows: 1 },
  { name: "dropout 0.5, causal", n: [130, 97], m: [130, 97], dropout: 0.5, causal: true, headDim: 64 },
  { name: "dropout, padded keys", n: [65, 20], m: [80, 80], dropout: 0.3, keyLengths: [49, 80], heads: 3 },
  { name: "decoding", n: Array(9).fill(1), m: [1, 2, 7, 16, 17, 48, 49, 100, 0], causal: true },
  { name: "decoding, dropout", n: [1, 2, 4, 3], m: [90, 2, 70, 130], headDim: 64, dropout: 0.2 },
  { name: "decoding, large scores", n: [1, 3], m: [300, 200], headDim: 128, amplitudes: [15, 9, 3] },
  { name: "decoding, D=16", n: [1, 1], m: [33, 7], headDim: 16, keyLengths: [31, 0] },
  { name: "many short", n: Array(40).fill(11), m: Array(40).fill(13), heads: 4, headDim: 8 },
  { name: "scale 0", n: [20], m: [30], scale: 0 },
  ...[1, 2, 5, 17, 128, 300].flatMap((n) =>
    [false, true].map((causal): Case => ({
      name: `large scores, L=${n}${causal ? " causal" : ""}`,
      n: [n],
      m: [n],
      causal,
      headDim: 64,
      amplitudes: [15, 9, 3],
    }))
  ),
];

for (const dtype of DTYPES) {
  for (const c of CASES) {
    Deno.test(`attention (${dtype}) equals the reference: ${c.name}`, () => {
      using context = openTestContext();
      const problem = problemOf(c, dtype);
      const exact = solve(problem);
      const limits = tolerances(problem, exact, dtype);
      for (const form of ATTENTION_FORMS) {
        const result = run(context, form, dtype, problem, { packed: c.packed ?? false });
        assertClose(form, result, exact, limits(form));
      }
    });
  }
}

const main = DTYPES[0] ?? "f32";

Deno.test("attention_reference: philox() gives the known answers of Philox4x32-7", () => {
  // From the known-answer file of Random123, the authors' library.
  assertEquals(philox(0n, [0, 0, 0, 0]), [0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48]);
});

for (const form of ATTENTION_FORMS) {
  Deno.test(`${form}: dropout draws the mask of the header and keeps 1 - p`, () => {
    using context = openTestContext();
    const [n, m, heads] = [256, 128, 2];
    const problem = problemOf({ name: "", n: [n], m: [m], heads, headDim: m, dropout: 0.1 }, main);
    // With values of the identity, the output is the matrix of probabilities.
    problem.q.fill(0);
    for (let j = 0; j < m; j++) {
      for (let e = 0; e < heads * m; e++) problem.v[j * heads * m + e] = e % m === j ? 1 : 0;
    }
    const { out, lse } = run(context, form, main, problem);
    assert(problem.dropout);
    let dropped = 0;
    for (let h = 0; h < heads; h++) {
      const factors = dropoutFactors(problem.dropout, h, n, m);
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < m; j++) {
          const p = out[(i * heads + h) * m + j] ?? NaN;
          const factor = factors[i * m + j] ?? NaN;
          dropped += Number(p === 0);
          assert(
            Math.abs(p - factor / m) <= 4 * unitRoundoff(main) * factor / m,
            `score ${h} ${i} ${j}: ${p}`,
          );
        }
        assertAlmostEquals(lse[h * n + i] ?? NaN, Math.log(m), 1e-5);
      }
    }
    assertAlmostEquals(dropped / (n * m * heads), 0.1, 0.01);
  });

  Deno.test(`${form}: the gradients are those of finite differences`, { ignore: main !== "f32" }, () => {
    using context = openTestContext();
    const c: Case = { name: "", n: [5], m: [7], heads: 1, headDim: 8, causal: true, dropout: 0.2 };
    const problem = problemOf(c, main);
    const loss = (): number => {
      const { out } = run(context, form, main, problem);
      return out.reduce((sum, x, e) => sum + x * (problem.dout[e] ?? 0), 0);
    };
    const result = run(context, form, main, problem);
    for (const [x, gradient] of [["q", "dq"], ["k", "dk"], ["v", "dv"]] as const) {
      for (let e = 0; e < problem[x].length; e += 3) {
        const [value, step] = [problem[x][e] ?? 0, 2 ** -6];
        problem[x][e] = value + step;
        const above = loss();
        problem[x][e] = value - step;
        const slope = (above - loss()) / (2 * step);
        problem[x][e] = value;
        assertAlmostEquals(result[gradient][e] ?? NaN, slope, 1e-3, `${gradient}[${e}]`);
      }
    }
  });

  Deno.test(`${form}: the same call gives the same bits`, () => {
    using context = openTestContext();
    const c: Case = { name: "", n: [150, 64, 1], m: [300, 64, 9], headDim: 64, causal: true, dropout: 0.1 };
    const problem = problemOf(c, main);
    const first = run(context, form, main, problem);
    for (let repeat = 0; repeat < REPEATS; repeat++) {
      const again = run(context, form, main, problem);
      for (const name of RESULTS) {
        assertEquals(difference(again[name], first[name]), 0, `${name}, repeat ${repeat}`);
      }
    }
  });

  Deno.test(`${form}: what masked keys hold changes nothing, and their gradients are 0`, () => {
    using context = openTestContext();
    const c: Case = { name: "", n: [30, 30], m: [80, 80], keyLengths: [19, 64] };
    const problem = problemOf(c, main);
    const first = run(context, form, main, problem);
    const width = problem.heads * problem.headDim;
    const masked = [[19, 80], [144, 160]].map(([from = 0, to = 0]) => [from * width, to * width] as const);
    for (const [from, to] of masked) {
      problem.k.fill(3e4, from, to);
      problem.v.fill(-3e4, from, to);
      for (const gradient of [first.dk, first.dv]) {
        assert(gradient.subarray(from, to).every((x) => x === 0));
      }
    }
    assertEquals(run(context, form, main, problem), first);
  });

  Deno.test(`${form}: offsets and key lengths of any value stay within the tensors`, () => {
    using context = openTestContext();
    const [low, high] = [-(2 ** 31), 2 ** 31 - 1];
    const c: Case = { name: "", n: [20, 20, 20, 20], m: [30, 30, 30, 30], keyLengths: [30, 30, 30, 30] };
    const garbage = [
      [-5, 1000, 3, 70, 50],
      [high, low, high, low, high],
      [low, low, high, high, high],
      [80, 60, 40, 20, 0],
      [7, 90, 3, 90, 10],
      [0, 0, high, 0, 0],
    ];
    for (const causal of [false, true]) {
      for (const dropout of [0, 0.2]) {
        const problem = { ...problemOf({ ...c, causal, dropout }, main) };
        for (const [at, offsetsQ] of garbage.entries()) {
          const offsetsK = garbage[(at * 5 + 1) % garbage.length] ?? [];
          const told = { offsetsQ, offsetsK, keyLengths: [low, high, -1, 29], maxQ: 24, maxK: 33 };
          const result = run(context, form, main, problem, { told });
          // What offsets without sense give is open on a GPU; on the CPU every row is written, no NaN of the poison is left.
          for (const [name, values] of Object.entries(main === "f32" ? result : {})) {
            assert(!values.some(Number.isNaN), `${name} of offsets ${offsetsQ} and ${offsetsK}`);
          }
        }
      }
    }
  });
}

Deno.test("attention: the three forms agree with each other", () => {
  using context = openTestContext();
  const c: Case = { name: "", n: [200, 77], m: [200, 131], headDim: 64, causal: true, dropout: 0.1 };
  const problem = problemOf(c, main);
  const exact = solve(problem);
  const limits = tolerances(problem, exact, main);
  const [first, ...others] = ATTENTION_FORMS.map((form) => run(context, form, main, problem));
  assert(first);
  for (const other of others) {
    for (const name of RESULTS) {
      assert(difference(first[name], other[name]) <= 2 * limits("dotscale")[name], name);
    }
  }
});

// Long sequences and many heads: on a GPU other kernels serve sums in any order.
const LONG: readonly Case[] = [
  { name: "D=64", n: [1700, 1555, 70, 0], m: [1600, 1700, 1, 9], headDim: 64, heads: 8, spareRows: 3 },
  { name: "D=64, padded keys", n: [513, 64], m: [1600, 1600], keyLengths: [1500, 0], headDim: 64, heads: 16 },
  { name: "D=64, dropout", n: [400, 1600], m: [1600, 1600], headDim: 64, dropout: 0.1 },
  { name: "D=64, causal", n: [3100, 90, 3000], m: [3100, 300, 3001], headDim: 64, causal: true },
  { name: "D=128", n: [700, 0, 650, 131], m: [650, 700, 700, 2], headDim: 128, heads: 8 },
  { name: "D=128, causal", n: [700, 64, 801], m: [700, 640, 800], headDim: 128, heads: 4, causal: true },
];

for (const c of LONG) {
  Deno.test(`attention: sums in any order differ by roundings alone, ${c.name}`, () => {
    using context = openTestContext();
    const problem = problemOf(c, main);
    for (const form of ATTENTION_FORMS) {
      const ordered = run(context, form, main, problem);
      const free = run(context, form, main, problem, { deterministic: false });
      for (const name of RESULTS) {
        const error = difference(free[name], ordered[name]);
        const limit = (main === "f32" ? 100 : 6) * unitRoundoff(main) * Math.max(largest(ordered[name]), 1);
        assert(error <= limit, `${form}: ${name} is off by ${error}, limit ${limit}`);
      }
    }
  });
}

Deno.test("attention: padding the layout changes no result", () => {
  using context = openTestContext();
  const [n, m, headDim, heads] = [[5, 31, 12], [9, 3, 40], 32, 2];
  const width = heads * headDim;
  const dense = problemOf({ name: "", n, m, headDim, heads }, main);
  const padded: Problem = {
    ...problemOf({ name: "", n: [31, 31, 31], m: [40, 40, 40], headDim, heads }, main),
    keyLengths: m,
  };
  const copy = (from: Float32Array, to: Float32Array, starts: readonly number[], pitch: number): void => {
    starts.slice(0, -1).forEach((start, b) => {
      to.set(from.subarray(start * width, (starts[b + 1] ?? 0) * width), b * pitch * width);
    });
  };
  copy(dense.q, padded.q, dense.offsetsQ, 31);
  copy(dense.k, padded.k, dense.offsetsK, 40);
  copy(dense.v, padded.v, dense.offsetsK, 40);
  for (const form of ATTENTION_FORMS) {
    const [a, b] = [run(context, form, main, dense).out, run(context, form, main, padded).out];
    dense.offsetsQ.slice(0, -1).forEach((start, at) => {
      const rows = n[at] ?? 0;
      const [x, y] = [
        a.subarray(start * width, (start + rows) * width),
        b.subarray(at * 31 * width, (at * 31 + rows) * width),
      ];
      assert(difference(x, y) <= 8 * unitRoundoff(main), `${form}, sequence ${at}`);
    });
  }
});

Deno.test("attention_reference: its gradients are those of finite differences", () => {
  const c: Case = { name: "", n: [4, 3], m: [6, 2], heads: 1, headDim: 8, causal: true, dropout: 0.3 };
  const problem = problemOf(c, "f32");
  const { dq, dk, dv } = solve(problem);
  const loss = (): number => solve(problem).out.reduce((sum, x, e) => sum + x * (problem.dout[e] ?? 0), 0);
  for (const [x, gradient] of [[problem.q, dq], [problem.k, dk], [problem.v, dv]] as const) {
    for (let e = 0; e < x.length; e++) {
      const [value, step] = [x[e] ?? 0, 2 ** -12];
      x[e] = value + step;
      const [above, high] = [loss(), x[e] ?? 0];
      x[e] = value - step;
      const slope = (above - loss()) / (high - (x[e] ?? 0));
      x[e] = value;
      assertAlmostEquals(gradient[e] ?? NaN, slope, 1e-6);
    }
  }
});

Deno.test("attention_reference: the causal mask is aligned to the bottom right", () => {
  assertEquals([0, 1, 2].map((i) => visibleKeys(i, 3, 5, 5, true)), [3, 4, 5]);
  assertEquals([0, 1, 2].map((i) => visibleKeys(i, 3, 2, 2, true)), [0, 1, 2]);
  assertEquals([0, 1, 2].map((i) => visibleKeys(i, 3, 5, 4, false)), [4, 4, 4]);
});
