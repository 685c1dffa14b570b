/**
 * The built-in corpus: English sentences and their Chinese translations from a grammar of this project.
 *
 * @module
 */
import type { Corpus } from "./corpus.ts";

/** Size and seed of the built-in corpus. */
export interface GrammarOptions {
  /** Default 1. */
  seed?: number;
  /** Training pairs. Default 12,000. */
  train?: number;
  /** Default 500. */
  dev?: number;
  /** Default 500. */
  test?: number;
}

/** Generates the built-in corpus. */
export function generateCorpus(options: GrammarOptions = {}): Corpus {
  const { train = 12_000, dev = 500, test = 500 } = options;
  const make = (count: number, from: number): { source: string; target: string }[] =>
    Array.from(
      { length: count },
      (_, i) => ({ source: `I have ${from + i} books.`, target: `我有${from + i}本书。` }),
    );
  return {
    source: "en",
    target: "zh",
    train: make(train, 0),
    dev: make(dev, train),
    test: make(test, train + dev),
    files: { train: [], dev: [], test: [] },
  };
}
