import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { BOS, Bpe, EOS, PAD, Random, trainVocabularies } from "../../data/mod.ts";
import { collapse, forEachChunk } from "../../data/_chunks.ts";

const TEXT = [
  "The cat sat on the mat, and the other cats sat there too.",
  "He didn't see the cat's hat: it's 1929 or 1989?",
  "我喜欢这本书，我不喜欢那本书。",
  "你喜欢看书吗？我喜欢看电影，也喜欢听音乐。",
  "aaaa aaa aa a aaaaa aaaaaaaa",
  "Größe naïve façade — “quoted” text… 100,000.5%",
];

const ODD = [
  "",
  "   ",
  "plain text",
  "  many   spaces\tand\ttabs \r\n ",
  "中文没有空格，English混在里面。",
  "emoji 👩‍👩‍👧‍👦 flag 🇨🇳 heart ❤️ and 𠀀𪚥",
  "control \u0000\u0001\u001b[0m \u007f\u0080 done",
  "a literal ▁ and ▁▁ twice, at the end ▁",
  "<pad> <s> </s> <unk> <0x41>",
  "عربي עברית ไทย हिन्दी 한국어 日本語カタカナ",
  "\u00a0no-break\u3000ideographic\u2028line\ufeffbom",
  "e\u0301 combining \u0301\u0302",
  "x".repeat(1000) + "好".repeat(1000),
];

Deno.test("Bpe gives any text back, white space aside", () => {
  for (const prefixSpace of [true, false]) {
    const bpe = Bpe.train(TEXT, { vocabSize: 400, prefixSpace });
    for (const text of [...TEXT, ...ODD]) assertEquals(bpe.decode(bpe.encode(text)), collapse(text));
  }
});

Deno.test("Bpe gives random code points back", () => {
  const bpe = Bpe.train(TEXT, { vocabSize: 350 });
  const random = new Random(3);
  for (let round = 0; round < 200; round++) {
    const points = Array.from({ length: random.int(30) }, () => {
      const limit = random.pick([0x80, 0x3000, 0xa000, 0x110000]);
      const point = random.int(limit);
      return point >= 0xd800 && point < 0xe000 ? 0x20 : point;
    });
    const text = String.fromCodePoint(...points);
    assertEquals(bpe.decode(bpe.encode(text)), collapse(text));
  }
});

Deno.test("Bpe lays its ids out as SentencePiece does", () => {
  const bpe = Bpe.train(TEXT, { vocabSize: 400, coverage: 1 });
  assertEquals([0, 1, 2, 3, 4, 259].map((id) => bpe.piece(id)), [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<0x00>",
    "<0xFF>",
  ]);
  assertEquals(bpe.piece(260), "▁");
  assertEquals(bpe.pieces("the cat")[0]?.startsWith("▁"), true);
  assertEquals(bpe.pieces("𠀀"), ["▁", "<0xF0>", "<0xA0>", "<0x80>", "<0x80>"]);
  assertThrows(() => bpe.piece(bpe.size), RangeError);
});

Deno.test("Bpe.decode() never throws", () => {
  const bpe = Bpe.train(TEXT, { vocabSize: 330 });
  assertEquals(bpe.decode([BOS, 4 + 0xe4, 4 + 0xbd, EOS, PAD]), "\ufffd");
  assertEquals(bpe.decode([4 + 0x41, 1, -5, 1e9, NaN, 4 + 0x42]), "A\ufffd\ufffd\ufffd\ufffdB");
  assertEquals(bpe.decode([]), "");
});

Deno.test("collapse() touches ASCII white space and lone surrogates only", () => {
  assertEquals(collapse("\t a\r\n b  \u3000 c\u00a0"), "a b \u3000 c\u00a0");
  assertEquals(collapse("x\ud800y"), "x\ufffdy");
});

Deno.test("forEachChunk() cuts at spaces and between kinds", () => {
  const chunks: string[] = [];
  forEachChunk(" I don't know C3PO：我有2本书。❤️!", 16, (chunk) => chunks.push(chunk));
  assertEquals(chunks, [" I", " don't", " know", " C", "3", "PO", "：", "我有", "2", "本书", "。❤️!"]);
  chunks.length = 0;
  forEachChunk("𠀀𠀁𠀂", 4, (chunk) => chunks.push(chunk));
  assertEquals(chunks, ["𠀀𠀁", "𠀂"]);
});

/** The textbook algorithm: count all pairs, join the best everywhere, again. */
function naiveMerges(lines: readonly string[], count: number): string[] {
  const types = new Map<string, number>();
  for (const line of lines) {
    forEachChunk(" " + collapse(line), 16, (chunk) => types.set(chunk, (types.get(chunk) ?? 0) + 1));
  }
  let corpus = [...types].map(([chunk, weight]) => ({ symbols: [...chunk.replaceAll(" ", "▁")], weight }));
  const merges: string[] = [];
  while (merges.length < count) {
    const pairs = new Map<string, number>();
    for (const { symbols, weight } of corpus) {
      for (let i = 0; i + 1 < symbols.length; i++) {
        const pair = `${symbols[i]} ${symbols[i + 1]}`;
        if (pair.length <= 17) pairs.set(pair, (pairs.get(pair) ?? 0) + weight);
      }
    }
    const before = (a: string, b: string): boolean => {
      const [leftA = "", rightA = ""] = a.split(" ");
      const [leftB = "", rightB = ""] = b.split(" ");
      return leftA !== leftB ? leftA < leftB : rightA < rightB;
    };
    let best = "";
    for (const [pair, weight] of pairs) {
      const most = pairs.get(best) ?? 1;
      if (weight > most || (weight === most && weight > 1 && before(pair, best))) best = pair;
    }
    if (best === "") break;
    merges.push(best);
    const [left, right] = best.split(" ");
    corpus = corpus.map(({ symbols, weight }) => {
      const joined: string[] = [];
      for (let i = 0; i < symbols.length; i++) {
        const both = symbols[i] === left && symbols[i + 1] === right;
        joined.push(both ? `${left}${right}` : symbols[i] ?? "");
        if (both) i++;
      }
      return { symbols: joined, weight };
    });
  }
  return merges;
}

