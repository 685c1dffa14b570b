import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertLess,
  assertThrows,
} from "@std/assert";
import { Arena, ATTENTION_FORMS } from "../../ffi/mod.ts";
import {
  beamSearch,
  EOS_ID,
  greedy,
  type Hypothesis,
  lengthPenalty,
  scoreSentences,
  Tape,
  type Transformer,
} from "../../models/mod.ts";
import { capacityOf } from "../../models/batch.ts";
import { StagedBatch } from "../../models/staging.ts";
import { openTestContext } from "../context.ts";
import { batchOf, randomPairs, SMALL, trainedModel } from "./fixtures.ts";

const LENGTHS = [5, 1, 3, 6, 2, 4, 5, 7, 3];

function sourcesOf(seed: number): { plain: number[][]; marked: number[][] } {
  const plain = randomPairs(seed, LENGTHS, SMALL).sources;
  return { plain, marked: plain.map((ids) => [...ids, EOS_ID]) };
}

/** Greedy decoding by running the whole prefix through the model for every token. */
function recomputed(
  model: Transformer,
  source: number[],
  limit: number,
): { ids: number[]; logProbability: number } {
  const ids: number[] = [];
  let logProbability = 0;
  while (ids.length < limit) {
    const batch = batchOf({ sources: [source], targets: [ids] });
    using arena = new Arena(model.context);
    const staged = new StagedBatch(arena, capacityOf(batch), false);
    staged.upload(batch);
    const pass = { tape: new Tape(arena, { recording: false }), dropout: null, deterministic: false };
    const logits = model.forward(pass, staged.device).data;
    const row = logits.slice(ids.length, 1).floats().slice(0, model.config.targetVocabulary);
    const best = row.indexOf(Math.max(...row));
    logProbability -= Math.log(row.reduce((sum, value) => sum + Math.exp(value - (row[best] ?? 0)), 0));
    if (best === EOS_ID) break;
    ids.push(best);
  }
  return { ids, logProbability };
}

for (const attention of ATTENTION_FORMS) {
  Deno.test(`greedy() with its cache says what full recomputation says: ${attention}`, () => {
    using context = openTestContext();
    using model = trainedModel(context, { ...SMALL, attention });
    const { plain, marked } = sourcesOf(900);
    const limit = 9;
    const decoded = greedy(model, marked, { maxLength: () => limit });
    assertEquals(decoded.length, marked.length);
    const lengths = new Set<number>();
    decoded.forEach(([hypothesis], b) => {
      assert(hypothesis);
      const expected = recomputed(model, plain[b] ?? [], limit);
      assertEquals(hypothesis.ids, expected.ids, `sentence ${b}`);
      assertAlmostEquals(
        hypothesis.logProbability,
        expected.logProbability,
        context.dtype === "f32" ? 1e-3 : 0.2,
      );
      lengths.add(hypothesis.ids.length);
    });
    assertGreater(lengths.size, 2, "sentences end at different steps");
  });
}

Deno.test("beamSearch() of width 1 is greedy()", () => {
  using context = openTestContext();
  using model = trainedModel(context);
  const { marked } = sourcesOf(901);
  const ids = (all: Hypothesis[][]): number[][] => all.map(([best]) => best?.ids ?? []);
  assertEquals(ids(beamSearch(model, marked, { beam: 1 })), ids(greedy(model, marked)));
});

Deno.test("beamSearch() gives scores that rescoring confirms, best first", () => {
  using context = openTestContext();
  using model = trainedModel(context);
  const { plain, marked } = sourcesOf(902);
  const alpha = 0.7;
  const all = beamSearch(model, marked, { beam: 5, nbest: 5, alpha });
  let ended = 0;
  all.forEach((hypotheses, b) => {
    assertEquals(hypotheses.length, 5);
    const finished = hypotheses.filter((hypothesis) => hypothesis.finished);
    ended += finished.length;
    assertEquals(hypotheses.slice(0, finished.length), finished, "ended ones first");
    assertEquals(
      finished.map((one) => one.score),
      finished.map((one) => one.score).toSorted((x, y) => y - x),
    );
    assertEquals(new Set(hypotheses.map((one) => one.ids.join())).size, 5, "all different");
    if (finished.length === 0) return;
    const targets = finished.map((one) => one.ids);
    const scores = scoreSentences(model, batchOf({ sources: targets.map(() => plain[b] ?? []), targets }));
    finished.forEach((one, i) => {
      assertAlmostEquals(one.logProbability, scores[i] ?? NaN, context.dtype === "f32" ? 1e-3 : 0.2);
      assertAlmostEquals(one.score, one.logProbability / lengthPenalty(one.ids.length + 1, alpha), 1e-9);
    });
  });
  assertGreater(ended, 20);
});

Deno.test("a wider beam finds translations at least as probable, whatever is decoded beside", () => {
  using context = openTestContext();
  using model = trainedModel(context);
  const { marked } = sourcesOf(903);
  const best = (all: Hypothesis[][]): number[] => all.map(([one]) => one?.logProbability ?? NaN);
  const options = { beam: 8, alpha: 0 };
  const together = beamSearch(model, marked, options);
  const alone = beamSearch(model, marked, { ...options, batchTokens: 1 });
  if (context.dtype === "f32") {
    assertEquals(alone.map(([one]) => one?.ids), together.map(([one]) => one?.ids));
    const sum = (values: number[]): number => values.reduce((total, value) => total + value, 0);
    assertLess(sum(best(greedy(model, marked))), sum(best(together)) + 1e-3);
  }
  const early = beamSearch(model, marked, { beam: 4, nbest: 1 });
  const late = beamSearch(model, marked, { beam: 4, nbest: 4 });
  assertEquals(early.map(([one]) => one), late.map(([one]) => one), "stopping early changes nothing");
});

Deno.test("decoding respects its limits and reports progress", () => {
  using context = openTestContext();
  using model = trainedModel(context, SMALL, 1);
  const { marked } = sourcesOf(904);
  const seen: number[] = [];
  const short = greedy(model, marked, {
    maxLength: () => 3,
    batchTokens: 16,
    onProgress: (done) => seen.push(done),
  });
  assert(short.every(([one]) => one && one.ids.length <= 3 && one.finished === one.ids.length < 3));
  assertEquals(seen.at(-1), marked.length);
  assertGreater(seen.length, 2);
  const long = beamSearch(model, [marked[0] ?? []], { beam: 2, nbest: 2, maxLength: () => 10000 });
  assert(long[0]?.every((one) => one.ids.length <= SMALL.maxLength));
  assertEquals(greedy(model, []), []);
  assertEquals(beamSearch(model, []), []);
  const bytes = context.liveBytes;
  beamSearch(model, marked);
  assertEquals(context.liveBytes, bytes, "nothing leaks");
});

Deno.test("decoding refuses what does not fit", () => {
  using context = openTestContext();
  using model = trainedModel(context, SMALL, 0);
  assertThrows(() => greedy(model, [new Array(65).fill(4)]), RangeError, "at most 64 tokens: it has 65");
  assertThrows(() => greedy(model, [[4, 99]]), RangeError, "sentence 0 as ids must be 0 to 22: one is 99");
  assertThrows(() => beamSearch(model, [[4]], { beam: 0 }), RangeError, "beam");
  assertThrows(() => beamSearch(model, [[4]], { beam: 20 }), RangeError, "beam must be 1 to 19");
  assertThrows(() => beamSearch(model, [[4]], { beam: 2, nbest: 3 }), RangeError, "nbest");
  assertThrows(() => beamSearch(model, [[4]], { alpha: NaN }), RangeError, "alpha");
});
