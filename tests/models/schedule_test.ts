import { assertAlmostEquals, assertThrows } from "@std/assert";
import { learningRate, type Schedule } from "../../models/mod.ts";

const CASES: readonly [string, Schedule, readonly [number, number][]][] = [
  ["noam", { kind: "noam", factor: 1, width: 512, warmup: 4000 }, [
    [1, 512 ** -0.5 * 4000 ** -1.5],
    [2000, 2000 / (Math.sqrt(512) * 4000 * Math.sqrt(4000))],
    [4000, 1 / Math.sqrt(512 * 4000)],
    [16000, 1 / Math.sqrt(512 * 16000)],
  ]],
  ["inverse_sqrt", { kind: "inverse_sqrt", rate: 5e-4, warmup: 100 }, [
    [1, 5e-6],
    [50, 2.5e-4],
    [100, 5e-4],
    [400, 2.5e-4],
    [10000, 5e-5],
  ]],
  ["inverse_sqrt without warm-up", { kind: "inverse_sqrt", rate: 1, warmup: 0 }, [[1, 1], [4, 0.5]]],
  ["constant", { kind: "constant", rate: 0.3 }, [[1, 0.3], [99, 0.3]]],
  ["constant with warm-up", { kind: "constant", rate: 0.3, warmup: 3 }, [[1, 0.1], [2, 0.2], [3, 0.3], [
    4,
    0.3,
  ]]],
  ["cosine", { kind: "cosine", rate: 2, warmup: 10, steps: 110, floor: 1 }, [
    [5, 1],
    [10, 2],
    [60, 1.5],
    [35, 1 + 0.5 * (1 + Math.SQRT1_2)],
    [110, 1],
    [500, 1],
  ]],
];

for (const [name, schedule, points] of CASES) {
  Deno.test(`learningRate() follows its formula: ${name}`, () => {
    for (const [step, rate] of points) assertAlmostEquals(learningRate(schedule, step) / rate, 1, 1e-12);
  });
}

Deno.test("learningRate() refuses step 0 and negative constants", () => {
  assertThrows(() => learningRate({ kind: "constant", rate: 1 }, 0), RangeError, "step");
  assertThrows(
    () => learningRate({ kind: "noam", factor: -1, width: 8, warmup: 1 }, 1),
    RangeError,
    "factor",
  );
});
