/**
 * Batches on their way to the device: at fixed places for a capacity, so that a captured graph finds them again.
 *
 * @module
 */

import type { Arena } from "../ffi/mod.ts";
import { type Batch, type Capacity, capacityOf, PAD_ID } from "./batch.ts";
import { IntegerBuffer } from "./integers.ts";
import type { DeviceBatch } from "./transformer.ts";

type Name =
  | "sourceIds"
  | "sourcePositions"
  | "sourceOffsets"
  | "sourceKeyLengths"
  | "targetInput"
  | "targetOutput"
  | "targetPositions"
  | "targetOffsets"
  | "targetKeyLengths";

/** Room for one batch after another on the device. */
export class StagedBatch {
  /** The batch's tensors, views of one buffer. */
  readonly device: DeviceBatch;
  /** What fits. */
  readonly capacity: Readonly<Capacity>;
  readonly #integers: IntegerBuffer<Name>;

  /**
   * Takes room from `arena`.
   *
   * @param padded Whether batches come with key lengths.
   */
  constructor(arena: Arena, capacity: Capacity, padded: boolean) {
    const { sourceRows, targetRows, sentences } = capacity;
    this.capacity = capacity;
    const integers = new IntegerBuffer<Name>(arena, {
      sourceIds: sourceRows,
      sourcePositions: sourceRows,
      sourceOffsets: sentences + 1,
      sourceKeyLengths: sentences,
      targetInput: targetRows,
      targetOutput: targetRows,
      targetPositions: targetRows,
      targetOffsets: sentences + 1,
      targetKeyLengths: sentences,
    });
    this.#integers = integers;
    this.device = {
      source: {
        ids: integers.view("sourceIds"), // [Rs]
        positions: integers.view("sourcePositions"), // [Rs]
        offsets: integers.view("sourceOffsets"), // [B + 1]
        keyLengths: padded ? integers.view("sourceKeyLengths") : null, // [B]
        maxLength: capacity.maxSource,
      },
      target: {
        ids: integers.view("targetInput"), // [Rt]
        positions: integers.view("targetPositions"), // [Rt]
        offsets: integers.view("targetOffsets"), // [B + 1]
        keyLengths: padded ? integers.view("targetKeyLengths") : null, // [B]
        maxLength: capacity.maxTarget,
      },
      targets: integers.view("targetOutput"), // [Rt]
    };
  }

  /**
   * Uploads `batch`. Rows beyond it are padding of no sentence, sentences beyond it are empty.
   *
   * @throws {RangeError} If it does not fit.
   */
  upload(batch: Batch): void {
    const needs = capacityOf(batch);
    for (const key of Object.keys(needs) as (keyof Capacity)[]) {
      if (needs[key] > this.capacity[key]) {
        throw new RangeError(
          `Cannot stage a batch as ${key} must be at most ${this.capacity[key]}: current value is ${
            needs[key]
          }`,
        );
      }
    }
    const integers = this.#integers;
    integers.set("sourceIds", batch.sourceIds, PAD_ID);
    integers.set("sourcePositions", batch.sourcePositions);
    integers.set("sourceOffsets", batch.sourceOffsets, batch.sourceOffsets.at(-1));
    integers.set("sourceKeyLengths", batch.sourceKeyLengths ?? lengths(batch.sourceOffsets));
    integers.set("targetInput", batch.targetInput, PAD_ID);
    integers.set("targetOutput", batch.targetOutput, PAD_ID);
    integers.set("targetPositions", batch.targetPositions);
    integers.set("targetOffsets", batch.targetOffsets, batch.targetOffsets.at(-1));
    integers.set("targetKeyLengths", batch.targetKeyLengths ?? lengths(batch.targetOffsets));
    integers.upload();
  }
}

/** Rows of each sentence. */
function lengths(offsets: Int32Array): Int32Array {
  return offsets.subarray(1).map((end, b) => end - (offsets[b] ?? 0));
}
