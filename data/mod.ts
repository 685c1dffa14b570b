/**
 * Data for translation: corpora and their formats, the built-in corpus, byte-pair encoding, batches, BLEU and chrF. Pure
 * TypeScript; reading files needs --allow-read, nothing else needs a permission.
 *
 * @example From sentences to batches
 * ```ts
 * import { Batcher, encodePairs, generateCorpus, trainVocabularies } from "./mod.ts";
 *
 * const corpus = generateCorpus();
 * const { source, target } = trainVocabularies(corpus.train, { vocabSize: 1000 });
 * const encoded = encodePairs(corpus.train, source, target, { maxSource: 60, maxTarget: 60 });
 * const batcher = new Batcher(encoded, { rows: 2048, seed: 1 });
 * for (const batch of batcher.epoch(0)) console.log(batch.sentences, batch.targetTokens);
 * ```
 *
 * @module
 */
export {
  type Batch,
  Batcher,
  type BatcherOptions,
  type Cursor,
  type EncodedPairs,
  type EncodeOptions,
  encodePairs,
  type Encoder,
  fillTo,
  type Layout,
  makeBatch,
  markSource,
  paddingShare,
  type PlanStatistics,
  Ragged,
} from "./batching.ts";
export { type BleuOptions, type BleuScore, type BleuSmoothing, corpusBleu, sentenceBleu } from "./bleu.ts";
export {
  BOS,
  Bpe,
  type BpeJson,
  type BpeOptions,
  EOS,
  PAD,
  trainVocabularies,
  UNK,
  type Vocabularies,
} from "./bpe.ts";
export { type ChrfOptions, type ChrfScore, corpusChrf, sentenceChrf } from "./chrf.ts";
export {
  type Corpus,
  type FilterOptions,
  filterPairs,
  loadCorpus,
  type LoadOptions,
  loadPairs,
  splitPairs,
} from "./corpus.ts";
export { type Part, readText, type WantedLanguages } from "./files.ts";
export {
  decodeUtf8,
  type Languages,
  parseJson,
  parseJsonl,
  parseParallel,
  parseTsv,
  type SentencePair,
  splitLines,
} from "./formats.ts";
export { generateCorpus, type GrammarOptions } from "./grammar.ts";
export { Random } from "./random.ts";
export { BLEU_TOKENIZERS, type BleuTokenizer, tokenizeForBleu } from "./tokenizers.ts";
export type { BootstrapOptions, Confidence, References } from "./_metric.ts";
