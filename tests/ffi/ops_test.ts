import { assert, assertEquals } from "@std/assert";
import {
  adam,
  add,
  Arena,
  biasReluDropoutBackward,
  biasReluDropoutForward,
  cast,
  columnSum,
  type Context,
  copyRows,
  crossEntropy,
  type Dropout,
  dropoutForward,
  embeddingBackward,
  embeddingForward,
  gradNorm,
  randomUniform,
  residualNormBackward,
  residualNormForward,
  sum,
  type Tensor,
  topk,
} from "../../ffi/mod.ts";
import { openTestContext } from "../context.ts";
import {
  assertClose,
  at,
  dropoutFactors,
  float64,
  guarded,
  philox,
  randomFloats,
  rngTensor,
  rowSize,
  sample,
} from "./_support.ts";

const SEED = 0x9E3779B97F4A7C15n;
const STEP = 41n;

/** Runs `body` on each number of rows and row length, with dropout off and on. */
function forShapes(
  context: Context,
  body: (arena: Arena, rows: number, C: number, dropout: Dropout | null, factors: Float64Array) => void,
): void {
  for (const [rows, width] of [[1, 8], [7, 33], [37, 129], [300, 136]] as const) {
    const C = rowSize(context, width);
    for (const p of [0, 0.3]) {
      using arena = new Arena(context);
      const site = 5;
      const dropout = p > 0 ? { p, site, rng: rngTensor(arena, SEED, STEP) } : null;
      const factors = p > 0
        ? dropoutFactors(rows * C, p, SEED, STEP, site)
        : new Float64Array(rows * C).fill(1);
      body(arena, rows, C, dropout, factors);
    }
  }
}

function ids(arena: Arena, values: number[]): Tensor {
  return arena.from(Int32Array.from(values), [values.length], "i32");
}

// ---- random numbers -------------------------------------------------------------------------------------------------

Deno.test("the tests' own Philox equals the published vectors", () => {
  const hex = (words: bigint[]): string => words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  assertEquals(hex(philox([0n, 0n, 0n, 0n], 0n)), "5f6fb709 0d893f64 4f121f81 4f730a48");
  const ones = 0xffffffffn;
  assertEquals(
    hex(philox([ones, ones, ones, ones], (ones << 32n) | ones)),
    "5207ddc2 45165e59 4d8ee751 8c52f662",
  );
  const counter = [0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n];
  assertEquals(
    hex(philox(counter, (0x299f31d0n << 32n) | 0xa4093822n)),
    "4dfccaba 190a87f0 c47362ba b6b5242a",
  );
});

Deno.test("randomUniform() draws word 0 of counter {i, 0, site, 2}", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const out = guarded(arena, [1003], "f32");
  randomUniform(out.tensor, -2, 3, SEED, 77);
  const expected = float64(1003, (i) => {
    const word = philox([BigInt(i), 0n, 77n, 2n], SEED)[0] ?? 0n;
    return -2 + 5 * Number(word >> 8n) / 2 ** 24;
  });
  assertClose("uniform", out.tensor.floats(), expected, { dtype: "f32", scale: 2 });
  out.assertIntact();
});

Deno.test("dropoutForward() keeps exactly the elements that Philox names", () => {
  using context = openTestContext();
  for (const [n, p] of [[1, 0.5], [129, 0.1], [5003, 0.1], [5003, 0.999]] as const) {
    using arena = new Arena(context);
    const rng = rngTensor(arena, SEED, STEP);
    const x = sample(arena, [n], 1);
    const y = guarded(arena, [n]);
    dropoutForward(y.tensor, x.tensor, { p, rng, site: 3 });
    const factors = dropoutFactors(n, p, SEED, STEP, 3);
    const expected = factors.map((factor, i) => factor * at(x.values, i));
    assertClose(`p ${p}`, y.tensor.floats(), expected, { dtype: context.dtype, scale: 0 });
    y.assertIntact();
    dropoutForward(x.tensor, x.tensor, { p, rng, site: 3 });
    assertEquals(x.tensor.floats(), y.tensor.floats(), "in place");
  }
});

