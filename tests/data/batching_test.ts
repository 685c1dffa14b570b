import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import {
  type Batch,
  Batcher,
  BOS,
  type EncodedPairs,
  encodePairs,
  type Encoder,
  EOS,
  fillTo,
  type Layout,
  makeBatch,
  PAD,
  paddingShare,
  Random,
} from "../../data/mod.ts";

/** A word is its number. */
const numbers: Encoder = { encode: (text) => text.split(" ").filter((word) => word !== "").map(Number) };

function randomCorpus(count: number, longest: number): EncodedPairs {
  const random = new Random(21);
  const sentence = (): string =>
    Array.from({ length: 1 + random.int(longest) }, () => String(10 + random.int(90))).join(" ");
  return encodePairs(
    Array.from({ length: count }, () => ({ source: sentence(), target: sentence() })),
    numbers,
    numbers,
  );
}

function allBatches(batcher: Batcher, epoch: number): Batch[] {
  return [...batcher.epoch(epoch)];
}

Deno.test("makeBatch() packs rows one after another", () => {
  const batch = makeBatch([[10, 11, EOS], [12, EOS]], [[20], [21, 22]]);
  assertEquals(batch.sourceIds, Int32Array.of(10, 11, EOS, 12, EOS));
  assertEquals(batch.sourcePositions, Int32Array.of(0, 1, 2, 0, 1));
  assertEquals(batch.sourceOffsets, Int32Array.of(0, 3, 5));
  assertEquals(batch.targetInput, Int32Array.of(BOS, 20, BOS, 21, 22));
  assertEquals(batch.targetOutput, Int32Array.of(20, EOS, 21, 22, EOS));
  assertEquals(batch.targetPositions, Int32Array.of(0, 1, 0, 1, 2));
  assertEquals(batch.targetOffsets, Int32Array.of(0, 2, 5));
  assertEquals([batch.sourceTokens, batch.targetTokens, batch.maxSource, batch.maxTarget], [5, 5, 3, 3]);
  assertEquals(batch.sourceKeyLengths, undefined);
  assertEquals(paddingShare(batch), 0);
});

Deno.test("makeBatch() pads to equal lengths", () => {
  const batch = makeBatch([[10, 11, EOS], [12, EOS]], [[20], [21, 22]], { layout: "padded" });
  assertEquals(batch.sourceIds, Int32Array.of(10, 11, EOS, 12, EOS, PAD));
  assertEquals(batch.sourceOffsets, Int32Array.of(0, 3, 6));
  assertEquals(batch.sourceKeyLengths, Int32Array.of(3, 2));
  assertEquals(batch.targetInput, Int32Array.of(BOS, 20, PAD, BOS, 21, 22));
  assertEquals(batch.targetOutput, Int32Array.of(20, EOS, PAD, 21, 22, EOS));
  assertEquals(batch.targetKeyLengths, Int32Array.of(2, 3));
  assertEquals(batch.targetTokens, 5);
  assertEquals(paddingShare(batch), 2 / 12);
});

Deno.test("makeBatch() takes no sentences, and sources without targets", () => {
  assertEquals(makeBatch([], []).sourceRows, 0);
  assertEquals(paddingShare(makeBatch([], [])), 0);
  const batch = makeBatch([[10, EOS]], [[]]);
  assertEquals(batch.targetInput, Int32Array.of(BOS));
  assertEquals(batch.targetOutput, Int32Array.of(EOS));
  assertThrows(() => makeBatch([[1]], []), RangeError, "1 and 0");
});

Deno.test("fillTo() adds rows of no sentence and sentences without rows", () => {
  for (const layout of ["packed", "padded"] as const) {
    const batch = makeBatch([[10, 11, EOS], [12, EOS]], [[20], [21, 22]], { layout });
    const filled = fillTo(batch, { rows: 8, sentences: 4 });
    assertEquals([filled.sourceRows, filled.targetRows, filled.sentences], [8, 8, 4]);
    assertEquals(filled.sourceIds.length, 8);
    assertEquals(filled.sourceIds.slice(0, batch.sourceRows), batch.sourceIds);
    assertEquals([...filled.sourceIds.slice(batch.sourceRows)].every((id) => id === PAD), true);
    assertEquals([...filled.targetOutput.slice(batch.targetRows)].every((id) => id === PAD), true);
    const end = layout === "packed" ? 5 : 6;
    assertEquals([...filled.sourceOffsets], [0, 3, end, end, end]);
    if (layout === "padded") assertEquals([...filled.targetKeyLengths ?? []], [2, 3, 0, 0]);
    assertEquals(filled.targetTokens, 5);
    assertEquals(filled.indices, batch.indices);
  }
  const batch = makeBatch([[10, EOS]], [[20]]);
  assertEquals(fillTo(batch, { sourceRows: 3 }).targetRows, 2);
  assertThrows(() => fillTo(batch, { rows: 1 }), RangeError, "source rows must be at least 2");
  assertThrows(() => fillTo(batch, { sentences: 0 }), RangeError, "sentences");
});

Deno.test("encodePairs() drops what is empty or too long, and counts it", () => {
  const pairs = [
    { source: "10 11", target: "20" },
    { source: "", target: "20" },
    { source: "10", target: "  " },
    { source: "10 11 12 13", target: "20" },
    { source: "10", target: "20 21 22" },
    { source: "10 11 12", target: "20 21" },
  ];
  const encoded = encodePairs(pairs, numbers, numbers, { maxSource: 4, maxTarget: 3 });
  assertEquals(encoded.kept, Int32Array.of(0, 5));
  assertEquals(encoded.dropped, { long: 2, empty: 2 });
  assertEquals(encoded.source.at(1), Int32Array.of(10, 11, 12, EOS));
  assertEquals(encoded.target.at(1), Int32Array.of(20, 21));
  assertEquals(
    encodePairs(pairs, numbers, numbers, { sourceBos: true }).source.at(0),
    Int32Array.of(BOS, 10, 11, EOS),
  );
});

