/**
 * Batches by token budget. Sentences of like length are pooled, batches drawn from a pool hold as many as fit into a
 * given number of rows, and their order is shuffled by seed and epoch. A plan depends on nothing but its arguments, so a
 * run can go on from (epoch, batch index).
 *
 * @module
 */
import { BOS, EOS, PAD } from "./bpe.ts";
import { Random } from "./random.ts";

/** `packed`: rows of sentences one after another. `padded`: each sentence padded to the longest of its batch. */
export type Layout = "packed" | "padded";

/**
 * One batch as the model takes it. B sentences; sentence b owns the rows offsets[b] to offsets[b + 1] - 1. Rows at and
 * beyond offsets[B] belong to no sentence; they, and the rows a padded layout adds, have id and target PAD.
 */
export interface Batch {
  /** How rows are laid out. */
  layout: Layout;
  /** B, with the empty sentences that `fillTo` adds. */
  sentences: number;
  /** Where each sentence stands in the encoded corpus; as long as there are real sentences. */
  indices: Int32Array;
  /** [sourceRows] token ids, each sentence ending with EOS. */
  sourceIds: Int32Array;
  /** [sourceRows] place in the sentence, from 0. */
  sourcePositions: Int32Array;
  /** [B + 1] */
  sourceOffsets: Int32Array;
  /** [B] real rows of each source sentence; in the padded layout only. */
  sourceKeyLengths?: Int32Array;
  /** [targetRows] BOS, then the target. */
  targetInput: Int32Array;
  /** [targetRows] the target, then EOS. */
  targetOutput: Int32Array;
  /** [targetRows] place in the sentence, from 0. */
  targetPositions: Int32Array;
  /** [B + 1] */
  targetOffsets: Int32Array;
  /** [B] real rows of each target sentence; in the padded layout only. */
  targetKeyLengths?: Int32Array;
  /** Rows of the source arrays, padding included. */
  sourceRows: number;
  /** Rows of the target arrays, padding included. */
  targetRows: number;
  /** Real source tokens, EOS included. */
  sourceTokens: number;
  /** Real target tokens, EOS included: the number that a summed loss is divided by. */
  targetTokens: number;
  /** Longest source sentence in rows. */
  maxSource: number;
  /** Longest target sentence in rows. */
  maxTarget: number;
}

/** Sentences of different lengths in one array. */
export class Ragged {
  /** All ids, sentence after sentence. */
  readonly ids: Int32Array;
  /** [count + 1] where each sentence starts. */
  readonly offsets: Int32Array;

  /**
   * Joins sentences.
   *
   * @param sentences Copied one after another.
   */
  constructor(sentences: readonly ArrayLike<number>[]) {
    this.offsets = new Int32Array(sentences.length + 1);
    let total = 0;
    sentences.forEach((sentence, i) => {
      total += sentence.length;
      this.offsets[i + 1] = total;
    });
    this.ids = new Int32Array(total);
    sentences.forEach((sentence, i) => this.ids.set(sentence, this.offsets[i]));
  }

  /** Number of sentences. */
  get count(): number {
    return this.offsets.length - 1;
  }

  /** Tokens of sentence i. */
  length(i: number): number {
    return (this.offsets[i + 1] ?? 0) - (this.offsets[i] ?? 0);
  }

  /** A view of sentence i. */
  at(i: number): Int32Array {
    return this.ids.subarray(this.offsets[i], this.offsets[i + 1]);
  }
}

/** A corpus as ids, each sentence encoded once. */
export interface EncodedPairs {
  /** Source ids with EOS (and BOS where asked for). */
  source: Ragged;
  /** Target ids without marks. */
  target: Ragged;
  /** Where each kept pair stands in the list given. */
  kept: Int32Array;
  /** How many pairs were left out, and why. */
  dropped: { long: number; empty: number };
}

/** What `encodePairs` needs of a vocabulary. */
export interface Encoder {
  /** The ids of a text without marks. */
  encode(text: string): ArrayLike<number>;
}

