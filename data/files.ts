/**
 * Reads text files and finds the parts of a corpus in a folder. The only file of data/ that touches the file system.
 *
 * @module
 */
import { basename, dirname, join } from "@std/path";
import {
  decodeUtf8,
  type Languages,
  parseJson,
  parseJsonl,
  parseParallel,
  parseTsv,
  type SentencePair,
} from "./formats.ts";

/** Inflates gzip bytes. Throws SyntaxError where they are no gzip file, or cut short. */
export async function gunzip(bytes: Uint8Array<ArrayBuffer>, name: string): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    throw new SyntaxError(
      `Cannot read ${name} as it must be a gzip file: it is corrupt or cut short (${detail})`,
      {
        cause: error,
      },
    );
  }
}

/**
 * The text of a UTF-8 file; inflated where the name ends in .gz.
 *
 * @throws {Deno.errors.NotFound} If there is no such file; names it and its folder.
 * @throws {SyntaxError} If it is no UTF-8 (with the line) or no gzip.
 */
export async function readText(path: string): Promise<string> {
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = await Deno.readFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) {
      throw new Deno.errors.NotFound(
        `Cannot read ${basename(path)} as there is no such file in ${dirname(path)}`,
      );
    }
    if (error instanceof Deno.errors.IsADirectory) {
      throw new Deno.errors.IsADirectory(`Cannot read ${path} as it must be a file: it is a folder`);
    }
    throw error;
  }
  if (path.endsWith(".gz")) bytes = await gunzip(bytes, path);
  return decodeUtf8(bytes, path);
}

const WHOLE = ["tsv", "json", "jsonl"];

/** A file name taken apart: "train.en.gz" is stem "train", extension "en". */
function takeApart(file: string): { file: string; stem: string; extension: string } {
  const plain = file.endsWith(".gz") ? file.slice(0, -3) : file;
  const dot = plain.lastIndexOf(".");
  return dot <= 0
    ? { file, stem: plain, extension: "" }
    : { file, stem: plain.slice(0, dot), extension: plain.slice(dot + 1) };
}

async function listFiles(folder: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(folder)) if (!entry.isDirectory) names.push(entry.name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) {
      throw new Deno.errors.NotFound(`Cannot read ${folder} as there is no such file or folder`);
    }
    throw error;
  }
  return names.sort();
}

/** Where a set of pairs lies: one file, or one for each language. */
export interface PairFiles {
  files: string[];
  languages: Languages;
}

/** The languages wished for; either may be left open. */
export type WantedLanguages = { [Side in keyof Languages]?: Languages[Side] | undefined };

const DEFAULTS: Languages = { source: "en", target: "zh" };

/** Settles which two of the extensions found are source and target. Throws where more than one answer fits. */
function chooseLanguages(extensions: readonly string[], wanted: WantedLanguages, where: string): Languages {
  const found = extensions.join(", ");
  const { source, target } = wanted;
  for (const [role, language] of [["source", source], ["target", target]] as const) {
    if (language !== undefined && !extensions.includes(language)) {
      throw new RangeError(`Cannot find the ${role} language "${language}" of ${where}: there is ${found}`);
    }
  }
  if (source !== undefined && source === target) {
    throw new RangeError(`Cannot pair ${where} as source and target must differ: both are "${source}"`);
  }
  if (source !== undefined && target !== undefined) return { source, target };
  const others = extensions.filter((extension) => extension !== source && extension !== target);
  const [first, second] = others;
  if (source !== undefined && others.length === 1 && first !== undefined) return { source, target: first };
  if (target !== undefined && others.length === 1 && first !== undefined) return { source: first, target };
  if (others.includes(DEFAULTS.source) && others.includes(DEFAULTS.target) && others.length === 2) {
    return DEFAULTS;
  }
  throw new RangeError(
    second === undefined
      ? `Cannot pair ${where} as two languages are needed: there is ${found}`
      : `Cannot tell source from target among ${where}: there is ${found}; name both languages`,
  );
}

