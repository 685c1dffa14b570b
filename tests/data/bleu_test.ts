// Expected values were produced with sacreBLEU 2.6.0 (pip), unless a comment says otherwise.
import { assertAlmostEquals, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { type BleuTokenizer, corpusBleu, sentenceBleu, tokenizeForBleu } from "../../data/mod.ts";
import { splitWords } from "../../data/_metric.ts";

const DOG_HYPOTHESES = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."];
const DOG_REFERENCES = [
  ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
  ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
];
const ZH_HYPOTHESES = [
  "短期政策方案很清楚:把最低工资提高到充分就业的水平,并扩大向无薪工人发放所得的税收信用。",
  "改革备受珍视的银行保密法是值得的。",
];
const ZH_REFERENCES = [
  "近期的政策对策很明确：把最低工资提升到足以一个全职工人及其家庭免于贫困的水平，扩大对无子女劳动者的工资所得税减免。",
  "改革顽固的银行保密法也值得尝试。",
];

const TOKENS: readonly (readonly [BleuTokenizer, string, string])[] = [
  ["zh", "2018年GDP增长3. 5%。", "2018 年 GDP 增 长 3 . 5 % 。"],
  ["zh", "“你好”——世界…", "“ 你 好 ” — — 世 界 …"],
  ["zh", "It cost €5 in 2018.", "It cost € 5 in 2018."],
  ["zh", "𠀀x好", "𠀀x 好"],
  ["zh", "a\u200bb\u3000c", "a \u200b b c"],
  ["zh", "U.S.-China 1,000.5 don't", "U . S . -China 1,000.5 don't"],
  ["zh", "don’t…stop", "don ’ t … stop"],
  ["zh", "AT&amp;T", "AT & amp ; T"],
  ["13a", "end 5.", "end 5 ."],
  ["13a", "A/B (c) [d] {e}", "A / B ( c ) [ d ] { e }"],
  ["13a", "他说:A.B,C &amp; D", "他说 : A . B , C & D"],
  ["13a", "10-year 3%", "10 - year 3 %"],
  ["13a", "&amp;lt;", "<"],
  ["13a", "a<skipped>b co-\nop two\nlines", "ab coop two lines"],
  ["char", "a 好𠀀", "a 好 𠀀"],
  ["none", "a  b.", "a b."],
];

Deno.test("tokenizeForBleu() splits as sacreBLEU does", () => {
  for (const [tokenizer, text, expected] of TOKENS) {
    assertEquals(splitWords(tokenizeForBleu(text, tokenizer)).join(" "), expected, `${tokenizer}: ${text}`);
  }
});

Deno.test("splitWords() takes Python's white space, not JavaScript's", () => {
  assertEquals(splitWords("a\x1cb\x85c\u3000d\u2028e"), ["a", "b", "c", "d", "e"]);
  assertEquals(splitWords("a\ufeffb"), ["a\ufeffb"]);
});

Deno.test("corpusBleu() matches sacreBLEU on several references", () => {
  const bleu = corpusBleu(DOG_HYPOTHESES, DOG_REFERENCES);
  assertAlmostEquals(bleu.score, 48.530827, 1e-6);
  assertEquals(bleu.signature, "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0-compat");
  assertEquals(bleu.shortSignature, "#:2|c:mixed|e:no|tok:13a|s:exp|v:2.6.0-compat");
  assertAlmostEquals(
    corpusBleu(DOG_HYPOTHESES, DOG_REFERENCES, { tokenize: "none" }).score,
    49.1919566,
    1e-7,
  );
  const byOrder = [1, 2, 3, 4, 5, 6].map((maxOrder) =>
    corpusBleu(DOG_HYPOTHESES, DOG_REFERENCES, { maxOrder })
  );
  assertEquals(byOrder.map(({ score }) => score.toFixed(2)), [
    "77.65",
    "60.50",
    "53.93",
    "48.53",
    "46.14",
    "43.28",
  ]);
});

Deno.test("corpusBleu() matches sacreBLEU on Chinese", () => {
  for (const tokenize of ["zh", "char"] as const) {
    const bleu = corpusBleu(ZH_HYPOTHESES, ZH_REFERENCES, { tokenize });
    assertStrictEquals(bleu.score, 19.24836073941261);
    assertEquals(bleu.counts, [35, 18, 9, 6]);
    assertEquals(bleu.totals, [61, 59, 57, 55]);
    assertStrictEquals(bleu.brevityPenalty, 0.8214195216114528);
    assertEquals(
      bleu.verbose,
      `BLEU|nrefs:1|case:mixed|eff:no|tok:${tokenize}|smooth:exp|version:2.6.0-compat = 19.25 ` +
        "57.4/30.5/15.8/10.9 (BP = 0.821 ratio = 0.836 hyp_len = 61 ref_len = 73)",
    );
  }
  assertStrictEquals(corpusBleu(ZH_HYPOTHESES, ZH_REFERENCES).score, 0);
});

Deno.test("corpusBleu() smooths and takes the effective order as sacreBLEU does", () => {
  const smoothed = corpusBleu(["a b c d"], ["a x c y"]);
  assertStrictEquals(smoothed.score, 18.99589214128981);
  assertEquals(smoothed.precisions, [50, 100 / 6, 12.5, 12.5]);
  assertStrictEquals(corpusBleu(["", ""], ["a", "b"]).score, 0);
  assertStrictEquals(corpusBleu(["the cat"], ["the cat"]).score, 0);
  assertStrictEquals(
    corpusBleu(["the cat"], ["the cat"], { effectiveOrder: true }).score,
    100.00000000000004,
  );
  assertStrictEquals(sentenceBleu("the cat sat", ["the cat sat on"]).score, 71.65313105737896);
  const text: [string[], string[]] = [["the cat sat on the mat today ."], ["a cat sat near the mat ."]];
  assertAlmostEquals(corpusBleu(...text).score, 16.515821590069027, 1e-12);
  assertStrictEquals(corpusBleu(...text, { smooth: "none" }).score, 0);
  assertAlmostEquals(corpusBleu(...text, { smooth: "floor" }).score, 8.78360261971396, 1e-12);
  assertAlmostEquals(
    corpusBleu(...text, { smooth: "floor", smoothValue: 0.25 }).score,
    13.888095170058955,
    1e-12,
  );
  assertAlmostEquals(corpusBleu(...text, { smooth: "add-k" }).score, 27.33162784822734, 1e-12);
  assertAlmostEquals(
    corpusBleu(...text, { smooth: "add-k", smoothValue: 0.25 }).score,
    13.864088001366058,
    1e-12,
  );
  assertEquals(
    corpusBleu(...text, { smooth: "floor" }).signature,
    "nrefs:1|case:mixed|eff:no|tok:13a|smooth:floor[0.10]|version:2.6.0-compat",
  );
  assertEquals(
    corpusBleu(...text, { smooth: "add-k", smoothValue: 0.25, lowercase: true }).signature,
    "nrefs:1|case:lc|eff:no|tok:13a|smooth:add-k[0.25]|version:2.6.0-compat",
  );
});

Deno.test("corpusBleu() ignores case where asked to", () => {
  assertStrictEquals(
    corpusBleu(["THE CAT SAT ON"], ["the cat sat on"], { lowercase: true }).score,
    100.00000000000004,
  );
});

Deno.test("corpusBleu() allows a varying number of references", () => {
  const bleu = corpusBleu(["a b c d", "e f g h"], [["a b c d", "x"], [null, "e f g h"]]);
  assertAlmostEquals(bleu.score, 100, 1e-9);
  assertEquals(bleu.signature.split("|")[0], "nrefs:var");
});

Deno.test("corpusBleu() takes the shorter of two references equally close in length", () => {
  const bleu = corpusBleu(["a b c d"], [["a b c d e"], ["a b c"]]);
  assertEquals([bleu.referenceLength, bleu.brevityPenalty], [3, 1]);
});

Deno.test("corpusBleu() prints ties as Python does", () => {
  // 1 of 16 is 6.25 %: Python prints 6.2, toFixed() 6.3.
  const words = Array.from({ length: 15 }, (_, i) => `x${i}`).join(" ");
  const other = Array.from({ length: 15 }, (_, i) => `y${i}`).join(" ");
  const bleu = corpusBleu([`a ${words}`], [`a ${other}`], { maxOrder: 1 });
  assertEquals(bleu.verbose.includes(" 6.25 6.2 ("), true, bleu.verbose);
});

Deno.test("corpusBleu() gives a reproducible confidence interval", () => {
  const options = { bootstrap: 200, seed: 7 };
  const first = corpusBleu(DOG_HYPOTHESES, DOG_REFERENCES, options);
  assertEquals(first, corpusBleu(DOG_HYPOTHESES, DOG_REFERENCES, options));
  assertEquals(first.signature.startsWith("nrefs:2|bs:200|seed:7|case:mixed|"), true);
  const { mean = 0, margin = 0 } = first.confidence ?? {};
  assertEquals(mean > 20 && mean < 90 && margin > 0, true, `${mean} ± ${margin}`);
});

Deno.test("corpusBleu() refuses what cannot be scored", () => {
  assertThrows(() => corpusBleu(["a", "b"], ["a"]), RangeError, "2 hypotheses and 1 references");
  assertThrows(() => corpusBleu(["a", "b"], [["a", null]]), RangeError, "segment 2 has none");
  assertThrows(() => corpusBleu(["a"], ["a"], { maxOrder: 0 }), RangeError, "maxOrder");
  assertThrows(
    () => corpusBleu(["a"], ["a"], { tokenize: "intl" as BleuTokenizer }),
    RangeError,
    "13a, zh, char, none",
  );
});