Deno.test("Batcher gives every sentence once an epoch, within its capacity", () => {
  const corpus = randomCorpus(503, 30);
  for (const layout of ["packed", "padded"] satisfies Layout[]) {
    for (
      const [rows, sentences, pool] of [[31, 1000, 100], [64, 5, 0], [257, 1000, 64], [5000, 7, 503]] as const
    ) {
      const batcher = new Batcher(corpus, { rows, sentences, pool, layout, seed: 3 });
      for (const epoch of [0, 1]) {
        const seen = new Uint8Array(503);
        for (const batch of batcher.epoch(epoch)) {
          assert(batch.sourceRows <= rows && batch.targetRows <= rows && batch.sentences <= sentences);
          batch.indices.forEach((index, b) => {
            seen[index] = (seen[index] ?? 0) + 1;
            const start = batch.sourceOffsets[b] ?? 0;
            const source = corpus.source.at(index);
            assertEquals(batch.sourceIds.slice(start, start + source.length), source);
          });
        }
        assertEquals(seen.every((count) => count === 1), true);
      }
    }
  }
});

Deno.test("Batcher is deterministic, and differs by epoch and seed", () => {
  const corpus = randomCorpus(200, 20);
  const orders = (seed: number, epoch: number): number[][] =>
    allBatches(new Batcher(corpus, { rows: 100, seed }), epoch).map((batch) => [...batch.indices]);
  assertEquals(orders(1, 4), orders(1, 4));
  assertNotEquals(orders(1, 4), orders(1, 5));
  assertNotEquals(orders(1, 4), orders(2, 4));
  const fixed = new Batcher(corpus, { rows: 100, shuffle: false });
  assertEquals(allBatches(fixed, 0), allBatches(fixed, 3));
});

Deno.test("Batcher goes on from a cursor", () => {
  const corpus = randomCorpus(100, 20);
  const run = (
    cursor: { epoch: number; batch: number },
    count: number,
  ): { batches: Batch[]; next: typeof cursor } => {
    const batches: Batch[] = [];
    let next = cursor;
    for (const step of new Batcher(corpus, { rows: 120, seed: 8 }).from(cursor)) {
      batches.push(step.batch);
      next = step.next;
      if (batches.length === count) break;
    }
    return { batches, next };
  };
  const perEpoch = new Batcher(corpus, { rows: 120, seed: 8 }).count();
  const whole = run({ epoch: 0, batch: 0 }, 3 * perEpoch);
  for (const cut of [1, perEpoch - 1, perEpoch, perEpoch + 2]) {
    const first = run({ epoch: 0, batch: 0 }, cut);
    const rest = run(first.next, 3 * perEpoch - cut);
    assertEquals([...first.batches, ...rest.batches], whole.batches);
  }
  assertEquals([...new Batcher(randomCorpus(0, 1), { rows: 1 }).from({ epoch: 0, batch: 0 })], []);
});

Deno.test("Batcher pads little where sentences are pooled by length", () => {
  const corpus = randomCorpus(1000, 40);
  const padding = (pool: number): number =>
    new Batcher(corpus, { rows: 600, pool, layout: "padded" }).statistics().padding;
  assert(padding(0) < 0.35, String(padding(0)));
  assert(padding(0) < padding(16));
  assertEquals(new Batcher(corpus, { rows: 600 }).statistics().padding, 0);
});

Deno.test("Batcher.statistics() adds up what the batches hold", () => {
  const corpus = randomCorpus(300, 25);
  for (const layout of ["packed", "padded"] satisfies Layout[]) {
    const batcher = new Batcher(corpus, { rows: 200, layout, seed: 2 });
    const batches = allBatches(batcher, 1);
    const sum = (value: (batch: Batch) => number): number =>
      batches.reduce((total, batch) => total + value(batch), 0);
    const { padding, ...statistics } = batcher.statistics(1);
    assertEquals(statistics, {
      batches: batches.length,
      sentences: 300,
      sourceTokens: sum((batch) => batch.sourceTokens),
      targetTokens: sum((batch) => batch.targetTokens),
      maxSentences: Math.max(...batches.map((batch) => batch.sentences)),
      maxSource: Math.max(...batches.map((batch) => batch.maxSource)),
      maxTarget: Math.max(...batches.map((batch) => batch.maxTarget)),
    });
    const rows = sum((batch) => batch.sourceRows + batch.targetRows);
    const tokens = statistics.sourceTokens + statistics.targetTokens;
    assert(Math.abs(padding - (1 - tokens / rows)) < 1e-12);
  }
});

Deno.test("Batcher says which option is wrong", () => {
  const corpus = randomCorpus(10, 20);
  assertThrows(() => new Batcher(corpus, { rows: 5 }), RangeError, "rows is 5");
  assertThrows(() => new Batcher(corpus, { rows: 0 }), RangeError, "rows must be a whole number >= 1");
  assertThrows(() => new Batcher(corpus, { rows: 50, pool: -1 }), RangeError, "pool");
  assertThrows(() => new Batcher(corpus, { rows: 50 }).batch(0, 99), RangeError, "index");
  assertThrows(() => new Batcher(corpus, { rows: 50 }).count(-1), RangeError, "epoch");
});
