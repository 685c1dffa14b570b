import { assertAlmostEquals, assertEquals } from "@std/assert";
import { Arena } from "../../ffi/mod.ts";
import { linear, residualNorm } from "../../models/ops.ts";
import { ParameterSet } from "../../models/parameters.ts";
import { Tape, Value } from "../../models/tape.ts";
import { openTestContext } from "../context.ts";

Deno.test("a value used twice receives the sum of both gradients, a parameter likewise", () => {
  using context = openTestContext();
  using set = new ParameterSet(context);
  const weight = set.declare("weight", [8, 8], { kind: "uniform", bound: 1 });
  const bias = set.declare("bias", [8], { kind: "zeros" });
  set.initialise(1);
  set.prepareTraining();
  using arena = new Arena(context);
  const ones = (): Float32Array<ArrayBuffer> => new Float32Array(24).fill(1);
  const run = (uses: number): { dx: Float32Array; dw: Float32Array; db: Float32Array } => {
    set.renew();
    const tape = new Tape(arena, { recording: true });
    const x = new Value(arena.from(ones(), [3, 8], context.dtype));
    for (let use = 0; use < uses; use++) {
      linear(tape, x, weight, bias).gradient = arena.from(ones(), [3, 8], context.dtype);
    }
    tape.backward();
    return {
      dx: x.gradient?.floats() ?? new Float32Array(),
      dw: weight.gradient.floats(),
      db: bias.gradient.floats(),
    };
  };
  const [once, twice] = [run(1), run(2)];
  for (const key of ["dx", "dw", "db"] as const) {
    once[key].forEach((value, i) => assertAlmostEquals(twice[key][i] ?? NaN, 2 * value, 2 ** -6));
  }
  assertEquals([...once.dw], new Array(64).fill(3));
  assertEquals([...once.db], new Array(8).fill(3));
});

Deno.test("a tape that does not record keeps nothing", () => {
  using context = openTestContext();
  using set = new ParameterSet(context);
  const gamma = set.declare("gamma", [8], { kind: "ones" });
  const beta = set.declare("beta", [8], { kind: "zeros" });
  set.initialise(1);
  using arena = new Arena(context);
  const tape = new Tape(arena, { recording: false });
  const x = new Value(arena.from(Float32Array.from({ length: 16 }, (_, i) => i), [2, 8], context.dtype));
  const { sum, out } = residualNorm(tape, x, null, { gamma, beta }, null);
  out.gradient = x.data;
  tape.backward();
  assertEquals(sum, x);
  assertEquals(x.gradient, null);
});
