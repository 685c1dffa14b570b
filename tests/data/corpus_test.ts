import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { loadCorpus, loadPairs, readText } from "../../data/mod.ts";

const allowed = (["read", "write"] as const).every((name) =>
  Deno.permissions.querySync({ name }).state === "granted"
);

type Files = Record<string, string | Uint8Array<ArrayBuffer>>;

/** A test in a folder of its own, skipped where files may not be touched. */
function folderTest(name: string, files: Files, run: (folder: string) => Promise<void>): void {
  Deno.test({
    name: allowed ? name : `${name} (needs --allow-read and --allow-write)`,
    ignore: !allowed,
    fn: async () => {
      const folder = await Deno.makeTempDir({ prefix: "corpus-" });
      try {
        for (const [file, content] of Object.entries(files)) {
          const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
          await Deno.writeFile(join(folder, file), bytes);
        }
        await run(folder);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    },
  });
}

async function gzip(text: string): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

folderTest(
  "loadCorpus() reads a folder of mixed formats",
  {
    "train.tsv": "a\t一\nb\t二\n",
    "dev.json": '[["c", "三"]]',
    "test_2017.en": "no\n",
    "test_2017.zh": "否\n",
    "test.en.gz": await gzip("d\ne\n"),
    "test.zh": "四\n五\n",
    "README.md": "not data",
    "train.log": "not data either",
    "train.md": "nor this",
  },
  async (folder) => {
    const corpus = await loadCorpus(folder);
    assertEquals(corpus.train, [{ source: "a", target: "一" }, { source: "b", target: "二" }]);
    assertEquals(corpus.dev, [{ source: "c", target: "三" }]);
    assertEquals(corpus.test, [{ source: "d", target: "四" }, { source: "e", target: "五" }]);
    assertEquals([corpus.source, corpus.target], ["en", "zh"]);
    assertEquals(corpus.files.test, [join(folder, "test.en.gz"), join(folder, "test.zh")]);
    assertEquals((await loadCorpus(folder, { parts: ["dev"] })).train, []);
  },
);

folderTest(
  "loadCorpus() takes val for dev, and languages by name",
  {
    "train.en.gz": await gzip("a\n"),
    "train.de.gz": await gzip("ä\n"),
    "val.en.gz": await gzip("b\n"),
    "val.de.gz": await gzip("ß\n"),
    "test_2016_flickr.en.gz": await gzip("c\n"),
    "test_2016_flickr.de.gz": await gzip("ç\n"),
  },
  async (folder) => {
    const corpus = await loadCorpus(folder, { source: "en", target: "de" });
    assertEquals([corpus.train, corpus.dev, corpus.test].map((part) => part[0]?.target), ["ä", "ß", "ç"]);
    assertEquals((await loadCorpus(folder, { source: "de" })).train[0], { source: "ä", target: "a" });
    await assertRejects(() => loadCorpus(folder), RangeError, "name both languages");
    await assertRejects(() => loadCorpus(folder, { source: "fr", target: "de" }), RangeError, '"fr"');
    await assertRejects(() => loadCorpus(folder, { source: "en", target: "en" }), RangeError, "must differ");
  },
);

folderTest(
  "loadCorpus() splits a single file; loadPairs() does not",
  { "all.jsonl": Array.from({ length: 100 }, (_, i) => JSON.stringify([`s${i}`, `t${i}`])).join("\n") },
  async (folder) => {
    const path = join(folder, "all.jsonl");
    const corpus = await loadCorpus(path);
    assertEquals([corpus.train.length, corpus.dev.length, corpus.test.length], [96, 2, 2]);
    assertEquals((await loadPairs(path)).length, 100);
  },
);

folderTest(
  "loadPairs() finds parallel files by either or by their stem",
  { "news.v1.en": "a\n", "news.v1.zh.gz": await gzip("一\n") },
  async (folder) => {
    for (const name of ["news.v1.en", "news.v1.zh.gz", "news.v1"]) {
      assertEquals(await loadPairs(join(folder, name)), [{ source: "a", target: "一" }]);
    }
  },
);

folderTest(
  "loadCorpus() says which part is missing, and where it looked",
  { "train.tsv": "a\tb" },
  async (folder) => {
    const error = await assertRejects(
      () => loadCorpus(folder),
      Deno.errors.NotFound,
      `the dev part in ${folder}`,
    );
    assert(
      error.message.includes("dev*.tsv") && error.message.includes("val*.en with val*.zh"),
      error.message,
    );
    assert(!error.message.includes("\n"));
    await assertRejects(() => loadCorpus(join(folder, "none")), Deno.errors.NotFound, "none");
    await assertRejects(() => loadPairs(join(folder, "none.tsv")), Deno.errors.NotFound, "no such file");
    await assertRejects(() => loadPairs(join(folder, "nowhere", "x.en")), Deno.errors.NotFound, "nowhere");
  },
);

folderTest(
  "loadCorpus() refuses to guess",
  {
    "train.tsv": "a\tb",
    "train.json": '[["a", "b"]]',
    "dev.tsv": "a\tb",
    "dev.tsv.gz": "",
    "test.en": "a",
    "all.tsv": "a\tb",
    "all.en": "a",
    "all.zh": "b",
  },
  async (folder) => {
    await assertRejects(() => loadCorpus(folder, { parts: ["train"] }), RangeError, "train.json, train.tsv");
    await assertRejects(() => loadCorpus(folder, { parts: ["dev"] }), RangeError, "dev.tsv and dev.tsv.gz");
    await assertRejects(
      () => loadCorpus(folder, { parts: ["test"] }),
      RangeError,
      "two languages are needed",
    );
  },
);

folderTest(
  "loadCorpus() names the file and line that is malformed",
  {
    "train.en": "a\nb\n",
    "train.zh": "一\n",
    "dev.tsv": new Uint8Array([97, 9, 98, 10, 97, 9, 0xff, 10]),
    "test.tsv.gz": (await gzip("a\tb\n".repeat(100))).slice(0, 30),
    "testing.json": "",
  },
  async (folder) => {
    await assertRejects(() => loadCorpus(folder, { parts: ["train"] }), SyntaxError, "there are 2 and 1");
    await assertRejects(
      () => loadCorpus(folder, { parts: ["dev"] }),
      SyntaxError,
      "dev.tsv line 2 as it must be UTF-8",
    );
    await assertRejects(() => loadCorpus(folder, { parts: ["test"] }), SyntaxError, "corrupt or cut short");
    await assertRejects(() => loadPairs(join(folder, "testing.json")), SyntaxError, "it is empty");
    await assertRejects(() => readText(folder), Error, "Cannot read");
  },
);
