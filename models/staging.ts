/**
 * Batches on their way to the device: all integers of a batch in one buffer, at fixed places for a capacity, so that one
 * upload carries them and a captured graph finds them again.
 *
 * @module
 */

import type { Arena, Tensor } from "../ffi/mod.ts";
import { type Batch, type Capacity, PAD_ID } from "./batch.ts";
import type { DeviceBatch } from "./transformer.ts";

const ALIGNMENT = 64; // integers: 256 bytes, as the arena aligns

/** Names and lengths of the arrays, in their order. */
function sections(capacity: Capacity): readonly (readonly [string, number])[] {
  const { sourceRows, targetRows, sentences } = capacity;
  return [
    ["sourceIds", sourceRows],
    ["sourcePositions", sourceRows],
    ["targetInput", targetRows],
    ["targetOutput", targetRows],
    ["targetPositions", targetRows],
    ["sourceOffsets", sentences + 1],
    ["targetOffsets", sentences + 1],
    ["sourceKeyLengths", sentences],
    ["targetKeyLengths", sentences],
  ];
}

/** Room for one batch after another on the device. */
export class StagedBatch {
  /** The batch's tensors, views of one buffer. */
  readonly device: DeviceBatch;
  /** What fits. */
  readonly capacity: Readonly<Capacity>;
  readonly #host: Int32Array<ArrayBuffer>;
  readonly #buffer: Tensor;
  readonly #offsets = new Map<string, number>();

  /**
   * Takes room from `arena`.
   *
   * @param padded Whether batches come with key lengths.
   */
  constructor(arena: Arena, capacity: Capacity, padded: boolean) {
    this.capacity = capacity;
    let size = 0;
    for (const [name, length] of sections(capacity)) {
      this.#offsets.set(name, size);
      size += Math.ceil(length / ALIGNMENT) * ALIGNMENT;
    }
    this.#host = new Int32Array(size);
    this.#buffer = arena.tensor([size], "i32");
    const views = new Map(
      sections(capacity).map((
        [name, length],
      ) => [name, this.#buffer.slice(this.#offsets.get(name) ?? 0, length)]),
    );
    const view = (name: string): Tensor => {
      const tensor = views.get(name);
      if (tensor === undefined) throw new ReferenceError(`Cannot stage ${name}`);
      return tensor;
    };
    this.device = {
      source: {
        ids: view("sourceIds"),
        positions: view("sourcePositions"),
        offsets: view("sourceOffsets"),
        keyLengths: padded ? view("sourceKeyLengths") : null,
        maxLength: capacity.maxSource,
      },
      target: {
        ids: view("targetInput"),
        positions: view("targetPositions"),
        offsets: view("targetOffsets"),
        keyLengths: padded ? view("targetKeyLengths") : null,
        maxLength: capacity.maxTarget,
      },
      targets: view("targetOutput"),
    };
  }

  /**
   * Uploads `batch`. Rows beyond it are padding of no sentence, sentences beyond it are empty.
   *
   * @throws {RangeError} If it does not fit.
   */
  upload(batch: Batch): void {
    const { capacity } = this;
    const needs: Capacity = {
      sourceRows: batch.sourceIds.length,
      targetRows: batch.targetInput.length,
      sentences: batch.sentences,
      maxSource: batch.maxSource,
      maxTarget: batch.maxTarget,
    };
    for (const key of Object.keys(needs) as (keyof Capacity)[]) {
      if (needs[key] > capacity[key]) {
        throw new RangeError(
          `Cannot stage a batch as ${key} must be at most ${capacity[key]}: current value is ${needs[key]}`,
        );
      }
    }
    this.#fill("sourceIds", batch.sourceIds, PAD_ID);
    this.#fill("sourcePositions", batch.sourcePositions, 0);
    this.#fill("targetInput", batch.targetInput, PAD_ID);
    this.#fill("targetOutput", batch.targetOutput, PAD_ID);
    this.#fill("targetPositions", batch.targetPositions, 0);
    this.#fill("sourceOffsets", batch.sourceOffsets, batch.sourceOffsets.at(-1) ?? 0);
    this.#fill("targetOffsets", batch.targetOffsets, batch.targetOffsets.at(-1) ?? 0);
    this.#fill("sourceKeyLengths", batch.sourceKeyLengths ?? [], 0);
    this.#fill("targetKeyLengths", batch.targetKeyLengths ?? [], 0);
    this.#buffer.write(this.#host);
  }

  #fill(name: string, values: ArrayLike<number>, rest: number): void {
    const start = this.#offsets.get(name) ?? 0;
    const length = sections(this.capacity).find(([other]) => other === name)?.[1] ?? 0;
    this.#host.set(values, start);
    this.#host.fill(rest, start + values.length, start + length);
  }
}
