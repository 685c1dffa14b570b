/**
 * The corpus that a configuration names.
 *
 * @module
 */

import { type Corpus, generateCorpus, loadCorpus, type Part } from "../data/mod.ts";
import { UsageError } from "./cli.ts";
import type { Config } from "./config.ts";

/** The name of the built-in corpus. */
export const BUILT_IN = "built-in";

function reversed(corpus: Corpus): Corpus {
  const swap = (pairs: Corpus["train"]): Corpus["train"] =>
    pairs.map(({ source, target }) => ({ source: target, target: source }));
  return {
    ...corpus,
    source: corpus.target,
    target: corpus.source,
    train: swap(corpus.train),
    dev: swap(corpus.dev),
    test: swap(corpus.test),
  };
}

function builtIn(src: string, tgt: string): Corpus {
  const corpus = generateCorpus();
  const wanted = (given: string, own: string): boolean => given === "auto" || given === own;
  if (wanted(src, corpus.source) && wanted(tgt, corpus.target)) return corpus;
  if (wanted(src, corpus.target) && wanted(tgt, corpus.source)) return reversed(corpus);
  throw new UsageError(
    `Cannot use the built-in corpus from ${src} to ${tgt} as it is ${corpus.source}-${corpus.target}: name a folder by --data`,
  );
}

/**
 * Loads a corpus: the built-in one, or a folder's.
 *
 * @param settings Where it is, its languages ("auto": what the files leave no choice about), and its cuts.
 * @param parts The parts wanted; default: all.
 * @throws {Deno.errors.NotFound} If a part is missing.
 * @throws {SyntaxError} If a file is malformed; names file and line.
 */
export async function openCorpus(
  settings: Pick<Config, "data" | "src" | "tgt" | "trainPairs" | "devPairs" | "testPairs">,
  parts?: readonly Part[],
): Promise<Corpus> {
  const { data, src, tgt, trainPairs, devPairs, testPairs } = settings;
  const first = <T>(pairs: T[], count: number): T[] => count > 0 ? pairs.slice(0, count) : pairs;
  const corpus = data === BUILT_IN ? builtIn(src, tgt) : await loadCorpus(data, {
    ...(src === "auto" ? {} : { source: src }),
    ...(tgt === "auto" ? {} : { target: tgt }),
    ...(parts === undefined ? {} : { parts }),
  });
  return {
    ...corpus,
    train: first(corpus.train, trainPairs),
    dev: first(corpus.dev, devPairs),
    test: first(corpus.test, testPairs),
  };
}
