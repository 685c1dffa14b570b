/**
 * A corpus: sentence pairs for training, for choosing the best model, and for the final test.
 *
 * @module
 */
import { findFile, findPart, type PairFiles, type Part, readPairs, type WantedLanguages } from "./files.ts";
import type { Languages, SentencePair } from "./formats.ts";
import { Random } from "./random.ts";

/** A corpus in three parts. */
export interface Corpus extends Languages {
  /** Pairs to train on. */
  train: SentencePair[];
  /** Pairs to choose the best model by. */
  dev: SentencePair[];
  /** Pairs for the final test. */
  test: SentencePair[];
  /** The files that each part was read from; empty for the built-in corpus. */
  files: Record<Part, string[]>;
}

/** What to load. */
export interface LoadOptions extends WantedLanguages {
  /** The parts to read; the others stay empty. Default: all. */
  parts?: readonly Part[];
}

const ALL: readonly Part[] = ["train", "dev", "test"];

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isDirectory;
  } catch (error) {
    // The stem of parallel files ("train" for train.en, train.zh) is no file itself.
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/**
 * Reads a corpus from a data folder, whose files begin with train, dev or val, and test; or from a single set of pairs,
 * of which 2 % each (at most 1,000 sentences) are held out for dev and test. Formats by extension, each also .gz: .tsv,
 * .json, .jsonl, or two parallel line files named by language.
 *
 * @param options.source Source language, default "en", or what the files leave no choice about.
 * @param options.target Target language, default "zh", likewise.
 * @throws {Deno.errors.NotFound} If a part is missing; says what was looked for and where.
 * @throws {SyntaxError} If a file is malformed; names file and line.
 * @throws {RangeError} If the languages are ambiguous.
 */
export async function loadCorpus(path: string, options: LoadOptions = {}): Promise<Corpus> {
  const { parts = ALL } = options;
  const pairs: Record<Part, SentencePair[]> = { train: [], dev: [], test: [] };
  const files: Record<Part, string[]> = { train: [], dev: [], test: [] };
  let languages: Languages = { source: options.source ?? "en", target: options.target ?? "zh" };
  if (await isFolder(path)) {
    for (const part of parts) {
      const found = await findPart(path, part, options);
      languages = found.languages;
      files[part] = found.files;
      pairs[part] = await readPairs(found);
    }
  } else {
    const found = await findFile(path, options);
    languages = found.languages;
    const split = splitPairs(await readPairs(found), { share: 0.02, most: 1000 });
    for (const part of parts) {
      files[part] = found.files;
      pairs[part] = split[part];
    }
  }
  return { ...languages, ...pairs, files };
}

/**
 * Reads the pairs of one file (or of two parallel ones, by the path of either or by their common stem) without
 * splitting them.
 *
 * @throws As `loadCorpus`.
 */
export async function loadPairs(path: string, wanted: WantedLanguages = {}): Promise<SentencePair[]> {
  const found: PairFiles = await findFile(path, wanted);
  return await readPairs(found);
}

/**
 * Splits pairs into train, dev and test by a shuffle with a fixed seed. Pairs whose source or target is held out as well
 * are left out of training.
 *
 * @param options.share Share of the pairs for dev, and again for test, 0 to 0.5.
 * @param options.most Most pairs in each.
 */
export function splitPairs(
  pairs: readonly SentencePair[],
  options: { share: number; most: number; seed?: number },
): Record<Part, SentencePair[]> {
  const shuffled = new Random(options.seed ?? 1).shuffle([...pairs]);
  const seen = new Set<string>();
  const unseen = (pair: SentencePair): boolean => {
    const keys = [`s${pair.source}`, `t${pair.target}`];
    const isNew = !keys.some((key) => seen.has(key));
    for (const key of keys) seen.add(key);
    return isNew;
  };
  const size = Math.min(options.most, Math.ceil(pairs.length * options.share));
  const parts: Record<Part, SentencePair[]> = { train: [], dev: [], test: [] };
  let at = 0;
  for (const part of ["test", "dev"] as const) {
    while (parts[part].length < size && at < shuffled.length) {
      const pair = shuffled[at++];
      if (pair !== undefined && unseen(pair)) parts[part].push(pair);
    }
  }
  parts.train = shuffled.slice(at).filter((pair) =>
    !seen.has(`s${pair.source}`) && !seen.has(`t${pair.target}`)
  );
  return parts;
}

/** Limits for `filterPairs`. */
export interface FilterOptions {
  /** Most words, or characters where the script has no spaces, of either side. */
  maxLength?: number;
  /** Most times that one side may be longer than the other, both counted so. */
  maxRatio?: number;
}

/** Words of a text; text without spaces counts by character. */
function roughLength(text: string): number {
  return text.match(/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{N}\p{M}'’]+/gu)
    ?.length ?? 0;
}

/** Leaves out pairs that are empty on a side, too long or too unlike in length, and counts them. */
export function filterPairs(
  pairs: readonly SentencePair[],
  options: FilterOptions = {},
): { pairs: SentencePair[]; dropped: { empty: number; long: number; ratio: number } } {
  const { maxLength = Infinity, maxRatio = Infinity } = options;
  const dropped = { empty: 0, long: 0, ratio: 0 };
  const kept = pairs.filter((pair) => {
    const source = roughLength(pair.source);
    const target = roughLength(pair.target);
    if (pair.source.trim() === "" || pair.target.trim() === "") dropped.empty++;
    else if (source > maxLength || target > maxLength) dropped.long++;
    else if (Math.max(source, target) > maxRatio * Math.max(1, Math.min(source, target))) dropped.ratio++;
    else return true;
    return false;
  });
  return { pairs: kept, dropped };
}
