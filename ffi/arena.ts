/**
 * Arenas: memory with a scope. Tensors are cut from chunks by a bump pointer; freeing is rewinding.
 *
 * @module
 */

import type { Context } from "./context.ts";
import { type DType, ELEMENT_BYTES, type HostArray } from "./dtype.ts";
import { type Block, product, Tensor } from "./tensor.ts";

const ALIGNMENT = 256; // as fa_alloc aligns; at least what any kernel or library asks
const DEFAULT_CHUNK_BYTES = 16 << 20;

interface Chunk {
  address: bigint;
  bytes: number;
}

/** A point to which an arena can be rewound. */
export interface Mark {
  /** Index of the chunk in use. */
  readonly chunk: number;
  /** Bytes used of it. */
  readonly used: number;
  /** Blocks handed out before. */
  readonly blocks: number;
}

/** Options of an arena. */
export interface ArenaOptions {
  /** Bytes taken from the device at a time; a larger tensor gets a chunk of its own. Default 16 MiB. */
  chunkBytes?: number;
}

/**
 * Owner of tensors. `using` frees them all at once; {@linkcode Arena.reset} reuses the memory without giving it back, so
 * that the same sequence of requests gets the same addresses: what a captured graph needs.
 */
export class Arena implements Disposable {
  /** The context whose memory it hands out. */
  readonly context: Context;
  readonly #chunkBytes: number;
  readonly #chunks: Chunk[] = [];
  #blocks: Block[] = [];
  #chunk = 0;
  #used = 0;
  #disposed = false;

  /** An empty arena: memory is taken with the first tensor. */
  constructor(context: Context, options: ArenaOptions = {}) {
    this.context = context;
    this.#chunkBytes = options.chunkBytes ?? DEFAULT_CHUNK_BYTES;
  }

  /** Bytes taken from the device. */
  get capacity(): number {
    return this.#chunks.reduce((sum, chunk) => sum + chunk.bytes, 0);
  }

  /**
   * A tensor of undefined content, owned by this arena.
   *
   * @throws {RangeError} If a size is negative or not whole.
   * @throws {OutOfMemoryError} If the device has no room.
   * @throws {ReferenceError} If the arena is disposed of.
   */
  tensor(shape: readonly number[], dtype: DType = this.context.dtype): Tensor {
    if (this.#disposed) throw new ReferenceError("Cannot allocate from an arena after it is disposed of");
    if (
      !shape.every((size) => Number.isSafeInteger(size) && size >= 0) || !Number.isSafeInteger(product(shape))
    ) {
      throw new RangeError(`Cannot allocate a tensor [${shape}]: sizes must be whole numbers from 0 up`);
    }
    const bytes = Math.max(1, product(shape) * ELEMENT_BYTES[dtype]);
    const address = this.#bump(Math.ceil(bytes / ALIGNMENT) * ALIGNMENT);
    const block = { alive: true };
    this.#blocks.push(block);
    const stride = product(shape.slice(1));
    return new Tensor({ context: this.context, block, address, dtype, shape: [...shape], stride });
  }

  /** A tensor of zeros. */
  zeros(shape: readonly number[], dtype: DType = this.context.dtype): Tensor {
    return this.tensor(shape, dtype).fill(0);
  }

  /** A tensor that holds `values`. */
  from(values: HostArray, shape: readonly number[], dtype: DType): Tensor {
    return this.tensor(shape, dtype).write(values);
  }

  /** The present point, for {@linkcode rewind}. */
  mark(): Mark {
    return { chunk: this.#chunk, used: this.#used, blocks: this.#blocks.length };
  }

  /** Ends the life of all tensors made since `mark`; their memory will be handed out again. */
  rewind(mark: Mark): void {
    for (const block of this.#blocks.splice(mark.blocks)) block.alive = false;
    this.#chunk = mark.chunk;
    this.#used = mark.used;
  }

  /** Ends the life of all tensors, keeping the memory for the next ones. */
  reset(): void {
    this.rewind({ chunk: 0, used: 0, blocks: 0 });
  }

  /** Frees all memory. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.reset();
    for (const chunk of this.#chunks.splice(0)) this.context.free(chunk.address);
    this.#blocks = [];
  }

  #bump(bytes: number): bigint {
    for (; this.#chunk < this.#chunks.length; this.#chunk++, this.#used = 0) {
      const chunk = this.#chunks[this.#chunk];
      if (chunk === undefined || this.#used + bytes > chunk.bytes) continue;
      const address = chunk.address + BigInt(this.#used);
      this.#used += bytes;
      return address;
    }
    const size = Math.max(bytes, this.#chunkBytes);
    const address = this.context.allocate(size);
    this.#chunks.push({ address, bytes: size });
    this.#used = bytes;
    return address;
  }
}
