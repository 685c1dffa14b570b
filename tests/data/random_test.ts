import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { Random } from "../../data/mod.ts";

Deno.test("Random gives the same numbers for the same seed and stream", () => {
  const draw = (seed: number, stream?: number): number[] => {
    const random = new Random(seed, stream);
    return Array.from({ length: 8 }, () => random.uint32());
  };
  assertEquals(draw(1), draw(1));
  assertNotEquals(draw(1), draw(2));
  assertNotEquals(draw(1), draw(1, 1));
  assertNotEquals(draw(1), draw(1 + 2 ** 32));
});

Deno.test("Random draws evenly", () => {
  const random = new Random(5);
  const counts = new Array<number>(10).fill(0);
  let sum = 0;
  for (let i = 0; i < 100_000; i++) {
    const bin = random.int(10);
    counts[bin] = (counts[bin] ?? 0) + 1;
    const value = random.next();
    assert(value >= 0 && value < 1);
    sum += value;
  }
  // 5 standard deviations of a binomial count (95) and of the mean (0.0009).
  for (const count of counts) assert(Math.abs(count - 10_000) < 475, String(counts));
  assert(Math.abs(sum / 100_000 - 0.5) < 0.0046);
});

Deno.test("Random.shuffle() permutes", () => {
  const list = Int32Array.from({ length: 100 }, (_, i) => i);
  const shuffled = new Random(9).shuffle(list.slice());
  assertNotEquals(shuffled, list);
  assertEquals(shuffled.toSorted(), list);
});

Deno.test("Random refuses an empty list and a bad seed", () => {
  assertThrows(() => new Random(1).pick([]), RangeError);
  assertThrows(() => new Random(NaN), RangeError, "seed");
});