// ---- embedding ------------------------------------------------------------------------------------------------------

Deno.test("embeddingForward() scales, adds positions, and takes unknown ids and positions as zeros", () => {
  using context = openTestContext();
  forShapes(context, (arena, rows, C, dropout, factors) => {
    const [V, P] = [11, 6];
    const table = sample(arena, [V, C], 1);
    const places = sample(arena, [P, C], 2, "f32");
    const id = float64(rows, (r) => r * 7 % 14 - 1);
    const pos = float64(rows, (r) => r * 5 % 9 - 1);
    const index = ids(arena, [...pos]);
    for (const positions of [null, { table: places.tensor, index }]) {
      const out = guarded(arena, [rows, C]);
      const parameters = { ids: ids(arena, [...id]), scale: 1.5, dropout };
      embeddingForward(out.tensor, table.tensor, positions, parameters);
      const entry = (values: Float32Array, row: number, size: number, c: number): number =>
        row >= 0 && row < size ? at(values, row * C + c) : 0;
      const expected = float64(rows * C, (i) => {
        const [r, c] = [Math.floor(i / C), i % C];
        const place = positions ? entry(places.values, at(pos, r), P, c) : 0;
        return at(factors, i) * (entry(table.values, at(id, r), V, c) * 1.5 + place);
      });
      assertClose("embedding", out.tensor.floats(), expected, { dtype: context.dtype, scale: 3 });
      out.assertIntact();
    }
  });
});

Deno.test("embeddingBackward() adds the gradients of equal ids, but for the one to skip", () => {
  using context = openTestContext();
  forShapes(context, (arena, rows, C, dropout, factors) => {
    const V = 11;
    const dout = sample(arena, [rows, C], 1);
    const id = float64(rows, (r) => r * r % 13 - 1);
    const expected = new Float64Array(V * C);
    for (let i = 0; i < rows * C; i++) {
      const row = at(id, Math.floor(i / C));
      if (row < 0 || row >= V || row === 3) continue;
      expected[row * C + i % C] = at(expected, row * C + i % C) + 1.5 * at(factors, i) * at(dout.values, i);
    }
    const dtable = guarded(arena, [V, C], "f32");
    const parameters = { ids: ids(arena, [...id]), scale: 1.5, dropout };
    const tolerance = { dtype: "f32", terms: rows, scale: 3 + Math.sqrt(rows) } as const;
    embeddingBackward(dtable.tensor, dout.tensor, parameters, { accumulate: false, skipId: 3 });
    assertClose("dtable", dtable.tensor.floats(), expected, tolerance);
    embeddingBackward(dtable.tensor, dout.tensor, parameters, { accumulate: true, skipId: 3 });
    assertClose("twice", dtable.tensor.floats(), expected.map((v) => 2 * v), tolerance);
    dtable.assertIntact();
  });
});

// ---- residual and layer norm ----------------------------------------------------------------------------------------

interface Norm {
  mean: Float64Array;
  rstd: Float64Array;
  normal: Float64Array;
}

function normalise(x: ArrayLike<number>, rows: number, C: number, eps: number): Norm {
  const mean = float64(rows, (r) => float64(C, (c) => at(x, r * C + c)).reduce((a, b) => a + b) / C);
  const rstd = float64(rows, (r) => {
    const squares = float64(C, (c) => (at(x, r * C + c) - at(mean, r)) ** 2).reduce((a, b) => a + b);
    return 1 / Math.sqrt(squares / C + eps);
  });
  const normal = float64(rows * C, (i) => {
    const r = Math.floor(i / C);
    return (at(x, i) - at(mean, r)) * at(rstd, r);
  });
  return { mean, rstd, normal };
}

