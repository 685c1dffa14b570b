/**
 * Batches by token budget. Sentences of like length are pooled, batches drawn from a pool hold as many as fit into a
 * given number of rows, and their order is shuffled by seed and epoch. A plan depends on nothing but its arguments, so a
 * run can go on from (epoch, batch index).
 *
 * @module
 */
import { type Batch, type Layout, makeBatch } from "./batch.ts";
import { BOS, EOS } from "./bpe.ts";
import { Random } from "./random.ts";

export { type Batch, fillTo, type Layout, makeBatch, paddingShare } from "./batch.ts";

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
