/**
 * Seeded random numbers for corpora, shuffles and tests: xoshiro128** (Blackman and Vigna 2018), whose four words of
 * state are filled by splitmix32. Not for secrets.
 *
 * @module
 */

/** A seeded generator; the same seed gives the same numbers on every machine. */
export class Random {
  #a = 0;
  #b = 0;
  #c = 0;
  #d = 0;

  /**
   * Starts a sequence.
   *
   * @param seed Any finite number; its lower 53 bits count.
   * @param stream Separates generators of one seed, such as the epochs of a run.
   * @throws {RangeError} If the seed or the stream is no finite number.
   */
  constructor(seed: number, stream = 0) {
    for (const [name, value] of [["seed", seed], ["stream", stream]] as const) {
      if (!Number.isFinite(value)) {
        throw new RangeError(
          `Cannot seed a generator as ${name} must be a finite number: current value is ${value}`,
        );
      }
    }
    let state =
      (seed ^ Math.imul(Math.floor(seed / 4294967296), 0x85ebca6b) ^ Math.imul(stream, 0xc2b2ae35)) | 0;
    const fill = (): number => {
      state = (state + 0x9e3779b9) | 0;
      let z = state;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      return z ^ (z >>> 15);
    };
    this.#a = fill();
    this.#b = fill();
    this.#c = fill();
    // An all-zero state would stay zero for ever.
    this.#d = fill() | 1;
  }

  /** An unsigned integer of 32 bits. */
  uint32(): number {
    const product = Math.imul(this.#b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const shifted = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= shifted;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result;
  }

  /** A number in [0, 1) with 32 random bits. */
  next(): number {
    return this.uint32() / 4294967296;
  }

  /** An integer in [0, limit). */
  int(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  /** True with the given probability. */
  chance(probability: number): boolean {
    return this.next() < probability;
  }

  /**
   * One element of a list, all equally likely.
   *
   * @throws {RangeError} If the list is empty.
   */
  pick<T>(list: readonly T[]): T {
    const value = list[this.int(list.length)];
    if (value === undefined) throw new RangeError("Cannot pick from a list as it must not be empty");
    return value;
  }

  /** Shuffles in place (Fisher and Yates) and returns its argument. */
  shuffle<T extends Int32Array | unknown[]>(list: T): T {
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.int(i + 1);
      const kept = list[i];
      list[i] = list[j];
      list[j] = kept;
    }
    return list;
  }
}