/** How pairs are encoded and filtered. */
export interface EncodeOptions {
  /** Longest source in tokens, marks included; longer pairs are dropped and counted. Default: no limit. */
  maxSource?: number;
  /** Longest target in tokens, EOS included; likewise. */
  maxTarget?: number;
  /** Put BOS before the source as well. Default false. */
  sourceBos?: boolean;
}

/**
 * Encodes sentence pairs, once for all epochs. Pairs with an empty side are left out and counted, as are those beyond
 * the limits.
 */
export function encodePairs(
  pairs: readonly { readonly source: string; readonly target: string }[],
  source: Encoder,
  target: Encoder,
  options: EncodeOptions = {},
): EncodedPairs {
  const { maxSource = Infinity, maxTarget = Infinity, sourceBos = false } = options;
  const sources: Int32Array[] = [];
  const targets: ArrayLike<number>[] = [];
  const kept: number[] = [];
  const dropped = { long: 0, empty: 0 };
  pairs.forEach((pair, i) => {
    const sourceIds = source.encode(pair.source);
    const targetIds = target.encode(pair.target);
    const marked = markSource(sourceIds, sourceBos);
    if (sourceIds.length === 0 || targetIds.length === 0) dropped.empty++;
    else if (marked.length > maxSource || targetIds.length + 1 > maxTarget) dropped.long++;
    else {
      sources.push(marked);
      targets.push(targetIds);
      kept.push(i);
    }
  });
  return { source: new Ragged(sources), target: new Ragged(targets), kept: Int32Array.from(kept), dropped };
}

/** A source sentence with its marks: (BOS) ids EOS. */
export function markSource(ids: ArrayLike<number>, bos = false): Int32Array {
  const marked = new Int32Array(ids.length + (bos ? 2 : 1));
  if (bos) marked[0] = BOS;
  marked.set(ids, bos ? 1 : 0);
  marked[marked.length - 1] = EOS;
  return marked;
}

interface Side {
  rows: number;
  offsets: Int32Array;
  keyLengths: Int32Array;
  positions: Int32Array;
  longest: number;
  tokens: number;
}

function layOutSide(lengths: readonly number[], layout: Layout): Side {
  const longest = Math.max(0, ...lengths);
  const offsets = new Int32Array(lengths.length + 1);
  let tokens = 0;
  lengths.forEach((length, b) => {
    offsets[b + 1] = (offsets[b] ?? 0) + (layout === "packed" ? length : longest);
    tokens += length;
  });
  const rows = offsets[lengths.length] ?? 0;
  const positions = new Int32Array(rows);
  for (let b = 0; b < lengths.length; b++) {
    const start = offsets[b] ?? 0;
    const end = offsets[b + 1] ?? 0;
    for (let row = start; row < end; row++) positions[row] = row - start;
  }
  return { rows, offsets, keyLengths: Int32Array.from(lengths), positions, longest, tokens };
}

/**
 * Makes one batch.
 *
 * @param sources Source ids with their marks, as `markSource` gives them.
 * @param targets Target ids without marks; for decoding, an empty list for each source.
 * @throws {RangeError} If there are not as many sources as targets.
 */
export function makeBatch(
  sources: readonly ArrayLike<number>[],
  targets: readonly ArrayLike<number>[],
  options: { layout?: Layout; indices?: ArrayLike<number> } = {},
): Batch {
  const { layout = "packed", indices = sources.map((_, i) => i) } = options;
  if (sources.length !== targets.length) {
    throw new RangeError(
      `Cannot make a batch as it must have as many sources as targets: there are ${sources.length} and ` +
        `${targets.length}`,
    );
  }
  const source = layOutSide(sources.map((ids) => ids.length), layout);
  const target = layOutSide(targets.map((ids) => ids.length + 1), layout);
  const sourceIds = new Int32Array(source.rows).fill(PAD);
  const targetInput = new Int32Array(target.rows).fill(PAD);
  const targetOutput = new Int32Array(target.rows).fill(PAD);
  sources.forEach((ids, b) => sourceIds.set(ids, source.offsets[b]));
  targets.forEach((ids, b) => {
    const start = target.offsets[b] ?? 0;
    targetInput[start] = BOS;
    targetInput.set(ids, start + 1);
    targetOutput.set(ids, start);
    targetOutput[start + ids.length] = EOS;
  });
  return {
    layout,
    sentences: sources.length,
    indices: Int32Array.from(indices),
    sourceIds,
    sourcePositions: source.positions,
    sourceOffsets: source.offsets,
    targetInput,
    targetOutput,
    targetPositions: target.positions,
    targetOffsets: target.offsets,
    ...(layout === "padded"
      ? { sourceKeyLengths: source.keyLengths, targetKeyLengths: target.keyLengths }
      : {}),
    sourceRows: source.rows,
    targetRows: target.rows,
    sourceTokens: source.tokens,
    targetTokens: target.tokens,
    maxSource: source.longest,
    maxTarget: target.longest,
  };
}

