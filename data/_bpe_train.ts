/**
 * Learns BPE merges (Sennrich et al. 2016, algorithm 1) without recounting: every distinct chunk of the text is laid out
 * once as a linked list of symbols, an index holds the places of each pair, and a heap holds the pairs by count. A merge
 * then costs as much as the places it changes.
 *
 * @module
 */
import { PairTable } from "./_pairs.ts";

/** What stands between chunks, and in the place of characters outside the alphabet. */
const BOUNDARY = -1;
const DEAD = -2;

/** A pair of pieces to join, and the piece they give. */
export interface Merge {
  left: number;
  right: number;
  result: number;
}

/** An Int32Array that grows. */
class Ints {
  items: Int32Array;
  length = 0;
  constructor(capacity: number) {
    this.items = new Int32Array(Math.max(capacity, 1024));
  }
  push(value: number): number {
    if (this.length === this.items.length) {
      const grown = new Int32Array(Math.ceil(this.length * 1.5));
      grown.set(this.items);
      this.items = grown;
    }
    this.items[this.length] = value;
    return this.length++;
  }
  at(index: number): number {
    return this.items[index] ?? BOUNDARY;
  }
}

/** A maximum heap of pairs by (count, then the lexicographically first pair of pieces). Entries may be stale. */
class PairHeap {
  #pair: number[] = [];
  #count: number[] = [];
  #before: (a: number, b: number) => boolean;

  constructor(before: (a: number, b: number) => boolean) {
    this.#before = before;
  }

  get size(): number {
    return this.#pair.length;
  }

  push(pair: number, count: number): void {
    this.#pair.push(pair);
    this.#count.push(count);
    let child = this.#pair.length - 1;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (!this.#above(child, parent)) break;
      this.#swap(child, parent);
      child = parent;
    }
  }

  pop(): { pair: number; count: number } | undefined {
    const pair = this.#pair[0];
    const count = this.#count[0];
    if (pair === undefined || count === undefined) return undefined;
    this.#swap(0, this.#pair.length - 1);
    this.#pair.pop();
    this.#count.pop();
    const size = this.#pair.length;
    let parent = 0;
    while (true) {
      const first = 2 * parent + 1;
      if (first >= size) break;
      const child = first + 1 < size && this.#above(first + 1, first) ? first + 1 : first;
      if (!this.#above(child, parent)) break;
      this.#swap(child, parent);
      parent = child;
    }
    return { pair, count };
  }

  #above(a: number, b: number): boolean {
    const difference = (this.#count[a] ?? 0) - (this.#count[b] ?? 0);
    return difference !== 0 ? difference > 0 : this.#before(this.#pair[a] ?? 0, this.#pair[b] ?? 0);
  }

  #swap(a: number, b: number): void {
    const pair = this.#pair[a] ?? 0;
    const count = this.#count[a] ?? 0;
    this.#pair[a] = this.#pair[b] ?? 0;
    this.#count[a] = this.#count[b] ?? 0;
    this.#pair[b] = pair;
    this.#count[b] = count;
  }
}

/** The text as symbols, and the index of its pairs. */
class MergeTrainer {
  readonly #pieces: string[];
  readonly #maxPieceLength: number;
  // The symbols, all chunks one after another with a boundary between them.
  readonly #symbol: Int32Array;
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #weight: Int32Array;
  // The pairs.
  readonly #ids = new PairTable(1 << 16);
  readonly #left = new Ints(1 << 16);
  readonly #right = new Ints(1 << 16);
  readonly #first = new Ints(1 << 16);
  readonly #last = new Ints(1 << 16);
  #count = new Float64Array(1 << 16);
  // The places of each pair: linked lists of nodes, of which freed ones are used again.
  readonly #place: Ints;
  readonly #after: Ints;
  #free = -1;
  readonly #heap: PairHeap;
  #grown = new Set<number>();

  constructor(types: ReadonlyMap<string, number>, pieces: string[], maxPieceLength: number) {
    this.#pieces = pieces;
    this.#maxPieceLength = maxPieceLength;
    let size = 1;
    for (const type of types.keys()) size += type.length + 1;
    this.#symbol = new Int32Array(size).fill(BOUNDARY);
    this.#next = new Int32Array(size);
    this.#previous = new Int32Array(size);
    this.#weight = new Int32Array(size);
    this.#place = new Ints(size);
    this.#after = new Ints(size);
    this.#heap = new PairHeap((a, b) => this.#isBefore(a, b));
    this.#layOut(types);
  }

  #layOut(types: ReadonlyMap<string, number>): void {
    const ids = new Map(this.#pieces.map((piece, id) => [piece, id]));
    ids.set(" ", ids.get("\u2581") ?? BOUNDARY);
    // A literal U+2581 is no space: it is coded as bytes.
    ids.delete("\u2581");
    let at = 1;
    for (const [type, count] of types) {
      for (const char of type) {
        this.#symbol[at] = ids.get(char) ?? BOUNDARY;
        this.#weight[at] = Math.min(count, 0x7fffffff);
        at++;
      }
      at++;
    }
    for (let i = 0; i < this.#symbol.length; i++) {
      this.#next[i] = i + 1;
      this.#previous[i] = i - 1;
    }
    for (let i = 1; i < at; i++) {
      const left = this.#at(i);
      const right = this.#at(i + 1);
      if (left >= 0 && right >= 0) this.#add(left, right, i, this.#weight[i] ?? 0);
    }
    this.#pushGrown(1);
  }