Deno.test("residualNormForward() equals its formula, with and without a branch", () => {
  using context = openTestContext();
  forShapes(context, (arena, rows, C, dropout, factors) => {
    const x = sample(arena, [rows, C], 1);
    const branch = sample(arena, [rows, C], 2);
    const gamma = sample(arena, [C], 3);
    const beta = sample(arena, [C], 4);
    for (const withBranch of [false, true]) {
      const [total, out] = [guarded(arena, [rows, C]), guarded(arena, [rows, C])];
      const [mean, rstd] = [guarded(arena, [rows], "f32"), guarded(arena, [rows], "f32")];
      residualNormForward({
        x: x.tensor,
        branch: withBranch ? branch.tensor : null,
        sum: withBranch ? total.tensor : null,
        out: out.tensor,
        mean: mean.tensor,
        rstd: rstd.tensor,
        gamma: gamma.tensor,
        beta: beta.tensor,
        dropout,
        eps: 1e-3,
      });
      const sums = float64(
        rows * C,
        (i) => at(x.values, i) + (withBranch ? at(factors, i) * at(branch.values, i) : 0),
      );
      const { dtype } = context;
      if (withBranch) assertClose("sum", total.tensor.floats(), sums, { dtype, scale: 2 });
      const norm = normalise(withBranch ? total.tensor.floats() : x.values, rows, C, 1e-3);
      const expected = float64(
        rows * C,
        (i) => at(norm.normal, i) * at(gamma.values, i % C) + at(beta.values, i % C),
      );
      assertClose("out", out.tensor.floats(), expected, { dtype, scale: 4, terms: C });
      const rough = dtype === "f32" ? "f32" : dtype; // statistics may come from the sum before it is rounded
      assertClose("mean", mean.tensor.floats(), norm.mean, { dtype: rough, terms: C });
      assertClose("rstd", rstd.tensor.floats(), norm.rstd, { dtype: rough, terms: C, scale: 2 });
      for (const output of [total, out, mean, rstd]) output.assertIntact();
    }
  });
});

Deno.test("residualNormForward() without out is the sum alone, in place if asked", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = sample(arena, [9, 40], 1);
  const branch = sample(arena, [9, 40], 2);
  residualNormForward({ x: x.tensor, branch: branch.tensor, sum: x.tensor });
  const expected = float64(360, (i) => at(x.values, i) + at(branch.values, i));
  assertClose("sum", x.tensor.floats(), expected, { dtype: context.dtype, scale: 2 });
});

Deno.test("residualNormBackward() equals its formula for every choice of gradients", () => {
  using context = openTestContext();
  forShapes(context, (arena, rows, C, dropout, factors) => {
    const { dtype } = context;
    const x = sample(arena, [rows, C], 1);
    const gamma = sample(arena, [C], 2);
    const dout = sample(arena, [rows, C], 3);
    const dsum = sample(arena, [rows, C], 4);
    const norm = normalise(x.values, rows, C, 1e-3);
    const mean = arena.from(Float32Array.from(norm.mean), [rows], "f32");
    const rstd = arena.from(Float32Array.from(norm.rstd), [rows], "f32");
    const g = float64(rows * C, (i) => at(dout.values, i) * at(gamma.values, i % C));
    const rowMean = (r: number, f: (i: number) => number): number =>
      float64(C, (c) => f(r * C + c)).reduce((a, b) => a + b) / C;
    const mean1 = float64(rows, (r) => rowMean(r, (i) => at(g, i)));
    const mean2 = float64(rows, (r) => rowMean(r, (i) => at(g, i) * at(norm.normal, i)));
    for (const [withOut, withSum] of [[true, true], [true, false], [false, true], [false, false]] as const) {
      const expected = float64(rows * C, (i) => {
        const r = Math.floor(i / C);
        const inner = at(norm.rstd, r) * (at(g, i) - at(mean1, r) - at(norm.normal, i) * at(mean2, r));
        return (withOut ? inner : 0) + (withSum ? at(dsum.values, i) : 0);
      });
      const [dx, dbranch] = [guarded(arena, [rows, C]), guarded(arena, [rows, C])];
      const [dgamma, dbeta] = [guarded(arena, [C], "f32"), guarded(arena, [C], "f32")];
      const parameters = {
        dx: dx.tensor,
        dbranch: dbranch.tensor,
        dgamma: dgamma.tensor,
        dbeta: dbeta.tensor,
        dout: withOut ? dout.tensor : null,
        dsum: withSum ? dsum.tensor : null,
        sum: x.tensor,
        mean,
        rstd,
        gamma: gamma.tensor,
        dropout,
      };
      residualNormBackward({ ...parameters, accumulate: false });
      residualNormBackward({ ...parameters, accumulate: true });
      const scale = 4 * Math.max(...norm.rstd);
      assertClose("dx", dx.tensor.floats(), expected, { dtype, scale, terms: C });
      const branch = expected.map((value, i) => value * at(factors, i));
      assertClose("dbranch", dbranch.tensor.floats(), branch, { dtype, scale: 2 * scale, terms: C });
      const columns = (f: (i: number) => number): Float64Array =>
        float64(C, (c) => 2 * float64(withOut ? rows : 0, (r) => f(r * C + c)).reduce((a, b) => a + b, 0));
      const tolerance = { dtype: "f32", terms: rows, scale: 8 + Math.sqrt(rows) } as const;
      const expectedGamma = columns((i) => at(dout.values, i) * at(norm.normal, i));
      assertClose("dgamma", dgamma.tensor.floats(), expectedGamma, tolerance);
      assertClose("dbeta", dbeta.tensor.floats(), columns((i) => at(dout.values, i)), tolerance);
      for (const output of [dx, dbranch, dgamma, dbeta]) output.assertIntact();
    }
  });
});

