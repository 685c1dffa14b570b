import { assert, assertEquals, assertGreater, assertLess, assertThrows } from "@std/assert";
import type { Context } from "../../ffi/mod.ts";
import {
  type ModelConfig,
  type StepMetrics,
  Trainer,
  type TrainerOptions,
  type TrainerState,
  Transformer,
} from "../../models/mod.ts";
import { openTestContext } from "../context.ts";
import { batchOf, randomPairs, relativeError, SMALL, TINY } from "./fixtures.ts";

const LENGTHS = [4, 2, 7, 5, 1, 3];

interface Run {
  steps: StepMetrics[];
  state: TrainerState;
}

/** Steps `from` to `to` of a run whose batches depend on the step's number alone. */
function train(
  context: Context,
  options: Omit<TrainerOptions, "model" | "schedule">,
  range: { from?: number; to: number; state?: TrainerState; config?: ModelConfig },
): Run {
  using model = new Transformer(context, range.config ?? TINY, 1);
  const schedule = { kind: "noam", factor: 1, width: 16, warmup: 20 } as const;
  using trainer = new Trainer({ model, schedule, smoothing: 0.1, deterministic: true, ...options });
  if (range.state) trainer.load(range.state);
  for (let step = range.from ?? 0; step < range.to; step++) {
    const lengths = LENGTHS.slice(step % 3);
    const pairs = Array.from(
      { length: options.accumulate ?? 1 },
      (_, i) => randomPairs(7 * step + i, lengths),
    );
    trainer.step(pairs.map((pair) => batchOf(pair)));
  }
  return { steps: trainer.readMetrics().steps, state: trainer.state() };
}

Deno.test("Trainer overfits one batch", () => {
  using context = openTestContext();
  using model = new Transformer(context, SMALL, 1);
  using trainer = new Trainer({
    model,
    schedule: { kind: "constant", rate: 5e-3, warmup: 10 },
    optimizer: { clip: 1 },
  });
  const batch = batchOf(randomPairs(1, LENGTHS, SMALL));
  for (let step = 0; step < 80; step++) trainer.step(batch);
  const { steps } = trainer.readMetrics();
  assertGreater(steps[0]?.nll ?? NaN, 2.5);
  assertLess(steps.at(-1)?.nll ?? NaN, 0.05);
  assertEquals(trainer.steps, 80);
  assertEquals(trainer.readMetrics().steps, [], "read once");
});

Deno.test("two halves of a batch accumulate to the whole", () => {
  using context = openTestContext();
  const { sources, targets } = randomPairs(1, LENGTHS);
  const gradients = [false, true].map((halves) => {
    using model = new Transformer(context, TINY, 1);
    const schedule = { kind: "constant", rate: 1e-3 } as const;
    using trainer = new Trainer({ model, schedule, smoothing: 0.1, accumulate: halves ? 2 : 1 });
    const part = (from: number, to: number): ReturnType<typeof batchOf> =>
      batchOf({ sources: sources.slice(from, to), targets: targets.slice(from, to) });
    trainer.step(halves ? [part(0, 2), part(2, 6)] : part(0, 6));
    const loss = trainer.readMetrics().loss;
    return { gradients: model.parameters.readGradients(), weights: model.parameters.read("master"), loss };
  });
  const [whole, sum] = gradients;
  assert(whole && sum);
  const tolerance = context.dtype === "f32" ? 1e-5 : 3e-2;
  assertLess(Math.abs(whole.loss - sum.loss), tolerance);
  for (const [name, values] of Object.entries(whole.gradients)) {
    const error = relativeError(sum.gradients[name] ?? [], values);
    // A bias of keys shifts all scores of a query alike: its gradient is nothing but rounding.
    if (!name.endsWith("bias")) assertLess(error, tolerance, name);
  }
});

Deno.test("micro-batches have dropout masks of their own", () => {
  using context = openTestContext();
  const batch = batchOf(randomPairs(1, LENGTHS));
  const [once, twice] = [1, 2].map((accumulate) => {
    using model = new Transformer(context, TINY, 1);
    using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 0 }, dropout: 0.3, accumulate });
    for (let step = 0; step < 2; step++) trainer.step(new Array(accumulate).fill(batch));
    return trainer.readMetrics().steps.map((step) => step.loss);
  });
  assert(once && twice);
  assertGreater(Math.abs((once[0] ?? NaN) - (once[1] ?? NaN)), 1e-4, "from step to step");
  assertGreater(Math.abs((once[0] ?? NaN) - (twice[0] ?? NaN)), 1e-4, "within a step");
});

for (const dropout of [0, 0.2]) {
  Deno.test(`a resumed run equals an uninterrupted one bit for bit: dropout ${dropout}`, () => {
    using context = openTestContext();
    const options = { dropout, seed: 3, optimizer: { weightDecay: 0.01, clip: 1 } };
    const whole = train(context, options, { to: 7 });
    const half = train(context, options, { to: 4 });
    const rest = train(context, { ...options, seed: 99 }, { from: 4, to: 7, state: half.state });
    assertEquals([...half.steps, ...rest.steps], whole.steps);
    assertEquals(rest.state, whole.state);
    assertEquals(train(context, options, { to: 7 }), whole, "the same run again");
    const other = train(context, { ...options, seed: 4 }, { to: 7 });
    assertEquals(
      other.state.weights["output.weight"]?.[0] === whole.state.weights["output.weight"]?.[0],
      dropout === 0,
    );
  });
}