  #at(position: number): number {
    return this.#symbol[position] ?? BOUNDARY;
  }

  /** Learns until there are `size` pieces, or no pair stands in the text `minFrequency` times. */
  run(size: number, minFrequency: number): Merge[] {
    const merges: Merge[] = [];
    const known = new Map(this.#pieces.map((piece, id) => [piece, id]));
    while (this.#pieces.length < size) {
      const best = this.#heap.pop();
      if (best === undefined) break;
      const count = this.#count[best.pair] ?? 0;
      if (count !== best.count) {
        if (count >= minFrequency) this.#heap.push(best.pair, count);
        continue;
      }
      if (count < minFrequency) break;
      const left = this.#left.at(best.pair);
      const right = this.#right.at(best.pair);
      const text = (this.#pieces[left] ?? "") + (this.#pieces[right] ?? "");
      // Two merges may spell the same piece ("ab" + "c", "a" + "bc"): they share its id.
      const result = known.get(text) ?? this.#pieces.push(text) - 1;
      known.set(text, result);
      merges.push({ left, right, result });
      this.#merge(best.pair, left, right, result);
      this.#pushGrown(minFrequency);
    }
    return merges;
  }

  #merge(pair: number, left: number, right: number, result: number): void {
    for (const position of this.#takePlaces(pair, left === right)) {
      const second = this.#next[position] ?? 0;
      if (this.#symbol[position] !== left || this.#symbol[second] !== right) continue;
      const weight = this.#weight[position] ?? 0;
      const before = this.#previous[position] ?? 0;
      const after = this.#next[second] ?? 0;
      const outerLeft = this.#at(before);
      const outerRight = this.#at(after);
      this.#symbol[position] = result;
      this.#symbol[second] = DEAD;
      this.#next[position] = after;
      this.#previous[after] = position;
      if (outerLeft >= 0) {
        this.#subtract(outerLeft, left, weight);
        this.#add(outerLeft, result, before, weight);
      }
      if (outerRight >= 0) {
        this.#subtract(right, outerRight, weight);
        this.#add(result, outerRight, position, weight);
      }
    }
    this.#count[pair] = 0;
    this.#grown.delete(pair);
  }

  /** Empties a pair's list of places. Equal symbols overlap ("aaa"), so theirs must be merged from left to right. */
  #takePlaces(pair: number, sorted: boolean): number[] {
    const places: number[] = [];
    for (let node = this.#first.at(pair); node >= 0;) {
      places.push(this.#place.at(node));
      const following = this.#after.at(node);
      this.#after.items[node] = this.#free;
      this.#free = node;
      node = following;
    }
    this.#first.items[pair] = -1;
    return sorted ? places.sort((a, b) => a - b) : places;
  }

  #subtract(left: number, right: number, weight: number): void {
    const pair = this.#ids.get(left, right);
    if (pair >= 0) this.#count[pair] = (this.#count[pair] ?? 0) - weight;
  }

  #add(left: number, right: number, position: number, weight: number): void {
    let pair = this.#ids.get(left, right);
    if (pair < 0) pair = this.#newPair(left, right);
    this.#count[pair] = (this.#count[pair] ?? 0) + weight;
    this.#grown.add(pair);
    let node = this.#free;
    if (node >= 0) {
      this.#free = this.#after.at(node);
      this.#place.items[node] = position;
      this.#after.items[node] = -1;
    } else {
      node = this.#place.push(position);
      this.#after.push(-1);
    }
    if (this.#first.at(pair) < 0) this.#first.items[pair] = node;
    else this.#after.items[this.#last.at(pair)] = node;
    this.#last.items[pair] = node;
  }

  #newPair(left: number, right: number): number {
    const pair = this.#left.push(left);
    this.#right.push(right);
    this.#first.push(-1);
    this.#last.push(-1);
    this.#ids.set(left, right, pair);
    if (pair >= this.#count.length) {
      const grown = new Float64Array(Math.ceil(pair * 1.5));
      grown.set(this.#count);
      this.#count = grown;
    }
    return pair;
  }

  #pushGrown(minFrequency: number): void {
    for (const pair of this.#grown) {
      const count = this.#count[pair] ?? 0;
      const length = this.#text(this.#left, pair).length + this.#text(this.#right, pair).length;
      if (count >= minFrequency && length <= this.#maxPieceLength) this.#heap.push(pair, count);
    }
    this.#grown.clear();
  }

  #text(side: Ints, pair: number): string {
    return this.#pieces[side.at(pair)] ?? "";
  }

  #isBefore(a: number, b: number): boolean {
    const leftA = this.#text(this.#left, a);
    const leftB = this.#text(this.#left, b);
    return leftA !== leftB ? leftA < leftB : this.#text(this.#right, a) < this.#text(this.#right, b);
  }
}

/**
 * Learns merges from counted chunks.
 *
 * @param types Chunks (`_chunks.ts`) and how often each stands in the text.
 * @param pieces The pieces that exist, by id; learned ones are appended.
 * @param size Number of pieces to stop at.
 */
export function learnMerges(
  types: ReadonlyMap<string, number>,
  pieces: string[],
  size: number,
  options: { minFrequency: number; maxPieceLength: number },
): Merge[] {
  return new MergeTrainer(types, pieces, options.maxPieceLength).run(size, options.minFrequency);
}
