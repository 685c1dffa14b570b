/**
 * A batch: the ids, positions and offsets of some sentence pairs as the model takes them, packed or padded.
 *
 * @module
 */
import { BOS, EOS, PAD } from "./bpe.ts";

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
