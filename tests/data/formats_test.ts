import { assertEquals, assertThrows } from "@std/assert";
import {
  decodeUtf8,
  filterPairs,
  parseJson,
  parseJsonl,
  parseParallel,
  parseTsv,
  splitLines,
  splitPairs,
} from "../../data/mod.ts";

const LANGUAGES = { source: "en", target: "zh" };
const PAIRS = [{ source: "Hello.", target: "你好。" }, { source: 'A "quoted" word', target: "一个，词" }];

Deno.test("splitLines() ends lines at newlines alone", () => {
  assertEquals(splitLines("a\r\nb\u2028c\n\nd"), ["a", "b\u2028c", "", "d"]);
  assertEquals(splitLines("a\n"), ["a"]);
});

Deno.test("the formats read the same pairs", () => {
  const arrays = PAIRS.map(({ source, target }) => [source, target]);
  assertEquals(parseTsv('Hello.\t你好。\r\nA "quoted" word\t一个，词\n', "x.tsv"), PAIRS);
  assertEquals(parseTsv('Hello.\t你好。\tCC-BY\nA "quoted" word\t一个，词\tCC-BY', "x.tsv"), PAIRS);
  assertEquals(parseJson(JSON.stringify(arrays), "x.json", LANGUAGES), PAIRS);
  assertEquals(parseJson(JSON.stringify(PAIRS, null, 2), "x.json", LANGUAGES), PAIRS);
  assertEquals(
    parseJsonl(arrays.map((pair) => JSON.stringify(pair)).join("\n\n"), "x.jsonl", LANGUAGES),
    PAIRS,
  );
  const keyed = PAIRS.map(({ source, target }) => JSON.stringify({ zh: target, en: source, id: 1 })).join(
    "\n",
  );
  assertEquals(parseJsonl(keyed, "x.jsonl", LANGUAGES), PAIRS);
  const nested = PAIRS.map(({ source, target }) =>
    JSON.stringify({ translation: { en: source, zh: target } })
  );
  assertEquals(parseJsonl(nested.join("\n"), "x.jsonl", LANGUAGES), PAIRS);
  const texts = ["source", "target"] as const;
  const [source, target] = texts.map((side) => ({
    name: side,
    text: PAIRS.map((pair) => pair[side]).join("\n") + "\n",
  }));
  if (source !== undefined && target !== undefined) assertEquals(parseParallel(source, target), PAIRS);
});

Deno.test("a malformed line is an error that names file and line", () => {
  const json = '[\n["a", "b"],\n\n["c, ]", {"d": [1, "\\""]}],\n["e", "f"]]';
  const cases: [() => unknown, string][] = [
    [() => parseTsv("a\tb\nc d\n", "x.tsv"), "Cannot read x.tsv line 2 as it must be source, tab, target"],
    [() => parseTsv("a\tb\n\nc\td", "x.tsv"), "x.tsv line 2"],
    [
      () => parseTsv("a\tb\nc\td\te", "x.tsv"),
      "x.tsv line 2 as it must have 2 columns as line 1 has: there are 3",
    ],
    [() => parseJson(json, "x.json", LANGUAGES), "x.json line 4 as element 1 must be [source, target]"],
    [() => parseJson('[["a", "b"],\n["c" "d"]]', "x.json", LANGUAGES), "x.json line 2 as it must be JSON"],
    [() => parseJson('[["a", "b"],\n["c', "x.json", LANGUAGES), "x.json line 2 as it must be JSON"],
    [() => parseJson('{"a": 1}', "x.json", LANGUAGES), "must be an array"],
    [() => parseJson('[["a", "b", "c"]]', "x.json", LANGUAGES), "element 0"],
    [() => parseJson("[]", "x.json", LANGUAGES), "the array is empty"],
    [
      () => parseJsonl('["a", "b"]\n{"en": "a"}', "x.jsonl", LANGUAGES),
      "x.jsonl line 2 as it must be [source, target]",
    ],
    [() => parseJsonl('["a", "b"]\n["a", "b"', "x.jsonl", LANGUAGES), "x.jsonl line 2 as it must be JSON"],
    [
      () => parseParallel({ text: "a\nb\n", name: "x.en" }, { text: "c\n", name: "x.zh" }),
      "there are 2 and 1",
    ],
  ];
  for (const [read, message] of cases) assertThrows(read, SyntaxError, message);
});

Deno.test("an empty file is an error", () => {
  const full = { text: "a", name: "x.en" };
  for (const text of ["", " \n\n"]) {
    assertThrows(() => parseTsv(text, "x.tsv"), SyntaxError, "x.tsv as it must hold sentences: it is empty");
    assertThrows(() => parseJson(text, "x.json", LANGUAGES), SyntaxError, "empty");
    assertThrows(() => parseJsonl(text, "x.jsonl", LANGUAGES), SyntaxError, "empty");
    assertThrows(() => parseParallel(full, { text, name: "x.zh" }), SyntaxError, "x.zh");
  }
});

Deno.test("decodeUtf8() names the line that is no UTF-8", () => {
  const text = (...parts: (string | number[])[]): Uint8Array =>
    Uint8Array.from(
      parts.flatMap((part) => typeof part === "string" ? [...new TextEncoder().encode(part)] : part),
    );
  assertEquals(decodeUtf8(text([0xef, 0xbb, 0xbf], "你好\n"), "x"), "你好\n");
  assertThrows(
    () => decodeUtf8(text("a\n好\nb", [0xff], "\nc"), "x.en"),
    SyntaxError,
    "x.en line 3 as it must be UTF-8",
  );
  assertThrows(() => decodeUtf8(text([0xff, 0xfe, 0x61, 0]), "x.en"), SyntaxError, "line 1");
  assertThrows(() => decodeUtf8(text("a\nb", [0xe4, 0xbd]), "x.en"), SyntaxError, "line 2");
});

Deno.test("splitPairs() holds out pairs whose sides stand nowhere else", () => {
  const pairs = Array.from({ length: 200 }, (_, i) => ({ source: `s${i % 150}`, target: `t${i}` }));
  const { train, dev, test } = splitPairs(pairs, { share: 0.1, most: 15 });
  assertEquals([dev.length, test.length], [15, 15]);
  const held = new Set([...dev, ...test].map(({ source }) => source));
  assertEquals(held.size, 30);
  assertEquals(train.some(({ source }) => held.has(source)), false);
  assertEquals(splitPairs(pairs, { share: 0.1, most: 15 }), { train, dev, test });
});

Deno.test("filterPairs() counts what it leaves out", () => {
  const { pairs, dropped } = filterPairs([
    { source: "one two three", target: "一二三" },
    { source: "", target: "一" },
    { source: "one two three four five", target: "一二三" },
    { source: "one", target: "一二三四" },
  ], { maxLength: 4, maxRatio: 3 });
  assertEquals(pairs.length, 1);
  assertEquals(dropped, { empty: 1, long: 1, ratio: 1 });
});
