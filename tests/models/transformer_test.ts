import { assert, assertAlmostEquals, assertEquals, assertLess, assertThrows } from "@std/assert";
import { Arena, ATTENTION_FORMS, type AttentionForm, type Context } from "../../ffi/mod.ts";
import {
  type Batch,
  evaluateLoss,
  parameterCount,
  Tape,
  Trainer,
  trainingFlops,
  Transformer,
} from "../../models/mod.ts";
import { capacityOf } from "../../models/batch.ts";
import { sinusoids, Sites } from "../../models/layers.ts";
import { StagedBatch } from "../../models/staging.ts";
import { openTestContext } from "../context.ts";
import { batchOf, randomPairs, relativeError, SMALL, TINY } from "./fixtures.ts";

/** Logits [Rt, V] of a batch, without dropout. */
function logitsOf(model: Transformer, batch: Batch): Float32Array[] {
  using arena = new Arena(model.context);
  const padded = batch.sourceKeyLengths !== undefined;
  const staged = new StagedBatch(arena, capacityOf(batch), padded);
  staged.upload(batch);
  const pass = { tape: new Tape(arena, { recording: false }), dropout: null, deterministic: false };
  const logits = model.forward(pass, staged.device).data;
  const values = logits.floats();
  const V = logits.columns;
  return Array.from({ length: logits.rows }, (_, row) => {
    return values.slice(row * V, row * V + model.config.targetVocabulary);
  });
}

/** Rows of sentence b of a batch's targets, `count` of them. */
function rowsOf<T>(rows: readonly T[], batch: Batch, b: number, count: number): T[] {
  const start = batch.targetOffsets[b] ?? 0;
  return rows.slice(start, start + count);
}

function lossCurve(context: Context, attention: AttentionForm, pad: number | null): number[] {
  using model = new Transformer(context, { ...SMALL, attention }, 5);
  const schedule = { kind: "inverse_sqrt", rate: 2e-3, warmup: 10 } as const;
  using trainer = new Trainer({ model, schedule, smoothing: 0.1, deterministic: true });
  for (let step = 0; step < 50; step++) {
    trainer.step(batchOf(randomPairs(step, [4, 2, 7, 5, 9, 1, 3, 6], SMALL), pad));
  }
  return trainer.readMetrics().steps.map((step) => step.loss);
}

Deno.test("the three attention forms train alike, dotscale on the padded layout", () => {
  using context = openTestContext();
  const exact = context.dtype === "f32";
  const expected = lossCurve(context, "imp_flash_attn", null);
  assertEquals(expected.length, 50);
  assertLess(expected[49] ?? NaN, (expected[0] ?? NaN) * 0.95);
  for (const [form, pad] of [["flash_attn", null], ["dotscale", null], ["dotscale", 0]] as const) {
    lossCurve(context, form, pad).forEach((loss, step) => {
      const relative = Math.abs(loss - (expected[step] ?? NaN)) / loss;
      assertLess(relative, exact ? 1e-4 : 2e-2, `${form}, padding ${pad}, step ${step}`);
    });
  }
});

for (const attention of ATTENTION_FORMS) {
  Deno.test(`a later target token changes no earlier output: ${attention}`, () => {
    using context = openTestContext();
    using model = new Transformer(context, { ...TINY, attention, encoderLayers: 2, decoderLayers: 2 }, 1);
    const pairs = randomPairs(2, [9, 4, 12]);
    const before = batchOf(pairs);
    const expected = logitsOf(model, before);
    for (const changed of [1, 5, 8]) {
      const after = batchOf(pairs);
      const row = after.targetOffsets[2] ?? 0;
      after.targetInput[row + changed] = 4 + ((after.targetInput[row + changed] ?? 0) - 3) % 15;
      const actual = logitsOf(model, after);
      for (const b of [0, 1]) {
        assertEquals(rowsOf(actual, after, b, 5), rowsOf(expected, before, b, 5), "another sentence");
      }
      assertEquals(rowsOf(actual, after, 2, changed), rowsOf(expected, before, 2, changed), "earlier rows");
      const here = rowsOf(actual, after, 2, 13)[changed] ?? new Float32Array();
      assert(relativeError(here, rowsOf(expected, before, 2, 13)[changed] ?? []) > 1e-3, "the row itself");
    }
  });

  Deno.test(`padding changes nothing: ${attention}`, () => {
    using context = openTestContext();
    using model = new Transformer(context, { ...TINY, attention, encoderLayers: 2, decoderLayers: 2 }, 1);
    const pairs = randomPairs(3, [9, 1, 12, 5]);
    const packed = batchOf(pairs);
    const padded = batchOf(pairs, 20);
    const [expected, actual] = [logitsOf(model, packed), logitsOf(model, padded)];
    pairs.targets.forEach((target, b) => {
      const count = target.length + 1;
      rowsOf(actual, padded, b, count).forEach((row, i) => {
        const error = relativeError(row, rowsOf(expected, packed, b, count)[i] ?? []);
        assertLess(error, context.dtype === "f32" ? 1e-5 : 3e-2);
      });
    });
    const [first, second] = [evaluateLoss(model, [packed]), evaluateLoss(model, [padded])];
    assertEquals(first.tokens, second.tokens);
    assertAlmostEquals(first.nll, second.nll, context.dtype === "f32" ? 1e-5 : 1e-2);
  });
}

Deno.test("the batch's other sentences change nothing", () => {
  using context = openTestContext();
  using model = new Transformer(context, TINY, 1);
  const pairs = randomPairs(3, [9, 1, 12, 5]);
  const all = evaluateLoss(model, [batchOf(pairs)]);
  const one = pairs.sources.map((source, b) =>
    batchOf({ sources: [source], targets: [pairs.targets[b] ?? []] })
  );
  assertAlmostEquals(evaluateLoss(model, one).nll, all.nll, context.dtype === "f32" ? 1e-5 : 1e-2);
});