// ---- feed-forward ---------------------------------------------------------------------------------------------------

Deno.test("biasReluDropout forward and backward equal their formulas", () => {
  using context = openTestContext();
  forShapes(context, (arena, rows, n, dropout, factors) => {
    const { dtype } = context;
    const x = sample(arena, [rows, n], 1);
    const bias = sample(arena, [n], 2);
    const dy = sample(arena, [rows, n], 3);
    for (const withBias of [false, true]) {
      const y = guarded(arena, [rows, n]);
      biasReluDropoutForward(y.tensor, x.tensor, withBias ? bias.tensor : null, dropout);
      const input = float64(rows * n, (i) => at(x.values, i) + (withBias ? at(bias.values, i % n) : 0));
      const expected = input.map((value, i) => Math.max(0, value) * at(factors, i));
      assertClose("y", y.tensor.floats(), expected, { dtype });
      y.assertIntact();
      const [dx, dbias] = [guarded(arena, [rows, n]), guarded(arena, [n], "f32")];
      const options = { dbias: withBias ? dbias.tensor : null, p: dropout?.p ?? 0 };
      biasReluDropoutBackward(dx.tensor, dy.tensor, y.tensor, { ...options, accumulate: false });
      const kept = y.tensor.floats();
      const scale = dropout ? 65536 / (65536 - Math.round(Math.fround(dropout.p) * 65536)) : 1;
      const gradient = float64(rows * n, (i) => at(kept, i) > 0 ? at(dy.values, i) * scale : 0);
      assertClose("dx", dx.tensor.floats(), gradient, { dtype });
      if (withBias) {
        biasReluDropoutBackward(dy.tensor, dy.tensor, y.tensor, { ...options, accumulate: true });
        assertEquals(dy.tensor.floats(), dx.tensor.floats(), "in place");
        const sums = float64(
          n,
          (c) => 2 * float64(rows, (r) => at(gradient, r * n + c)).reduce((a, b) => a + b),
        );
        // The device may add the gradients before or after it rounds them.
        const terms = dtype === "f32" ? rows : rows * 2 ** 24;
        const tolerance = { dtype: "f32", terms, scale: 4 + Math.sqrt(rows) } as const;
        assertClose("dbias", dbias.tensor.floats(), sums, tolerance);
      }
      dx.assertIntact();
      dbias.assertIntact();
    }
  });
});

// ---- sums -----------------------------------------------------------------------------------------------------------

