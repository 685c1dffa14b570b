/**
 * Tensors: typed views of device memory that an arena owns.
 *
 * @module
 */

import type { Context } from "./context.ts";
import { decode, type DType, ELEMENT_BYTES, encode, type HostArray } from "./dtype.ts";

/** A piece of an arena: alive until the arena is rewound past it or disposed of. */
export interface Block {
  /** False once the memory may hold something else. */
  alive: boolean;
}

/** How a tensor lies in memory; for Arena and the tensor's own views. */
export interface Layout {
  /** The context whose memory it is. */
  context: Context;
  /** The piece of the arena it lies in. */
  block: Block;
  /** Device address of the first element. */
  address: bigint;
  /** Element type. */
  dtype: DType;
  /** Sizes, outermost first. */
  shape: readonly number[];
  /** Elements between the starts of two rows (index 0); the rest is contiguous. */
  stride: number;
}

/** The product of `sizes`. */
export function product(sizes: readonly number[]): number {
  return sizes.reduce((total, size) => total * size, 1);
}

/**
 * An n-dimensional array in device memory, row-major, its rows `stride` elements apart.
 *
 * Owned by the arena that made it; views share its memory and its life.
 */
export class Tensor {
  /** The context whose memory it is. */
  readonly context: Context;
  /** Element type. */
  readonly dtype: DType;
  /** Sizes, outermost first. */
  readonly shape: readonly number[];
  /** Elements between the starts of two rows. */
  readonly stride: number;
  readonly #block: Block;
  readonly #address: bigint;
  #pointer: Deno.PointerObject | null | undefined;

  /** Made by {@linkcode Arena.tensor}, or as a view. */
  constructor(layout: Layout) {
    this.context = layout.context;
    this.dtype = layout.dtype;
    this.shape = layout.shape;
    this.stride = layout.stride;
    this.#block = layout.block;
    this.#address = layout.address;
  }

  /** Size of dimension 0; 1 for a scalar. */
  get rows(): number {
    return this.shape[0] ?? 1;
  }

  /** Elements of one row: the product of the other dimensions. */
  get columns(): number {
    return product(this.shape.slice(1));
  }

  /** Elements in all. */
  get size(): number {
    return product(this.shape);
  }

  /** Bytes of the elements, gaps between rows not counted. */
  get byteLength(): number {
    return this.size * ELEMENT_BYTES[this.dtype];
  }

  /** Whether there are no gaps between rows. */
  get contiguous(): boolean {
    return this.stride === this.columns || this.rows <= 1;
  }

  /** Whether the memory still is this tensor's. */
  get alive(): boolean {
    return this.#block.alive && !this.context.disposed;
  }

  /**
   * Device address of the first element.
   *
   * @throws {ReferenceError} If the arena was rewound or disposed of since.
   */
  get address(): bigint {
    if (!this.alive) {
      throw new ReferenceError(
        `Cannot use a tensor [${this.shape}] after its arena was reset or disposed of`,
      );
    }
    return this.#address;
  }

