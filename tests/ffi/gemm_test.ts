import { assertEquals } from "@std/assert";
import { Arena, type Context, gemm } from "../../ffi/mod.ts";
import { openTestContext } from "../context.ts";
import { assertClose, at, float64, guarded, rowSize, type Sample, sample } from "./_support.ts";

interface Case {
  m: number;
  n: number;
  k: number;
  transA: boolean;
  transB: boolean;
}

const SHAPES: readonly (readonly [number, number, number])[] = [
  [1, 1, 1],
  [1, 33, 65],
  [3, 130, 17],
  [8, 64, 128],
  [13, 97, 31],
  [24, 48, 385],
  [67, 129, 200],
  [130, 520, 40],
  [200, 31, 800],
];

function cases(context: Context): Case[] {
  return SHAPES.flatMap(([m, n, k]) =>
    [false, true].flatMap((transA) =>
      [false, true].map((transB) => {
        // Whatever is the length of a row has to fit the device.
        const fit = (size: number): number => size === 1 ? rowSize(context, 1) : rowSize(context, size);
        return { m: transA ? fit(m) : m, n: fit(n), k: transA && !transB ? k : fit(k), transA, transB };
      })
    )
  );
}

/** op(a) op(b) in float64, and the sums of absolute terms. */
function multiply(a: Sample, b: Sample, { m, n, k, transA, transB }: Case): Float64Array {
  return float64(m * n, (index) => {
    const [i, j] = [Math.floor(index / n), index % n];
    let total = 0;
    for (let p = 0; p < k; p++) {
      total += at(a.values, transA ? p * m + i : i * k + p) * at(b.values, transB ? j * k + p : p * n + j);
    }
    return total;
  });
}

function operands(arena: Arena, c: Case): { a: Sample; b: Sample } {
  return {
    a: sample(arena, c.transA ? [c.k, c.m] : [c.m, c.k], 1),
    b: sample(arena, c.transB ? [c.n, c.k] : [c.k, c.n], 2),
  };
}

Deno.test("gemm() of every transposition equals the float64 product, and writes nothing else", () => {
  using context = openTestContext();
  for (const shape of cases(context)) {
    using arena = new Arena(context);
    const { a, b } = operands(arena, shape);
    const out = guarded(arena, [shape.m, shape.n]);
    gemm({ a: a.tensor, b: b.tensor, c: out.tensor, transA: shape.transA, transB: shape.transB });
    const tolerance = { dtype: context.dtype, terms: shape.k, scale: Math.sqrt(shape.k) };
    assertClose(JSON.stringify(shape), out.tensor.floats(), multiply(a, b, shape), tolerance);
    out.assertIntact();
  }
});

Deno.test("gemm() scales, accumulates, and adds a bias with or without ReLU", () => {
  using context = openTestContext();
  for (const shape of cases(context)) {
    using arena = new Arena(context);
    const { m, n, k, transA, transB } = shape;
    const { a, b } = operands(arena, shape);
    const bias = sample(arena, [n], 3);
    const exact = multiply(a, b, shape);
    const tolerance = { dtype: context.dtype, terms: k, scale: Math.sqrt(k) + 1 };
    for (const relu of [false, true]) {
      const c = sample(arena, [m, n], 4);
      const common = { a: a.tensor, b: b.tensor, c: c.tensor, transA, transB };
      gemm({ ...common, bias: bias.tensor, relu, alpha: 0.5, beta: -0.25 });
      const expected = exact.map((value, index) => {
        const y = 0.5 * value - 0.25 * at(c.values, index) + at(bias.values, index % n);
        return relu ? Math.max(0, y) : y;
      });
      assertClose(`bias ${JSON.stringify(shape)}`, c.tensor.floats(), expected, tolerance);
    }
  }
});

Deno.test("gemm() into float32 gives the bias gradient beside the product", () => {
  using context = openTestContext();
  for (const shape of cases(context)) {
    using arena = new Arena(context);
    const { m, n, k, transA, transB } = shape;
    const { a, b } = operands(arena, shape);
    const exact = multiply(a, b, shape);
    const sums = float64(n, (j) => {
      let total = 0;
      for (let p = 0; p < k; p++) total += at(b.values, transB ? j * k + p : p * n + j);
      return total;
    });
    const c = guarded(arena, [m, n], "f32");
    const biasGrad = guarded(arena, [n], "f32");
    const common = { a: a.tensor, b: b.tensor, c: c.tensor, transA, transB, biasGrad: biasGrad.tensor };
    const tolerance = { dtype: "f32", terms: k, scale: Math.sqrt(k) } as const;
    gemm(common);
    assertClose("product", c.tensor.floats(), exact, tolerance);
    assertClose("bias gradient", biasGrad.tensor.floats(), sums, tolerance);
    gemm({ ...common, beta: 1 });
    const twice = (values: Float64Array): Float64Array => values.map((value) => 2 * value);
    assertClose("accumulated product", c.tensor.floats(), twice(exact), {
      ...tolerance,
      scale: 2 * tolerance.scale,
    });
    assertClose("accumulated gradient", biasGrad.tensor.floats(), twice(sums), {
      ...tolerance,
      scale: 2 * tolerance.scale,
    });
    c.assertIntact();
    biasGrad.assertIntact();
  }
});

Deno.test("gemm() takes rows with gaps and leaves the gaps as they are", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const [m, n, k] = [19, 40, 24];
  const a = sample(arena, [m, 64], 5);
  const b = sample(arena, [k, 96], 6);
  const c = sample(arena, [m, 80], 7);
  gemm({
    a: a.tensor.columnSlice(8, k),
    b: b.tensor.columnSlice(16, n),
    c: c.tensor.columnSlice(24, n),
  });
  const product = (i: number, j: number): number => {
    let total = 0;
    for (let p = 0; p < k; p++) total += at(a.values, i * 64 + 8 + p) * at(b.values, p * 96 + 16 + j);
    return total;
  };
  const expected = float64(m * 80, (index) => {
    const [i, j] = [Math.floor(index / 80), index % 80 - 24];
    return j >= 0 && j < n ? product(i, j) : at(c.values, index);
  });
  assertClose("c", c.tensor.floats(), expected, { dtype: context.dtype, terms: k, scale: 5 });
});

Deno.test("gemm() without terms is beta * c, then the epilogue; without rows or columns it is nothing", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const c = sample(arena, [5, 16], 8);
  const bias = sample(arena, [16], 9);
  const empty = { a: arena.tensor([5, 0]), b: arena.tensor([0, 16]) };
  gemm({ ...empty, c: c.tensor, beta: 2, bias: bias.tensor, relu: true });
  const expected = float64(80, (i) => Math.max(0, 2 * at(c.values, i) + at(bias.values, i % 16)));
  assertClose("c", c.tensor.floats(), expected, { dtype: context.dtype, scale: 3 });
  gemm({ ...empty, c: c.tensor.fill(0xff) });
  assertEquals([...c.tensor.floats()], new Array(80).fill(0));
  gemm({ a: arena.tensor([0, 8]), b: arena.tensor([8, 16]), c: arena.tensor([0, 16]) });
  gemm({ a: arena.tensor([4, 8]), b: arena.tensor([8, 0]), c: arena.tensor([4, 0]) });
});