Deno.test("add() adds, in place as well", () => {
  using context = openTestContext();
  for (const n of [1, 31, 4099]) {
    using arena = new Arena(context);
    const [a, b] = [sample(arena, [n], 1), sample(arena, [n], 2)];
    const out = guarded(arena, [n]);
    const expected = float64(n, (i) => at(a.values, i) + at(b.values, i));
    add(out.tensor, a.tensor, b.tensor);
    assertClose("out", out.tensor.floats(), expected, { dtype: context.dtype });
    out.assertIntact();
    add(b.tensor, a.tensor, b.tensor);
    assertEquals(b.tensor.floats(), out.tensor.floats());
  }
});

Deno.test("columnSum() adds rows of a view and accumulates", () => {
  using context = openTestContext();
  for (const [rows, width] of [[0, 16], [1, 8], [15, 33], [1000, 129]] as const) {
    using arena = new Arena(context);
    const n = rowSize(context, width);
    const x = sample(arena, [rows, n + 24], 1);
    const out = guarded(arena, [n], "f32");
    const expected = float64(n, (c) => {
      let total = 0;
      for (let r = 0; r < rows; r++) total += at(x.values, r * (n + 24) + 8 + c);
      return total;
    });
    const tolerance = { dtype: "f32", terms: rows, scale: 2 * Math.sqrt(rows) + 1 } as const;
    columnSum(out.tensor, x.tensor.columnSlice(8, n), false);
    assertClose("columns", out.tensor.floats(), expected, tolerance);
    columnSum(out.tensor, x.tensor.columnSlice(8, n), true);
    assertClose("twice", out.tensor.floats(), expected.map((value) => 2 * value), tolerance);
    out.assertIntact();
  }
});

Deno.test("sum() and gradNorm() reduce any number of elements", () => {
  using context = openTestContext();
  for (const n of [0, 1, 63, 1025, 100003]) {
    using arena = new Arena(context);
    const x = sample(arena, [n], 7, "f32");
    const total = x.values.reduce((a, b) => a + b, 0);
    const out = guarded(arena, [1], "f32");
    const tolerance = { dtype: "f32", terms: n, scale: Math.sqrt(n) } as const;
    sum(out.tensor, x.tensor, false);
    assertClose("sum", out.tensor.floats(), [total], tolerance);
    sum(out.tensor, x.tensor, true);
    assertClose("sum twice", out.tensor.floats(), [2 * total], tolerance);
    out.assertIntact();
    const norm = Math.sqrt(x.values.reduce((a, b) => a + b * b, 0));
    for (const limit of [0, norm / 2, 2 * norm + 1]) {
      const result = guarded(arena, [2], "f32");
      gradNorm(result.tensor, x.tensor, limit);
      const factor = limit > 0 && norm > limit ? limit / norm : 1;
      assertClose("norm", result.tensor.floats(), [norm, factor], { dtype: "f32", scale: 1 });
      result.assertIntact();
    }
  }
});

Deno.test("gradNorm() gives factor 0 where an element is not finite", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  for (const bad of [NaN, Infinity, -Infinity]) {
    const values = new Float32Array(1000).fill(1);
    values[777] = bad;
    const norm = arena.tensor([2], "f32");
    gradNorm(norm, arena.from(values, [1000], "f32"), 1);
    const [value = 0, factor] = norm.floats();
    assert(!Number.isFinite(value));
    assertEquals(factor, 0);
  }
});

// ---- loss -----------------------------------------------------------------------------------------------------------

interface Loss {
  loss: number;
  nll: number;
  correct: number;
  gradient: Float64Array;
}

function lossOf(logits: Float64Array, target: number, smoothing: number, scale: number): Loss {
  const max = Math.max(...logits);
  const total = logits.reduce((sum, z) => sum + Math.exp(z - max), 0);
  const logProbability = (z: number): number => z - max - Math.log(total);
  const wanted = (v: number): number => (v === target ? 1 - smoothing : 0) + smoothing / logits.length;
  return {
    loss: -logits.reduce((sum, z, v) => sum + wanted(v) * logProbability(z), 0),
    nll: -logProbability(at(logits, target)),
    correct: logits.indexOf(max) === target ? 1 : 0,
    gradient: logits.map((z, v) => (Math.exp(logProbability(z)) - wanted(v)) * scale),
  };
}

