import { assertAlmostEquals, assertEquals, assertLess } from "@std/assert";
import { Arena } from "../../ffi/mod.ts";
import { Adam, type AdamOptions } from "../../models/optimizer.ts";
import { ParameterSet } from "../../models/parameters.ts";
import { openTestContext } from "../context.ts";
import { generator, relativeError } from "./fixtures.ts";

/** Adam in float64 as its authors write it, clipping before and decay beside. */
function referenceAdam(
  w: number[],
  gradients: number[][],
  decays: boolean[],
  options: Required<AdamOptions>,
): void {
  const { beta1, beta2, eps, weightDecay, clip } = options;
  const [m, v] = [w.map(() => 0), w.map(() => 0)];
  gradients.forEach((gradient, index) => {
    const t = index + 1;
    const norm = Math.hypot(...gradient);
    const factor = clip > 0 && norm > clip ? clip / norm : 1;
    gradient.forEach((raw, i) => {
      const g = raw * factor;
      m[i] = beta1 * (m[i] ?? 0) + (1 - beta1) * g;
      v[i] = beta2 * (v[i] ?? 0) + (1 - beta2) * g * g;
      const [mHat, vHat] = [(m[i] ?? 0) / (1 - beta1 ** t), (v[i] ?? 0) / (1 - beta2 ** t)];
      const decay = decays[i] ? weightDecay : 0;
      w[i] = (w[i] ?? 0) - rateAt(t) * (mHat / (Math.sqrt(vHat) + eps) + decay * (w[i] ?? 0));
    });
  });
}

const rateAt = (step: number): number => 0.01 / step;

const CASES: readonly [string, Required<AdamOptions>][] = [
  ["plain", { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0, clip: 0 }],
  ["decay and clipping", { beta1: 0.8, beta2: 0.999, eps: 1e-4, weightDecay: 0.5, clip: 1.5 }],
];

for (const [name, options] of CASES) {
  Deno.test(`Adam follows its float64 reference: ${name}`, () => {
    using context = openTestContext();
    using set = new ParameterSet(context);
    const bias = set.declare("bias", [5], { kind: "ones" });
    const weight = set.declare("weight", [13, 7], { kind: "uniform", bound: 1 });
    set.initialise(4);
    using arena = new Arena(context);
    const hyper = arena.tensor([3], "f32");
    const norm = arena.tensor([2], "f32");
    const adam = new Adam(set, options);
    set.prepareTraining();
    const start = set.read("master");
    const w = [...start["weight"] ?? [], ...start["bias"] ?? []];
    const random = generator(2);
    const gradients = Array.from({ length: 6 }, () => w.map(() => Math.fround(random() - 0.5)));
    gradients.forEach((gradient, i) => {
      weight.gradient.write(Float32Array.from(gradient.slice(0, 91)));
      bias.gradient.write(Float32Array.from(gradient.slice(91)));
      hyper.write(Float32Array.from(adam.hyper(rateAt(i + 1), i + 1)));
      adam.update(hyper, norm);
      assertAlmostEquals(norm.floats()[0] ?? NaN, Math.hypot(...gradient), 1e-5);
    });
    referenceAdam(w, gradients, w.map((_, i) => i < 91), options);
    const end = set.read("master");
    assertLess(relativeError(end["weight"] ?? [], w.slice(0, 91)), 1e-6);
    assertLess(relativeError(end["bias"] ?? [], w.slice(91)), 1e-6);
    const rounded = weight.data.floats();
    assertLess(relativeError(rounded, end["weight"] ?? []), context.dtype === "f32" ? 1e-9 : 2 ** -8);
  });
}

Deno.test("ParameterSet reads back what was written, by name, and overwrites before it adds", () => {
  using context = openTestContext();
  using set = new ParameterSet(context);
  const a = set.declare("a", [3, 3], { kind: "zeros" });
  set.declare("b", [70], { kind: "ones" });
  set.initialise(0);
  const arrays = { a: Float32Array.from({ length: 9 }, (_, i) => i), b: new Float32Array(70).fill(0.5) };
  for (const buffer of ["master", "m", "v"] as const) {
    set.write(buffer, arrays);
    assertEquals(set.read(buffer), arrays);
  }
  assertEquals(a.data.floats(), arrays.a);
  assertEquals([a.claim(), a.claim()], [false, true]);
  set.renew();
  assertEquals(a.claim(), false);
});
