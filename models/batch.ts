/**
 * What the models need of a batch: plain typed arrays. data/ makes them; nothing here depends on how.
 *
 * @module
 */

/** Id of padding, in every vocabulary. */
export const PAD_ID = 0;
/** Id that begins a target sentence. */
export const BOS_ID = 2;
/** Id that ends a sentence. */
export const EOS_ID = 3;

/**
 * B sentence pairs as packed rows with cumulative offsets. The padded layout is the same with equal offsets, pad ids in
 * the gaps, and key lengths.
 */
export interface Batch {
  /** B. */
  readonly sentences: number;
  /** [Rs] source ids; {@linkcode PAD_ID} in padding. */
  readonly sourceIds: Int32Array;
  /** [Rs] position of each source row in its sentence, from 0. */
  readonly sourcePositions: Int32Array;
  /** [B + 1] where each sentence's source rows begin, and the end. */
  readonly sourceOffsets: Int32Array;
  /** [B] source rows that are no padding; absent where all are. */
  readonly sourceKeyLengths?: Int32Array | null;
  /** [Rt] what the decoder reads: the target after BOS. */
  readonly targetInput: Int32Array;
  /** [Rt] what it must say: the target before EOS; {@linkcode PAD_ID} in padding. */
  readonly targetOutput: Int32Array;
  /** [Rt] position of each target row in its sentence. */
  readonly targetPositions: Int32Array;
  /** [B + 1]. */
  readonly targetOffsets: Int32Array;
  /** [B] target rows that are no padding; absent where all are. */
  readonly targetKeyLengths?: Int32Array | null;
  /** At least the longest source, in rows. */
  readonly maxSource: number;
  /** At least the longest target, in rows. */
  readonly maxTarget: number;
  /** Target rows that are no padding: what losses are divided by. */
  readonly targetTokens: number;
}

/** Room of a batch on the device. */
export interface Capacity {
  /** Source rows. */
  sourceRows: number;
  /** Target rows. */
  targetRows: number;
  /** Sentences. */
  sentences: number;
  /** Rows of the longest source. */
  maxSource: number;
  /** Rows of the longest target. */
  maxTarget: number;
}

/** The least capacity that holds `batch`. */
export function capacityOf(batch: Batch): Capacity {
  return {
    sourceRows: batch.sourceIds.length,
    targetRows: batch.targetInput.length,
    sentences: batch.sentences,
    maxSource: batch.maxSource,
    maxTarget: batch.maxTarget,
  };
}

/**
 * Checks that the arrays of a batch fit together and their values are in range.
 *
 * @throws {RangeError} If they do not: the message names the array.
 */
export function checkBatch(
  batch: Batch,
  limits: { sourceVocabulary: number; targetVocabulary: number; maxLength: number },
): void {
  const B = batch.sentences;
  const Rs = batch.sourceIds.length;
  const Rt = batch.targetInput.length;
  const lengths: readonly (readonly [string, Int32Array | null | undefined, number])[] = [
    ["sourcePositions", batch.sourcePositions, Rs],
    ["sourceOffsets", batch.sourceOffsets, B + 1],
    ["sourceKeyLengths", batch.sourceKeyLengths, B],
    ["targetOutput", batch.targetOutput, Rt],
    ["targetPositions", batch.targetPositions, Rt],
    ["targetOffsets", batch.targetOffsets, B + 1],
    ["targetKeyLengths", batch.targetKeyLengths, B],
  ];
  for (const [label, array, length] of lengths) {
    if (array && array.length !== length) {
      throw new RangeError(
        `Cannot use a batch as ${label} must hold ${length} numbers: it holds ${array.length}`,
      );
    }
  }
  checkOffsets("sourceOffsets", batch.sourceOffsets, Rs, batch.maxSource);
  checkOffsets("targetOffsets", batch.targetOffsets, Rt, batch.maxTarget);
  checkValues("sourceIds", batch.sourceIds, limits.sourceVocabulary);
  checkValues("targetInput", batch.targetInput, limits.targetVocabulary);
  checkValues("targetOutput", batch.targetOutput, limits.targetVocabulary);
  checkValues("sourcePositions", batch.sourcePositions, limits.maxLength);
  checkValues("targetPositions", batch.targetPositions, limits.maxLength);
}

function checkOffsets(label: string, offsets: Int32Array, rows: number, longest: number): void {
  for (let b = 0; b + 1 < offsets.length; b++) {
    const [from = 0, to = 0] = [offsets[b], offsets[b + 1]];
    if (from < 0 || to < from || to > rows || to - from > longest) {
      throw new RangeError(
        `Cannot use a batch as ${label} must rise by at most ${longest} up to ${rows}: sentence ${b} has ${from} to ${to}`,
      );
    }
  }
}

function checkValues(label: string, values: Int32Array, limit: number): void {
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? 0;
    if (value < 0 || value >= limit) {
      throw new RangeError(
        `Cannot use a batch as ${label} must be 0 to ${limit - 1}: element ${i} is ${value}`,
      );
    }
  }
}
