/**
 * A hash table from pairs of ids to small integers: open addressing on typed arrays, several times faster than a Map
 * with number keys above 2^31.
 *
 * @module
 */

/** Maps (left, right), both in [0, 2^31), to integers >= 0. Entries are never removed. */
export class PairTable {
  #left: Int32Array;
  #right: Int32Array;
  #value: Int32Array;
  #mask: number;
  #size = 0;

  /** @param capacity Entries expected; the table grows beyond it. */
  constructor(capacity = 1024) {
    let slots = 1024;
    while (slots < capacity * 2) slots *= 2;
    this.#left = new Int32Array(slots);
    this.#right = new Int32Array(slots);
    this.#value = new Int32Array(slots).fill(-1);
    this.#mask = slots - 1;
  }

  /** Number of entries. */
  get size(): number {
    return this.#size;
  }

  /** The value of a pair, or -1. */
  get(left: number, right: number): number {
    return this.#value[this.#slot(left, right)] ?? -1;
  }

  /** Sets the value of a pair, which must be >= 0. */
  set(left: number, right: number, value: number): void {
    const slot = this.#slot(left, right);
    if (this.#value[slot] === -1) {
      this.#left[slot] = left;
      this.#right[slot] = right;
      this.#size++;
    }
    this.#value[slot] = value;
    if (this.#size * 2 > this.#mask) this.#grow();
  }

  #slot(left: number, right: number): number {
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    hash ^= hash >>> 15;
    let slot = Math.imul(hash, 0x2c1b3c6d) >>> 7 & this.#mask;
    while (this.#value[slot] !== -1 && (this.#left[slot] !== left || this.#right[slot] !== right)) {
      slot = (slot + 1) & this.#mask;
    }
    return slot;
  }

  #grow(): void {
    const [left, right, value] = [this.#left, this.#right, this.#value];
    const slots = value.length * 2;
    this.#left = new Int32Array(slots);
    this.#right = new Int32Array(slots);
    this.#value = new Int32Array(slots).fill(-1);
    this.#mask = slots - 1;
    this.#size = 0;
    for (let i = 0; i < value.length; i++) {
      const old = value[i] ?? -1;
      if (old !== -1) this.set(left[i] ?? 0, right[i] ?? 0, old);
    }
  }
}