Deno.test("crossEntropy() equals its formula; rows that count nothing give zeros", () => {
  using context = openTestContext();
  for (const [rows, V, padding] of [[1, 1, 7], [9, 17, 7], [40, 1000, 24], [5, 4099, 5]] as const) {
    for (const smoothing of [0, 0.1]) {
      using arena = new Arena(context);
      const stride = rowSize(context, V + padding);
      const z = sample(arena, [rows, stride], rows, undefined, 8);
      const target = float64(rows, (r) => r === 0 ? V - 1 : (r * 31) % (V + 3) - 1);
      const [loss, nll] = [guarded(arena, [rows], "f32"), guarded(arena, [rows], "f32")];
      const correct = guarded(arena, [rows], "i32");
      const pad = 2;
      const parameters = {
        logits: z.tensor,
        targets: ids(arena, [...target]),
        V,
        loss: loss.tensor,
        nll: nll.tensor,
        correct: correct.tensor,
        smoothing,
        padId: pad,
      };
      crossEntropy(parameters);
      assertEquals(z.tensor.floats(), z.values, "logits without a gradient asked for");
      crossEntropy({ ...parameters, gradScale: arena.from(Float32Array.of(0.75), [1], "f32") });
      const nothing = { loss: 0, nll: 0, correct: 0, gradient: new Float64Array(V) };
      const expected = Array.from(target, (t, r) => {
        if (t === pad || t < 0 || t >= V) return nothing;
        const row = float64(V, (v) => at(z.values, r * stride + v));
        return lossOf(row, t, Math.fround(smoothing), 0.75);
      });
      assertClose("loss", loss.tensor.floats(), expected.map((e) => e.loss), {
        dtype: "f32",
        terms: V,
        scale: 16,
      });
      assertClose("nll", nll.tensor.floats(), expected.map((e) => e.nll), {
        dtype: "f32",
        terms: V,
        scale: 16,
      });
      assertEquals([...correct.tensor.ints()], expected.map((e) => e.correct));
      const gradient = expected.flatMap((e) => [...e.gradient, ...new Array<number>(stride - V).fill(0)]);
      assertClose("gradient", z.tensor.floats(), gradient, { dtype: context.dtype, scale: 0.05 });
      for (const output of [loss, nll, correct]) output.assertIntact();
    }
  }
});

Deno.test("crossEntropy() holds for logits that overflow a plain exponential", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const values = new Float32Array(16).fill(-1000);
  values[3] = 1000;
  values[4] = 1000;
  const logits = arena.from(values, [1, 16], context.dtype);
  const [loss, nll] = [arena.tensor([1], "f32"), arena.tensor([1], "f32")];
  const correct = arena.tensor([1], "i32");
  const gradScale = arena.from(Float32Array.of(1), [1], "f32");
  const common = { logits, V: 16, loss, nll, correct, smoothing: 0, padId: -1, gradScale };
  crossEntropy({ ...common, targets: ids(arena, [4]) });
  assertClose("loss", loss.floats(), [Math.LN2], { dtype: "f32" });
  assertEquals([...correct.ints()], [0], "of equal logits the first counts as the best");
  assertEquals([...logits.floats()].filter((value) => value !== 0), [0.5, -0.5]);
});