function extend(values: Int32Array, length: number, value: number): Int32Array {
  const result = new Int32Array(length).fill(value);
  result.set(values);
  return result;
}

/**
 * The same batch in arrays of a fixed size, so that a captured graph can replay it: rows are added that belong to no
 * sentence (id and target PAD, position 0), and sentences without rows.
 *
 * @param size.rows Rows of both sides; `sourceRows` and `targetRows` override it for one.
 * @param size.sentences Number of sentences, B.
 * @throws {RangeError} If the batch is larger than that.
 */
export function fillTo(
  batch: Batch,
  size: { rows?: number; sourceRows?: number; targetRows?: number; sentences?: number },
): Batch {
  const sourceRows = size.sourceRows ?? size.rows ?? batch.sourceRows;
  const targetRows = size.targetRows ?? size.rows ?? batch.targetRows;
  const sentences = size.sentences ?? batch.sentences;
  const needs = [
    ["source rows", sourceRows, batch.sourceRows],
    ["target rows", targetRows, batch.targetRows],
    [
      "sentences",
      sentences,
      batch.sentences,
    ],
  ] as const;
  for (const [name, room, used] of needs) {
    if (!(room >= used)) {
      throw new RangeError(
        `Cannot fill a batch as its ${name} must be at least ${used}: current value is ${room}`,
      );
    }
  }
  const { sourceKeyLengths, targetKeyLengths } = batch;
  return {
    ...batch,
    sentences,
    sourceIds: extend(batch.sourceIds, sourceRows, PAD),
    sourcePositions: extend(batch.sourcePositions, sourceRows, 0),
    sourceOffsets: extend(batch.sourceOffsets, sentences + 1, batch.sourceOffsets.at(-1) ?? 0),
    targetInput: extend(batch.targetInput, targetRows, PAD),
    targetOutput: extend(batch.targetOutput, targetRows, PAD),
    targetPositions: extend(batch.targetPositions, targetRows, 0),
    targetOffsets: extend(batch.targetOffsets, sentences + 1, batch.targetOffsets.at(-1) ?? 0),
    ...(sourceKeyLengths ? { sourceKeyLengths: extend(sourceKeyLengths, sentences, 0) } : {}),
    ...(targetKeyLengths ? { targetKeyLengths: extend(targetKeyLengths, sentences, 0) } : {}),
    sourceRows,
    targetRows,
  };
}

/** Share of a batch's rows that hold no token, 0 to 1. */
export function paddingShare(batch: Batch): number {
  const rows = batch.sourceRows + batch.targetRows;
  return rows === 0 ? 0 : (rows - batch.sourceTokens - batch.targetTokens) / rows;
}

/** How batches are planned. */
export interface BatcherOptions {
  /** Most rows of either side in a batch, padding included. */
  rows: number;
  /** Most sentences in a batch. Default: no limit. */
  sentences?: number;
  /** Sentences pooled and sorted by length; 0 takes the whole corpus as one pool. Default 8192. */
  pool?: number;
  /** Default "packed". */
  layout?: Layout;
  /** Shuffle sentences into pools, and batches, anew each epoch. Default true; false for evaluation. */
  shuffle?: boolean;
  /** Default 0. */
  seed?: number;
}

/** A place in the sequence of batches: the batch to come next. */
export interface Cursor {
  /** Epoch, from 0. */
  epoch: number;
  /** Batch of the epoch, from 0. */
  batch: number;
}

