import { assert, assertEquals } from "@std/assert";
import { syntheticPairs } from "../../data/synthetic.ts";

Deno.test("syntheticPairs() is deterministic, of the size asked for, and like news in length", () => {
  const options = { pairs: 400, words: 2000, unspacedWords: 2000 };
  const pairs = [...syntheticPairs(options)];
  assertEquals(pairs, [...syntheticPairs(options)]);
  assertEquals(pairs.length, 400);
  const mean = (length: (pair: (typeof pairs)[number]) => number): number =>
    pairs.reduce((sum, pair) => sum + length(pair), 0) / pairs.length;
  const words = mean(({ source }) => source.split(" ").length);
  const characters = mean(({ target }) => target.length);
  assert(words > 20 && words < 24, String(words));
  assert(characters > 20 && characters < 28, String(characters));
  assert(pairs.every(({ target }) => /^[\p{Script=Han}，]+。$/u.test(target)));
});