Deno.test("crossEntropy()'s gradient is the slope of its loss", () => {
  using context = openTestContext();
  if (context.dtype !== "f32") return; // differences need more digits than 16-bit logits have
  using arena = new Arena(context);
  const [V, h] = [19, 1 / 64];
  const lossAt = (values: Float32Array<ArrayBuffer>, gradScale: Tensor | null): [number, Float32Array] => {
    const logits = arena.from(values, [1, V], "f32");
    const loss = arena.tensor([1], "f32");
    const nll = arena.tensor([1], "f32");
    crossEntropy({ logits, targets: ids(arena, [5]), V, loss, nll, smoothing: 0.2, padId: -1, gradScale });
    return [at(loss.floats(), 0), logits.floats()];
  };
  const values = randomFloats(V, 3);
  const [, gradient] = lossAt(values, arena.from(Float32Array.of(1), [1], "f32"));
  for (let v = 0; v < V; v++) {
    const moved = (by: number): number => lossAt(values.map((z, i) => i === v ? z + by : z), null)[0];
    const slope = (moved(h) - moved(-h)) / (2 * h);
    assert(Math.abs(slope - at(gradient, v)) < 1e-4, `class ${v}: ${slope} and ${at(gradient, v)}`);
  }
});

// ---- optimizer ------------------------------------------------------------------------------------------------------

Deno.test("adam() takes the steps of Loshchilov and Hutter, clipped by the norm", () => {
  using context = openTestContext();
  const [n, beta1, beta2, eps, decay, rate] = [1003, 0.9, 0.98, 1e-9, 0.1, 0.01];
  for (const clip of [null, 0.5]) {
    using arena = new Arena(context);
    const master = sample(arena, [n], 1, "f32");
    const [m, v] = [arena.zeros([n], "f32"), arena.zeros([n], "f32")];
    const weights = guarded(arena, [n]);
    const state = { w: Float64Array.from(master.values), m: new Float64Array(n), v: new Float64Array(n) };
    for (let step = 1; step <= 3; step++) {
      const grad = sample(arena, [n], 10 + step, "f32");
      const hyper = [rate, 1 / (1 - beta1 ** step), 1 / (1 - beta2 ** step)] as const;
      adam({
        weights: weights.tensor,
        master: master.tensor,
        m,
        v,
        grad: grad.tensor,
        hyper: arena.from(Float32Array.from(hyper), [3], "f32"),
        norm: clip === null ? null : arena.from(Float32Array.of(9, clip), [2], "f32"),
        beta1,
        beta2,
        eps,
        weightDecay: decay,
      });
      for (let i = 0; i < n; i++) {
        const g = at(grad.values, i) * (clip ?? 1);
        state.m[i] = beta1 * at(state.m, i) + (1 - beta1) * g;
        state.v[i] = beta2 * at(state.v, i) + (1 - beta2) * g * g;
        const update = at(state.m, i) * hyper[1] / (Math.sqrt(at(state.v, i) * hyper[2]) + eps);
        state.w[i] = at(state.w, i) - rate * (update + decay * at(state.w, i));
      }
    }
    assertClose("master", master.tensor.floats(), state.w, { dtype: "f32" });
    assertClose("m", m.floats(), state.m, { dtype: "f32" });
    assertClose("v", v.floats(), state.v, { dtype: "f32" });
    const rounded = arena.from(master.tensor.floats(), [n], context.dtype);
    assertEquals(weights.tensor.floats(), rounded.floats(), "weights are the master copy, rounded");
    weights.assertIntact();
  }
});

Deno.test("adam() leaves everything as it is where the norm's factor is 0", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const n = 77;
  const [master, m, v] = [1, 2, 3].map((seed) => sample(arena, [n], seed, "f32").tensor) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const weights = sample(arena, [n], 4).tensor;
  const before = [weights, master, m, v].map((tensor) => tensor.floats());
  adam({
    weights,
    master,
    m,
    v,
    grad: arena.from(new Float32Array(n).fill(NaN), [n], "f32"),
    hyper: arena.from(Float32Array.of(0.1, 1, 1), [3], "f32"),
    norm: arena.from(Float32Array.of(NaN, 0), [2], "f32"),
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-9,
    weightDecay: 0,
  });
  assertEquals([weights, master, m, v].map((tensor) => tensor.floats()), before);
});

// ---- decoding and copies --------------------------------------------------------------------------------------------

