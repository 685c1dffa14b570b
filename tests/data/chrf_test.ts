// Expected values were produced with sacreBLEU 2.6.0 (pip).
import { assertAlmostEquals, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { corpusChrf, sentenceChrf } from "../../data/mod.ts";

const HYPOTHESES = [
  "短期政策方案很清楚:把最低工资提高到充分就业的水平,并扩大向无薪工人发放所得的税收信用。",
  "改革备受珍视的银行保密法是值得的。",
];
const REFERENCES = [
  "近期的政策对策很明确：把最低工资提升到足以一个全职工人及其家庭免于贫困的水平，扩大对无子女劳动者的工资所得税减免。",
  "改革顽固的银行保密法也值得尝试。",
];

Deno.test("corpusChrf() matches sacreBLEU on Chinese", () => {
  const chrf = corpusChrf(HYPOTHESES, REFERENCES);
  assertAlmostEquals(chrf.score, 18.051132246336103, 1e-12);
  assertEquals(
    chrf.verbose,
    "chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0-compat = 18.05",
  );
});

Deno.test("sentenceChrf() with words is chrF++", () => {
  const chrf = sentenceChrf("The cat sat.", ["The cat sat down."], { wordOrder: 2 });
  assertAlmostEquals(chrf.score, 62.81244938950311, 1e-12);
  assertEquals(chrf.name, "chrF2++");
});

Deno.test("corpusChrf() does not blame n-grams longer than the reference", () => {
  const short = corpusChrf(["abcdefgh", "the cat sat"], ["abc", "the cat sits"]);
  assertAlmostEquals(short.score, 60.77841249052183, 1e-12);
  const withWords = corpusChrf(["(abc) defgh!", "the cat"], ["'abc", "the dog"], { wordOrder: 2 });
  assertAlmostEquals(withWords.score, 18.168969776731085, 1e-12);
});

Deno.test("corpusChrf() takes the best of several references", () => {
  const one = corpusChrf(["the cat"], ["the cat"]).score;
  assertStrictEquals(corpusChrf(["the cat"], [["a dog"], ["the cat"]]).score, one);
  assertAlmostEquals(one, 100, 1e-9);
});

Deno.test("corpusChrf() counts code points, and no white space unless told to", () => {
  assertAlmostEquals(corpusChrf(["𠀀 𠀁"], ["𠀀𠀁"]).score, 100, 1e-9);
  assertEquals(corpusChrf(["a b"], ["ab"], { whitespace: true }).score < 100, true);
  assertStrictEquals(corpusChrf([""], ["abc"]).score, 0);
});

Deno.test("corpusChrf() refuses unequal numbers", () => {
  assertThrows(() => corpusChrf(["a"], ["a", "b"]), RangeError, "1 hypotheses and 2 references");
});