/** Finds the one set of pairs with a stem in a folder. Undefined where nothing has that stem. */
function pairFilesOf(
  folder: string,
  names: readonly string[],
  stem: string,
  wanted: WantedLanguages,
): PairFiles | undefined {
  const parts = names.map(takeApart).filter((part) => part.stem === stem && part.extension !== "");
  const twice = parts.find((part, i) => parts.findIndex((other) => other.extension === part.extension) !== i);
  if (twice !== undefined) {
    throw new RangeError(
      `Cannot choose between ${stem}.${twice.extension} and ${stem}.${twice.extension}.gz in ${folder}: keep one`,
    );
  }
  const whole = parts.filter((part) => WHOLE.includes(part.extension));
  const lines = parts.filter((part) => !WHOLE.includes(part.extension));
  const [only, second] = whole;
  // Beside train.tsv a train.log does no harm, but train.en and train.zh would be a second corpus.
  const rivals = [wanted.source ?? DEFAULTS.source, wanted.target ?? DEFAULTS.target];
  const isTwofold = rivals.every((language) => lines.some((part) => part.extension === language));
  if (second !== undefined || (only !== undefined && isTwofold)) {
    throw new RangeError(
      `Cannot choose between ${parts.map((part) => part.file).join(", ")} in ${folder}: keep one`,
    );
  }
  if (only !== undefined) {
    const languages = { source: wanted.source ?? DEFAULTS.source, target: wanted.target ?? DEFAULTS.target };
    return { files: [join(folder, only.file)], languages };
  }
  if (lines.length === 0) return undefined;
  const languages = chooseLanguages(lines.map((part) => part.extension), wanted, join(folder, `${stem}.*`));
  const files = [languages.source, languages.target].map((language) =>
    join(folder, lines.find((part) => part.extension === language)?.file ?? "")
  );
  return { files, languages };
}

/** The parts of a corpus, and how their file names may begin. */
const PREFIXES: Record<Part, readonly string[]> = { train: ["train"], dev: ["dev", "val"], test: ["test"] };

/** A part of a corpus. */
export type Part = "train" | "dev" | "test";

/**
 * Finds a part in a data folder: files whose name begins with train; dev or val; test. A name that is exactly that
 * comes first, then the first by the alphabet.
 *
 * @throws {Deno.errors.NotFound} If there is none; says what was looked for.
 * @throws {RangeError} If the languages or the format are ambiguous.
 */
export async function findPart(folder: string, part: Part, wanted: WantedLanguages): Promise<PairFiles> {
  const names = await listFiles(folder);
  const prefixes = PREFIXES[part];
  const stems = [
    ...new Set(names.map(takeApart).filter((name) => name.extension !== "").map((name) => name.stem)),
  ];
  const fitting = stems.filter((stem) => prefixes.some((prefix) => stem.startsWith(prefix)));
  const exact = fitting.filter((stem) => prefixes.some((prefix) => stem === prefix));
  for (const stem of [...exact, ...fitting]) {
    const found = pairFilesOf(folder, names, stem, wanted);
    if (found !== undefined) return found;
  }
  const source = wanted.source ?? DEFAULTS.source;
  const target = wanted.target ?? DEFAULTS.target;
  const looked = prefixes.map((prefix) =>
    `${prefix}*.tsv, .json, .jsonl, or ${prefix}*.${source} with ${prefix}*.${target}`
  ).join("; ");
  throw new Deno.errors.NotFound(
    `Cannot find the ${part} part in ${folder}: looked for ${looked}, each also .gz`,
  );
}

/**
 * Finds the pairs behind the path of one file: the file itself, or the two parallel files that it is one of, or the
 * stem of.
 *
 * @throws {Deno.errors.NotFound} If there is no such file.
 * @throws {RangeError} If the languages are ambiguous.
 */
export async function findFile(path: string, wanted: WantedLanguages): Promise<PairFiles> {
  const folder = dirname(path);
  const given = takeApart(basename(path));
  if (WHOLE.includes(given.extension)) {
    const languages = { source: wanted.source ?? DEFAULTS.source, target: wanted.target ?? DEFAULTS.target };
    return { files: [path], languages };
  }
  const names = await listFiles(folder);
  const parallel = names.map(takeApart).filter((name) => !WHOLE.includes(name.extension)).map((name) =>
    name.file
  );
  const found = pairFilesOf(folder, parallel, given.stem, wanted) ??
    pairFilesOf(folder, names, basename(path), wanted);
  if (found !== undefined) return found;
  throw new Deno.errors.NotFound(
    `Cannot find ${
      basename(path)
    } in ${folder}: it must be .tsv, .json, .jsonl, or one of two parallel files`,
  );
}

/**
 * Reads what `findPart` or `findFile` found.
 *
 * @throws {SyntaxError} If a file is malformed; names file and line.
 */
export async function readPairs({ files, languages }: PairFiles): Promise<SentencePair[]> {
  const texts: { text: string; name: string }[] = [];
  for (const name of files) texts.push({ text: await readText(name), name });
  const [first, second] = texts;
  if (first === undefined) return [];
  if (second !== undefined) return parseParallel(first, second);
  const { extension } = takeApart(basename(first.name));
  if (extension === "tsv") return parseTsv(first.text, first.name);
  if (extension === "json") return parseJson(first.text, first.name, languages);
  return parseJsonl(first.text, first.name, languages);
}