/** One epoch's batches as sentence numbers. */
interface Plan {
  epoch: number;
  order: Int32Array;
  /** Where batch i starts in `order`, and the end. */
  starts: Int32Array;
}

/** What an epoch's batches amount to. */
export interface PlanStatistics {
  /** Number of batches. */
  batches: number;
  /** Sentences in all batches. */
  sentences: number;
  /** Source tokens, EOS included. */
  sourceTokens: number;
  /** Target tokens, EOS included. */
  targetTokens: number;
  /** Share of rows without a token, 0 to 1; 0 in the packed layout. */
  padding: number;
  /** Most sentences in one batch. */
  maxSentences: number;
  /** Longest source and target in rows. */
  maxSource: number;
  /** Longest target in rows. */
  maxTarget: number;
}

/** Plans and makes the batches of a corpus, epoch by epoch. */
export class Batcher {
  readonly #corpus: EncodedPairs;
  readonly #options: Required<BatcherOptions>;
  #plan: Plan | undefined;

  /**
   * Makes the batches of a corpus.
   *
   * @throws {RangeError} If a number is out of range, or a sentence alone has more rows than a batch may.
   */
  constructor(corpus: EncodedPairs, options: BatcherOptions) {
    this.#corpus = corpus;
    this.#options = {
      sentences: Number.MAX_SAFE_INTEGER,
      pool: 8192,
      layout: "packed",
      shuffle: true,
      seed: 0,
      ...options,
    };
    const { rows, sentences, pool } = this.#options;
    for (
      const [name, value, lowest] of [["rows", rows, 1], ["sentences", sentences, 1], [
        "pool",
        pool,
        0,
      ]] as const
    ) {
      if (!Number.isInteger(value) || value < lowest) {
        throw new RangeError(
          `Cannot plan batches as ${name} must be a whole number >= ${lowest}: current value is ${value}`,
        );
      }
    }
    for (let i = 0; i < corpus.source.count; i++) {
      const length = Math.max(this.#sourceLength(i), this.#targetLength(i));
      if (length > rows) {
        throw new RangeError(
          `Cannot plan batches as rows must be at least the longest sentence: sentence ${
            corpus.kept[i]
          } has ` +
            `${length} tokens, rows is ${rows}; raise it, or lower the length limit`,
        );
      }
    }
  }