  /** The same as a pointer object, for calls. */
  get pointer(): Deno.PointerObject | null {
    const { address } = this;
    if (this.#pointer === undefined) this.#pointer = Deno.UnsafePointer.create(address);
    return this.#pointer;
  }

  /** The same elements under another shape. */
  reshape(...shape: number[]): Tensor {
    if (!this.contiguous) {
      throw new TypeError(`Cannot reshape a view [${this.shape}] with gaps between its rows`);
    }
    if (product(shape) !== this.size) {
      throw new RangeError(`Cannot reshape [${this.shape}] to [${shape}]: ${this.size} elements`);
    }
    return this.#view(0, shape, product(shape.slice(1)), this.dtype);
  }

  /** Rows `start` to `start + count` of dimension 0, as a view. */
  slice(start: number, count: number): Tensor {
    this.#within("rows", start, count, this.rows);
    return this.#view(start * this.stride, [count, ...this.shape.slice(1)], this.stride, this.dtype);
  }

  /** Columns `start` to `start + count` of every row of a matrix, as a view. */
  columnSlice(start: number, count: number): Tensor {
    if (this.shape.length !== 2) {
      throw new TypeError(`Cannot slice columns of [${this.shape}]: it must be a matrix`);
    }
    this.#within("columns", start, count, this.columns);
    return this.#view(start, [this.rows, count], this.stride, this.dtype);
  }

  /** Copies host values in; `Float32Array` for all floating types, `Int32Array` or `BigUint64Array` for integers. */
  write(values: HostArray): this {
    if (values.length !== this.size) {
      throw new RangeError(
        `Cannot write ${values.length} elements to a tensor [${this.shape}] of ${this.size}`,
      );
    }
    if (!this.contiguous) {
      throw new TypeError(`Cannot write to a view [${this.shape}] with gaps between its rows`);
    }
    return this.writeBytes(encode(values, this.dtype));
  }

  /** Copies raw bytes in, in the tensor's own format. */
  writeBytes(bytes: Uint8Array<ArrayBuffer>): this {
    if (bytes.byteLength !== this.byteLength || !this.contiguous) {
      throw new RangeError(`Cannot write ${bytes.byteLength} bytes to a tensor of ${this.byteLength}`);
    }
    if (bytes.byteLength === 0) return this;
    const { symbols, handle } = this.context;
    const status = symbols.fa_upload(handle, this.pointer, bytes, BigInt(bytes.byteLength));
    this.context.check("fa_upload", status);
    return this;
  }

  /** The elements, row by row without gaps, on the host; waits. Floating types as `Float32Array`. */
  read(): HostArray {
    const bytes = new Uint8Array(this.byteLength);
    if (bytes.length === 0) return decode(bytes, this.dtype);
    const rowBytes = this.columns * ELEMENT_BYTES[this.dtype];
    const pieces = this.contiguous ? 1 : this.rows;
    const { symbols, handle } = this.context;
    for (let piece = 0; piece < pieces; piece++) {
      const target = this.contiguous ? bytes : bytes.subarray(piece * rowBytes, (piece + 1) * rowBytes);
      const source = this.contiguous ? this.pointer : this.slice(piece, 1).pointer;
      const status = symbols.fa_download(handle, target, source, BigInt(target.length));
      this.context.check("fa_download", status);
    }
    return decode(bytes, this.dtype);
  }

  /** {@linkcode read} of a floating type. */
  floats(): Float32Array<ArrayBuffer> {
    const values = this.read();
    if (values instanceof Float32Array) return values;
    throw new TypeError(`Cannot read a tensor of ${this.dtype} as floats`);
  }

  /** {@linkcode read} of i32. */
  ints(): Int32Array<ArrayBuffer> {
    const values = this.read();
    if (values instanceof Int32Array) return values;
    throw new TypeError(`Cannot read a tensor of ${this.dtype} as 32-bit integers`);
  }

  /** Sets every byte. */
  fill(byte: number): this {
    if (!this.contiguous) throw new TypeError("Cannot fill a view with gaps between its rows");
    const { symbols, handle } = this.context;
    const status = symbols.fa_memset(handle, this.pointer, byte, BigInt(this.byteLength));
    this.context.check("fa_memset", status);
    return this;
  }

  #view(offset: number, shape: readonly number[], stride: number, dtype: DType): Tensor {
    const address = this.address + BigInt(offset * ELEMENT_BYTES[this.dtype]);
    return new Tensor({ context: this.context, block: this.#block, address, dtype, shape, stride });
  }

  #within(what: string, start: number, count: number, size: number): void {
    const valid = Number.isInteger(start) && Number.isInteger(count) && start >= 0 && count >= 0;
    if (!valid || start + count > size) {
      throw new RangeError(`Cannot take ${what} ${start} to ${start + count} of [${this.shape}]`);
    }
  }
}