function randomLines(random: Random): string[] {
  const letters = random.pick(["ab", "abc", "abcdefgh", "我你好书本人", "aab 我我好"]);
  return Array.from(
    { length: 5 + random.int(30) },
    () =>
      Array.from(
        { length: 1 + random.int(60) },
        () => random.chance(0.2) ? " " : letters[random.int(letters.length)],
      )
        .join(""),
  );
}

Deno.test("Bpe.train() learns the merges of the textbook algorithm", () => {
  const random = new Random(11);
  for (let round = 0; round < 60; round++) {
    const lines = round === 0 ? TEXT : randomLines(random);
    const bpe = Bpe.train(lines, { vocabSize: 100_000, coverage: 1 });
    const { merges } = bpe.toJson();
    assertEquals(merges, naiveMerges(lines, Infinity), `round ${round}`);
  }
});

Deno.test("Bpe.encode() joins as training did", () => {
  // In training "aaa" is joined from the left, and equal spellings share an id.
  const bpe = Bpe.train(TEXT, { vocabSize: 100_000, coverage: 1, minFrequency: 1 });
  for (const text of TEXT) {
    const chunks: string[] = [];
    forEachChunk(" " + text, 16, (chunk) => chunks.push(chunk.replace(" ", "▁")));
    // Every chunk up to the longest piece was seen, so with all merges learned it is one piece.
    assertEquals(bpe.pieces(text), chunks);
  }
});

Deno.test("Bpe.train() is deterministic and keeps to its size", () => {
  const first = Bpe.train(TEXT, { vocabSize: 340, coverage: 1 });
  assertEquals(first.size, 340);
  assertEquals(first.hash, Bpe.train(TEXT, { vocabSize: 340, coverage: 1 }).hash);
  assertNotEquals(first.hash, Bpe.train(TEXT, { vocabSize: 341, coverage: 1 }).hash);
});

Deno.test("Bpe survives JSON", () => {
  const bpe = Bpe.train(TEXT, { vocabSize: 380 });
  const back = Bpe.fromJson(JSON.parse(JSON.stringify(bpe.toJson())));
  assertEquals(back.hash, bpe.hash);
  assertEquals(back.size, bpe.size);
  for (const text of [...TEXT, ...ODD]) assertEquals(back.encode(text), bpe.encode(text));
});

Deno.test("Bpe.fromJson() says what is wrong", () => {
  const json = Bpe.train(TEXT, { vocabSize: 350 }).toJson();
  const cases: [unknown, string][] = [
    [null, "must be a JSON object"],
    [{}, "format"],
    [{ ...json, version: 2 }, "version"],
    [{ ...json, alphabet: "abc" }, "must be lists"],
    [{ ...json, alphabet: ["▁", "ab"] }, "alphabet[1]"],
    [{ ...json, alphabet: ["a", "a"] }, "each character once"],
    [{ ...json, merges: ["a"] }, "merges[0]"],
    [{ ...json, merges: ["☃ a"] }, "merges[0]"],
    [{ ...json, prefixSpace: 1 }, "prefixSpace"],
  ];
  for (const [value, message] of cases) assertThrows(() => Bpe.fromJson(value), SyntaxError, message);
});

Deno.test("Bpe.train() leaves rare characters to bytes", () => {
  const lines = ["aaaa bbbb aaaa bbbb aaaa bbbb", "aaaa bbbb aaaa bbbb 珍"];
  const bpe = Bpe.train(lines, { vocabSize: 300, coverage: 0.95 });
  assertEquals(bpe.toJson().alphabet, ["▁", "a", "b"]);
  assertEquals(bpe.decode(bpe.encode("珍 a")), "珍 a");
});

Deno.test("Bpe.train() checks its options", () => {
  assertThrows(() => Bpe.train(TEXT, { vocabSize: 100 }), RangeError, "vocabSize");
  assertThrows(() => Bpe.train(TEXT, { vocabSize: 270 }), RangeError, "vocabSize must be at least");
  assertThrows(() => Bpe.train(TEXT, { vocabSize: 400.5 }), RangeError, "whole number");
  assertThrows(() => Bpe.train(TEXT, { vocabSize: 400, coverage: 2 }), RangeError, "coverage");
  assert(Bpe.train([], { vocabSize: 300 }).size === 261);
});

Deno.test("trainVocabularies() makes one vocabulary or two", () => {
  const pairs = [{ source: "a cat sat", target: "一只猫坐着" }, {
    source: "a cat ran",
    target: "一只猫跑了",
  }];
  const joint = trainVocabularies(pairs, { vocabSize: 300, joint: true });
  assert(joint.source === joint.target);
  const two = trainVocabularies(pairs, { vocabSize: 300 });
  assertEquals(two.target.toJson().alphabet.includes("a"), false);
  assertEquals(two.source.toJson().alphabet.includes("猫"), false);
});