  #sourceLength(i: number): number {
    return this.#corpus.source.length(i);
  }

  #targetLength(i: number): number {
    return this.#corpus.target.length(i) + 1;
  }

  /** Number of batches in an epoch. */
  count(epoch = 0): number {
    return this.#planFor(epoch).starts.length - 1;
  }

  /**
   * One batch of an epoch. `indices` count in the encoded corpus; its `kept` leads back to the list given.
   *
   * @throws {RangeError} If the epoch has no such batch.
   */
  batch(epoch: number, index: number): Batch {
    const { order, starts } = this.#planFor(epoch);
    const start = starts[index];
    const end = starts[index + 1];
    if (start === undefined || end === undefined) {
      throw new RangeError(
        `Cannot make a batch as its index must be from 0 to ${starts.length - 2}: current value is ${index}`,
      );
    }
    const indices = order.slice(start, end);
    const sources = Array.from(indices, (i) => this.#corpus.source.at(i));
    const targets = Array.from(indices, (i) => this.#corpus.target.at(i));
    return makeBatch(sources, targets, { layout: this.#options.layout, indices });
  }

  /** The batches of one epoch, from `start` on. */
  *epoch(epoch: number, start = 0): Generator<Batch, void, void> {
    for (let i = start; i < this.count(epoch); i++) yield this.batch(epoch, i);
  }

  /** Batches without end, from a cursor on; each comes with the cursor of the next. */
  *from(cursor: Cursor): Generator<{ batch: Batch; next: Cursor }, void, void> {
    if (this.#corpus.source.count === 0) return;
    let { epoch, batch: index } = cursor;
    while (true) {
      if (index >= this.count(epoch)) {
        epoch++;
        index = 0;
        continue;
      }
      const batch = this.batch(epoch, index++);
      yield {
        batch,
        next: index < this.count(epoch) ? { epoch, batch: index } : { epoch: epoch + 1, batch: 0 },
      };
    }
  }

  /** What an epoch amounts to, without making its batches. */
  statistics(epoch = 0): PlanStatistics {
    const { order, starts } = this.#planFor(epoch);
    const total = { sourceTokens: 0, targetTokens: 0, maxSentences: 0, maxSource: 0, maxTarget: 0 };
    let rows = 0;
    for (let i = 0; i + 1 < starts.length; i++) {
      const sentences = order.subarray(starts[i], starts[i + 1]);
      let longestSource = 0;
      let longestTarget = 0;
      let tokens = 0;
      for (const sentence of sentences) {
        const source = this.#sourceLength(sentence);
        const target = this.#targetLength(sentence);
        total.sourceTokens += source;
        total.targetTokens += target;
        tokens += source + target;
        longestSource = Math.max(longestSource, source);
        longestTarget = Math.max(longestTarget, target);
      }
      rows += this.#options.layout === "packed" ? tokens : sentences.length * (longestSource + longestTarget);
      total.maxSentences = Math.max(total.maxSentences, sentences.length);
      total.maxSource = Math.max(total.maxSource, longestSource);
      total.maxTarget = Math.max(total.maxTarget, longestTarget);
    }
    const padding = rows === 0 ? 0 : (rows - total.sourceTokens - total.targetTokens) / rows;
    return { batches: starts.length - 1, sentences: order.length, ...total, padding };
  }

  #planFor(epoch: number): Plan {
    if (!Number.isInteger(epoch) || epoch < 0) {
      throw new RangeError(
        `Cannot plan an epoch as its number must be a whole number >= 0: current value is ${epoch}`,
      );
    }
    // Without shuffling every epoch is the same.
    const key = this.#options.shuffle ? epoch : 0;
    if (this.#plan?.epoch !== key) this.#plan = this.#makePlan(key);
    return this.#plan;
  }

  #makePlan(epoch: number): Plan {
    const { pool, shuffle, seed } = this.#options;
    const random = new Random(seed, epoch + 1);
    const count = this.#corpus.source.count;
    const order = Int32Array.from({ length: count }, (_, i) => i);
    if (shuffle) random.shuffle(order);
    const poolSize = pool === 0 ? Math.max(count, 1) : pool;
    const batches: Int32Array[] = [];
    for (let start = 0; start < count; start += poolSize) {
      const sentences = Array.from(order.subarray(start, start + poolSize));
      // The sort is stable: sentences of equal length stay in shuffled order.
      sentences.sort((a, b) =>
        this.#sourceLength(a) - this.#sourceLength(b) || this.#targetLength(a) - this.#targetLength(b)
      );
      this.#cut(sentences, batches);
    }
    if (shuffle) random.shuffle(batches);
    const starts = new Int32Array(batches.length + 1);
    let at = 0;
    batches.forEach((batch, i) => {
      order.set(batch, at);
      at += batch.length;
      starts[i + 1] = at;
    });
    return { epoch, order, starts };
  }

  /** Cuts sorted sentences into batches that fit. */
  #cut(sentences: readonly number[], batches: Int32Array[]): void {
    const { rows, layout } = this.#options;
    let batch: number[] = [];
    let [source, target] = [0, 0];
    for (const sentence of sentences) {
      const sourceLength = this.#sourceLength(sentence);
      const targetLength = this.#targetLength(sentence);
      const size = batch.length + 1;
      // Packed: rows add up. Padded: `source` and `target` are the longest so far.
      let nextSource = layout === "packed" ? source + sourceLength : Math.max(source, sourceLength);
      let nextTarget = layout === "packed" ? target + targetLength : Math.max(target, targetLength);
      const factor = layout === "packed" ? 1 : size;
      if (size > this.#options.sentences || nextSource * factor > rows || nextTarget * factor > rows) {
        if (batch.length > 0) batches.push(Int32Array.from(batch));
        batch = [];
        nextSource = sourceLength;
        nextTarget = targetLength;
      }
      batch.push(sentence);
      source = nextSource;
      target = nextTarget;
    }
    if (batch.length > 0) batches.push(Int32Array.from(batch));
  }
}