for (const accumulate of [1, 2]) {
  Deno.test(`room for more than a batch changes nothing: ${accumulate} micro-batches`, () => {
    using context = openTestContext();
    const options = { dropout: 0.1, accumulate, optimizer: { clip: 0.5 } };
    const capacity = { sourceRows: 61, targetRows: 50, sentences: 9, maxSource: 11, maxTarget: 12 };
    const eager = train(context, { ...options, graph: false }, { to: 6 });
    const graph = train(context, { ...options, graph: true, capacity }, { to: 6 });
    const rounded = train(context, { ...options, graph: true }, { to: 6 });
    // On a GPU a product of other sizes may sum in another order.
    if (context.dtype === "f32") assertEquals(rounded.state, graph.state, "the room changes nothing");
    for (const [name, values] of Object.entries(eager.state.weights)) {
      // Reductions over rows may be split by their number: the same to rounding there, and to the bit in a graph.
      assertLess(
        relativeError(graph.state.weights[name] ?? [], values),
        context.dtype === "f32" ? 1e-4 : 3e-2,
        name,
      );
    }
  });
}

Deno.test("a replayed graph equals eager calls bit for bit", () => {
  using context = openTestContext();
  const pairs = randomPairs(1, LENGTHS);
  const states = [true, false].map((graph) => {
    using model = new Transformer(context, TINY, 1);
    const schedule = { kind: "constant", rate: 1e-2 } as const;
    const batch = batchOf(pairs);
    const capacity = { sourceRows: 28, targetRows: 28, sentences: 6, maxSource: 8, maxTarget: 8 };
    using trainer = new Trainer({ model, schedule, dropout: 0.1, deterministic: true, graph, capacity });
    for (let step = 0; step < 5; step++) trainer.step(batch);
    return { state: trainer.state(), steps: trainer.readMetrics().steps };
  });
  assertEquals(states[0], states[1]);
});

Deno.test("Trainer gives all memory back", () => {
  using context = openTestContext();
  using model = new Transformer(context, TINY, 1);
  const before = context.liveBytes;
  for (const graph of [false, true]) {
    using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 1e-3 }, graph });
    for (let step = 0; step < 3; step++) trainer.step(batchOf(randomPairs(step, LENGTHS)));
    assertGreater(context.liveBytes, before);
    trainer[Symbol.dispose]();
    trainer[Symbol.dispose]();
    // What remains of the first round are the gradients and moments, which belong to the model.
    if (graph) assertEquals(context.liveBytes, before + 3 * 4 * model.parameters.size);
  }
  model[Symbol.dispose]();
  assertEquals(context.liveBytes, 0);
});

Deno.test("a gradient that is not finite changes nothing and is reported", () => {
  using context = openTestContext();
  using model = new Transformer(context, TINY, 1);
  using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 1e-3 } });
  const weights = model.parameters.read("master");
  weights["encoder.0.self.qkv.bias"]?.fill(NaN);
  model.parameters.write("master", weights);
  trainer.step(batchOf(randomPairs(1, LENGTHS)));
  assertEquals(trainer.readMetrics().skipped, 1);
  assertEquals(model.parameters.read("master"), weights);
});

Deno.test("Trainer keeps more steps than its ring on the device holds", () => {
  using context = openTestContext();
  using model = new Transformer(context, { ...TINY, width: 8, heads: 1, feedForward: 8 }, 1);
  using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 1e-3 } });
  const batch = batchOf(randomPairs(1, [1]));
  for (let step = 0; step < 1030; step++) trainer.step(batch);
  const { steps, tokens } = trainer.readMetrics();
  assertEquals(steps.map((step) => step.step), Array.from({ length: 1030 }, (_, i) => i + 1));
  assertEquals(tokens, 2060);
  assert(steps.every((step, i) => i < 200 || step.loss < (steps[i - 200]?.loss ?? NaN)));
});

Deno.test("Trainer refuses what does not fit", () => {
  using context = openTestContext();
  using model = new Transformer(context, TINY, 1);
  const schedule = { kind: "constant", rate: 1e-3 } as const;
  const bad: readonly [Partial<TrainerOptions>, string][] = [
    [{ dropout: 1 }, "dropout"],
    [{ smoothing: -0.1 }, "smoothing"],
    [{ accumulate: 0 }, "accumulate"],
    [{ seed: 0.5 }, "seed"],
    [{ optimizer: { beta1: 1 } }, "beta1"],
    [{ optimizer: { clip: NaN } }, "clip"],
    [{ schedule: { kind: "constant", rate: -1 } }, "rate"],
  ];
  for (const [change, message] of bad) {
    assertThrows(() => new Trainer({ model, schedule, ...change }), RangeError, message);
  }
  using trainer = new Trainer({ model, schedule });
  const batch = batchOf(randomPairs(1, LENGTHS));
  assertThrows(() => trainer.step([batch, batch]), RangeError, "takes 1 batches: 2 given");
  const capacity = { sourceRows: 5, targetRows: 50, sentences: 9, maxSource: 11, maxTarget: 12 };
  using small = new Trainer({ model, schedule, graph: true, capacity });
  assertThrows(() => small.step(batch), RangeError, "sourceRows must be at most 5");
  const state = trainer.state();
  const { ["output.bias"]: _, ...rest } = state.weights;
  assertThrows(() => trainer.load({ ...state, weights: rest }), TypeError, "output.bias as it is missing");
  assertThrows(
    () => trainer.load({ ...state, m: { ...state.m, x: new Float32Array() } }),
    TypeError,
    "none of that name",
  );
  const short = { ...state.v, "output.bias": new Float32Array(3) };
  assertThrows(
    () => trainer.load({ ...state, v: short }),
    RangeError,
    "output.bias as it must hold 24 numbers",
  );
});