Deno.test("evaluateLoss() twice gives identical numbers, with a trainer's dropout alive", () => {
  using context = openTestContext();
  using model = new Transformer(context, TINY, 1);
  using trainer = new Trainer({ model, schedule: { kind: "constant", rate: 1e-3 }, dropout: 0.3 });
  const batch = batchOf(randomPairs(4, [5, 3, 8]));
  trainer.step(batch);
  const first = evaluateLoss(model, [batch, batch], { smoothing: 0.1 });
  assertEquals(evaluateLoss(model, [batch, batch], { smoothing: 0.1 }), first);
  assertAlmostEquals(first.perplexity, Math.exp(first.nll));
  assert(Number.isNaN(evaluateLoss(model, []).nll), "no batch, no loss");
});

Deno.test("Transformer initialises by Xavier's rule, from the seed alone", () => {
  using context = openTestContext();
  const config = { ...SMALL, width: 64 };
  using model = new Transformer(context, config, 9);
  using same = new Transformer(context, config, 9);
  using other = new Transformer(context, config, 10);
  const weights = model.parameters.read("master");
  assertEquals(weights, same.parameters.read("master"));
  const bound = Math.sqrt(6 / 128);
  const qkv = weights["encoder.0.self.qkv.weight"] ?? new Float32Array();
  assertEquals(qkv.length, 64 * 192);
  const most = Math.max(...qkv.map(Math.abs));
  assert(most <= bound && most > 0.98 * bound, "each of q, k and v as a square matrix");
  const variance = qkv.reduce((sum, value) => sum + value * value, 0) / qkv.length;
  assertAlmostEquals(variance / (bound * bound / 3), 1, 0.05);
  assert(weights["decoder.norm.gamma"]?.every((value) => value === 1));
  assert(weights["output.bias"]?.every((value) => value === 0));
  assert(relativeError(other.parameters.read("master")["encoder.0.self.qkv.weight"] ?? [], qkv) > 0.1);
});

Deno.test("parameterCount() counts what the model declares", () => {
  using context = openTestContext();
  const even = { ...SMALL, sourceVocabulary: 24, targetVocabulary: 24 }; // no padding of the vocabulary
  for (const tied of ["none", "target", "all"] as const) {
    using model = new Transformer(context, { ...even, tied });
    const declared = model.parameters.all.reduce((sum, parameter) => sum + parameter.size, 0);
    assertEquals(parameterCount({ ...even, tied }), declared);
  }
  const seed = { ...SMALL, encoderLayers: 6, decoderLayers: 6, width: 512, heads: 8, feedForward: 2048 };
  assertEquals(
    parameterCount({ ...seed, sourceVocabulary: 32000, targetVocabulary: 32000 }),
    93_324_544,
  );
  // One source token: four projections, two feed-forward, keys and values for the decoder, one score.
  const flops = trainingFlops(TINY, { sentences: 1, sourceLength: 1, targetLength: 0 });
  assertEquals(flops, 6 * (4 * 256 + 2 * 16 * 24 + 2 * 256) + 12 * 16);
});

Deno.test("sinusoids() are those of the paper", () => {
  const table = sinusoids(50, 16);
  for (const [position, i] of [[0, 0], [1, 0], [7, 3], [49, 7]] as const) {
    const angle = position / Math.pow(10000, 2 * i / 16);
    assertAlmostEquals(table[position * 16 + 2 * i] ?? NaN, Math.sin(angle), 1e-7);
    assertAlmostEquals(table[position * 16 + 2 * i + 1] ?? NaN, Math.cos(angle), 1e-7);
  }
});

Deno.test("Sites gives every place of dropout a number of its own", () => {
  const sites = new Sites();
  assertEquals(new Set(Array.from({ length: 50 }, () => sites.take())).size, 50);
});

Deno.test("Transformer and batches refuse what does not fit", () => {
  using context = openTestContext();
  const bad: readonly [Partial<typeof TINY>, string][] = [
    [{ heads: 3 }, "width / heads"],
    [{ width: 20, heads: 1 }, "width must be a multiple of 8"],
    [{ encoderLayers: 0 }, "encoderLayers"],
    [{ sourceVocabulary: -1 }, "sourceVocabulary"],
    [{ tied: "all" }, "vocabularies must be one"],
    [{ feedForward: 12.5 }, "feedForward"],
  ];
  for (const [change, message] of bad) {
    assertThrows(() => new Transformer(context, { ...TINY, ...change }), RangeError, message);
  }
  using model = new Transformer(context, TINY);
  const batch = batchOf(randomPairs(4, [5, 3]));
  const refused: readonly [Partial<Batch>, string][] = [
    [{ sourceIds: batch.sourceIds.map(() => 23) }, "sourceIds must be 0 to 22"],
    [{ targetInput: batch.targetInput.map(() => -1) }, "targetInput must be 0 to 18"],
    [{ sourcePositions: batch.sourcePositions.map(() => 64) }, "sourcePositions must be 0 to 63"],
    [{ sourceOffsets: Int32Array.of(0, 99, 10) }, "sourceOffsets must rise"],
    [{ targetOffsets: Int32Array.of(0, 1) }, "targetOffsets must hold 3 numbers"],
    [{ maxTarget: 2 }, "targetOffsets must rise by at most 2"],
  ];
  for (const [change, message] of refused) {
    assertThrows(() => evaluateLoss(model, [{ ...batch, ...change }]), RangeError, message);
  }
  assertThrows(() => new Transformer(context, TINY).parameters.write("master", {}), TypeError, "missing");
});
