/**
 * Named integer arrays in one device buffer, so that one upload carries them all.
 *
 * @module
 */

import type { Arena, Tensor } from "../ffi/mod.ts";

const ALIGNMENT = 64; // integers: 256 bytes, as arenas align

/** Integer arrays at fixed places of one buffer, filled on the host and uploaded together. */
export class IntegerBuffer<Name extends string> {
  readonly #host: Int32Array<ArrayBuffer>;
  readonly #buffer: Tensor;
  readonly #places = new Map<Name, { start: number; length: number }>();

  /** Takes room for arrays of these lengths from `arena`. */
  constructor(arena: Arena, lengths: Readonly<Record<Name, number>>) {
    let size = 0;
    for (const name of Object.keys(lengths) as Name[]) {
      this.#places.set(name, { start: size, length: lengths[name] });
      size += Math.ceil(lengths[name] / ALIGNMENT) * ALIGNMENT;
    }
    this.#host = new Int32Array(size);
    this.#buffer = arena.tensor([size], "i32");
  }

  /** The first `count` numbers of an array on the device, by default all, as i32 [count]. */
  view(name: Name, count?: number): Tensor {
    const { start, length } = this.#place(name);
    return this.#buffer.slice(start, count ?? length);
  }

  /** Sets an array on the host: `values`, then `rest` up to its end. */
  set(name: Name, values: ArrayLike<number>, rest = 0): void {
    const { start, length } = this.#place(name);
    this.#host.set(values, start);
    this.#host.fill(rest, start + values.length, start + length);
  }

  /** Copies all arrays to the device. */
  upload(): void {
    this.#buffer.write(this.#host);
  }

  #place(name: Name): { start: number; length: number } {
    const place = this.#places.get(name);
    if (place === undefined) throw new ReferenceError(`Cannot find the array ${name}`);
    return place;
  }
}