Deno.test("topk() sorts log-probabilities, ties to the lower id", () => {
  using context = openTestContext();
  for (const [rows, V, k] of [[1, 1, 1], [3, 5, 5], [7, 64, 10], [11, 1003, 64], [20, 4099, 4]] as const) {
    using arena = new Arena(context);
    const stride = rowSize(context, V + 3);
    const z = sample(arena, [rows, stride], 5, undefined, 4);
    const coarse = z.values.map((value, i) => i % 2 === 0 ? Math.round(value * 4) / 4 : Math.round(value));
    z.tensor.write(coarse);
    const [scores, best] = [guarded(arena, [rows, k], "f32"), guarded(arena, [rows, k], "i32")];
    topk(scores.tensor, best.tensor, z.tensor, V);
    const expected = Array.from({ length: rows }, (_, r) => {
      const row = float64(V, (v) => at(coarse, r * stride + v));
      const logTotal = Math.log(row.reduce((total, value) => total + Math.exp(value), 0));
      const order = Array.from(row.keys()).sort((a, b) => at(row, b) - at(row, a) || a - b).slice(0, k);
      return { order, scores: order.map((v) => at(row, v) - logTotal) };
    });
    assertEquals([...best.tensor.ints()], expected.flatMap((e) => e.order));
    assertClose("scores", scores.tensor.floats(), expected.flatMap((e) => e.scores), {
      dtype: "f32",
      scale: 8,
      terms: V,
    });
    scores.assertIntact();
    best.assertIntact();
  }
});

Deno.test("topk() gives k different ids where logits are -Infinity", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const values = new Float32Array(40).fill(-Infinity);
  values[33] = 1;
  const [scores, best] = [arena.tensor([1, 4], "f32"), arena.tensor([1, 4], "i32")];
  topk(scores, best, arena.from(values, [1, 40], context.dtype), 40);
  assertEquals([...best.ints()], [33, 0, 1, 2]);
  assertEquals([...scores.floats()], [0, -Infinity, -Infinity, -Infinity]);
});

Deno.test("copyRows() gathers and scatters between strides", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const src = sample(arena, [9, 48], 1);
  const dst = sample(arena, [7, 64], 2);
  const [from, to] = [[8, 0, 3, -1, 9, 5], [6, 1, 0, 2, 3, 7]];
  copyRows(dst.tensor.columnSlice(16, 24), src.tensor.columnSlice(8, 24), {
    srcIndex: ids(arena, from),
    dstIndex: ids(arena, to),
  });
  const expected = [...dst.values];
  from.forEach((f, r) => {
    const t = at(to, r);
    if (f < 0 || f >= 9 || t < 0 || t >= 7) return;
    for (let c = 0; c < 24; c++) expected[t * 64 + 16 + c] = at(src.values, f * 48 + 8 + c);
  });
  assertEquals([...dst.tensor.floats()], expected);
});

Deno.test("cast() rounds to nearest even in both 16-bit formats", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const special = [0, -0, 1, -1, Infinity, -Infinity, NaN, 65504, 65519, 65520, 1e5, 3e38, 3.4e38, 2 ** -14];
  const small = [
    2 ** -24,
    2 ** -25,
    1.5 * 2 ** -25,
    2 ** -26,
    1.5 * 2 ** -24,
    2 ** -133,
    2 ** -134,
    2 ** -149,
  ];
  const ties = [1 + 2 ** -11, 1 + 3 * 2 ** -11, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -23];
  const random = [...randomFloats(2000, 1)].map((value, i) => value * 2 ** (i % 60 - 40));
  const values = Float32Array.from([...special, ...small, ...small.map((x) => -x), ...ties, ...random]);
  const n = values.length;
  const f32 = arena.from(values, [n], "f32");
  for (const dtype of ["f16", "bf16"] as const) {
    const out = guarded(arena, [n], dtype);
    cast(out.tensor, f32);
    const expected = arena.from(values, [n], dtype).floats(); // rounded on the host
    assertEquals(out.tensor.floats(), expected, `to ${dtype}`);
    out.assertIntact();
    const back = guarded(arena, [n], "f32");
    cast(back.tensor, out.tensor);
    assertEquals(back.tensor.floats(), expected, `from ${dtype}`);
    back.assertIntact();
  }
});
