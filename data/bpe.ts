/**
 * Byte-pair encoding with SentencePiece's conventions: U+2581 stands for a space, one is put before the text, ids are
 * pad 0, unk 1, bos 2, eos 3, the bytes <0x00> to <0xFF> at 4 to 259, then single characters, then merges in the order
 * learned. Characters outside the alphabet become bytes, so nothing is ever unknown and decoding gives the text back,
 * white space aside. There is no Unicode normalisation: a full-width comma stays one.
 *
 * @module
 */
import { learnMerges, type Merge } from "./_bpe_train.ts";
import { collapse, forEachChunk } from "./_chunks.ts";
import { PairTable } from "./_pairs.ts";

/** Id of padding. */
export const PAD = 0;
/** Id of the unknown piece; kept for the convention, byte fallback leaves no use for it. */
export const UNK = 1;
/** Id of the beginning of a sentence. */
export const BOS = 2;
/** Id of the end of a sentence. */
export const EOS = 3;

const FIRST_BYTE = 4;
const FIRST_CHAR = FIRST_BYTE + 256;
const SPACE = "\u2581";
const SPECIALS = ["<pad>", "<unk>", "<s>", "</s>"];
/** Longest chunk coded at once, so that a megabyte without a space costs no more than linear time. */
const ENCODE_LIMIT = 128;
/** Longest chunk in training: unspaced runs are cut so that their pieces are counted, not whole sentences. */
const TRAIN_LIMIT = 16;
const CACHED_LENGTH = 24;
const CACHED_CHUNKS = 1 << 17;

/** How a vocabulary is learned. */
export interface BpeOptions {
  /** Number of pieces, specials and bytes included. Fewer come out where the text has no more pairs to join. */
  vocabSize: number;
  /** Share of the text's characters that the alphabet must cover; the rest become bytes. Default 0.9995. */
  coverage?: number;
  /** A pair must stand in the text this often to be joined. Default 2. */
  minFrequency?: number;
  /** Longest piece in UTF-16 code units. Default 16. */
  maxPieceLength?: number;
  /** Put a space before the text, so that a word is one piece wherever it stands. Default true. */
  prefixSpace?: boolean;
}

/** A vocabulary as JSON: `alphabet` in id order from 260, `merges` as "left right". */
export interface BpeJson {
  /** Says what this is. */
  format: "bpe";
  /** Version of this layout. */
  version: 1;
  /** Whether a space is put before the text. */
  prefixSpace: boolean;
  /** The characters with an id of their own, from 260 on. */
  alphabet: string[];
  /** The merges in the order learned, as "left right". */
  merges: string[];
}

function basePieces(alphabet: readonly string[]): string[] {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
  return [...SPECIALS, ...bytes, ...alphabet];
}

function between(name: string, value: number, lowest: number, highest: number): void {
  if (!(value >= lowest && value <= highest)) {
    throw new RangeError(
      `Cannot train a vocabulary as ${name} must be from ${lowest} to ${highest}: current value is ${value}`,
    );
  }
}

/** The most frequent characters that make up `coverage` of the text; the space always comes first. */
function chooseAlphabet(types: ReadonlyMap<string, number>, coverage: number): string[] {
  const counts = new Map<string, number>();
  let total = 0;
  for (const [type, count] of types) {
    for (const char of type) {
      if (char === " " || char === SPACE) continue;
      counts.set(char, (counts.get(char) ?? 0) + count);
      total += count;
    }
  }
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const alphabet = [SPACE];
  let covered = 0;
  for (const [char, count] of sorted) {
    if (covered >= coverage * total) break;
    alphabet.push(char);
    covered += count;
  }
  return alphabet;
}

/** A trained vocabulary that turns text into ids and back. Make one with `Bpe.train` or `Bpe.fromJson`. */
export class Bpe {
  readonly #pieces: readonly string[];
  readonly #merges: readonly Merge[];
  readonly #alphabetSize: number;
  readonly #prefixSpace: boolean;
  readonly #ranks: PairTable;
  readonly #chars = new Map<string, number>();
  readonly #cache = new Map<string, Int32Array>();
  #hash: string | undefined;

  private constructor(pieces: string[], alphabetSize: number, merges: Merge[], prefixSpace: boolean) {
    this.#pieces = pieces;
    this.#alphabetSize = alphabetSize;
    this.#merges = merges;
    this.#prefixSpace = prefixSpace;
    this.#ranks = new PairTable(merges.length);
    merges.forEach((merge, rank) => this.#ranks.set(merge.left, merge.right, rank));
    for (let id = FIRST_CHAR; id < FIRST_CHAR + alphabetSize; id++) this.#chars.set(pieces[id] ?? "", id);
    // In a collapsed text a space is " "; a literal U+2581 goes by bytes, so that decoding cannot mix them up.
    const space = this.#chars.get(SPACE);
    this.#chars.delete(SPACE);
    if (space !== undefined) this.#chars.set(" ", space);
  }

  /**
   * Learns a vocabulary from text. Deterministic: the most frequent pair is joined first, of equally frequent ones the
   * lexicographically first.
   *
   * @param lines Sentences; read once.
   * @throws {RangeError} If an option is out of range, or the vocabulary too small for bytes and alphabet.
   */
  static train(lines: Iterable<string>, options: BpeOptions): Bpe {
    const { vocabSize, coverage = 0.9995, minFrequency = 2, maxPieceLength = 16, prefixSpace = true } =
      options;
    if (!Number.isInteger(vocabSize)) {
      throw new RangeError(
        `Cannot train a vocabulary as vocabSize must be a whole number: current value is ${vocabSize}`,
      );
    }
    between("vocabSize", vocabSize, FIRST_CHAR + 1, 1 << 24);
    between("coverage", coverage, 0, 1);
    between("minFrequency", minFrequency, 1, Number.MAX_SAFE_INTEGER);
    between("maxPieceLength", maxPieceLength, 1, 64);
    const types = new Map<string, number>();
    const count = (chunk: string): void => {
      types.set(chunk, (types.get(chunk) ?? 0) + 1);
    };
    for (const line of lines) {
      const text = collapse(line);
      if (text !== "") forEachChunk(prefixSpace ? " " + text : text, TRAIN_LIMIT, count);
    }
    const alphabet = chooseAlphabet(types, coverage);
    const pieces = basePieces(alphabet);
    if (pieces.length > vocabSize) {
      throw new RangeError(
        `Cannot train a vocabulary as vocabSize must be at least ${pieces.length} for this text ` +
          `(4 specials, 256 bytes, ${alphabet.length} characters; a lower coverage takes fewer): ` +
          `current value is ${vocabSize}`,
      );
    }
    const merges = learnMerges(types, pieces, vocabSize, { minFrequency, maxPieceLength });
    return new Bpe(pieces, alphabet.length, merges, prefixSpace);
  }

  /**
   * Restores a vocabulary from what `toJson` gave.
   *
   * @throws {SyntaxError} If the value is no such vocabulary; says which entry is wrong.
   */
  static fromJson(value: unknown): Bpe {
    const bad = (what: string): SyntaxError => new SyntaxError(`Cannot read the vocabulary as ${what}`);
    if (typeof value !== "object" || value === null) throw bad("it must be a JSON object");
    const json = value as Partial<Record<keyof BpeJson, unknown>>;
    if (json.format !== "bpe" || json.version !== 1) {
      throw bad(
        `it must have format "bpe" and version 1: found ${JSON.stringify([json.format, json.version])}`,
      );
    }
    const { alphabet, merges: lines, prefixSpace } = json;
    if (typeof prefixSpace !== "boolean") throw bad("prefixSpace must be true or false");
    if (!Array.isArray(alphabet) || !Array.isArray(lines)) throw bad("alphabet and merges must be lists");
    alphabet.forEach((char: unknown, i) => {
      if (typeof char !== "string" || [...char].length !== 1) {
        throw bad(`alphabet[${i}] must be one character`);
      }
    });
    const pieces = basePieces(alphabet as string[]);
    const ids = new Map<string, number>();
    for (let id = FIRST_CHAR; id < pieces.length; id++) ids.set(pieces[id] ?? "", id);
    if (ids.size !== alphabet.length) throw bad("alphabet must hold each character once");
    const merges = lines.map((line: unknown, i): Merge => {
      const [left, right, ...rest] = typeof line === "string" ? line.split(" ") : [];
      const leftId = ids.get(left ?? "");
      const rightId = ids.get(right ?? "");
      if (leftId === undefined || rightId === undefined || rest.length > 0) {
        throw bad(`merges[${i}] must be two known pieces with a space between them`);
      }
      const text = `${left}${right}`;
      const result = ids.get(text) ?? pieces.push(text) - 1;
      ids.set(text, result);
      return { left: leftId, right: rightId, result };
    });
    return new Bpe(pieces, alphabet.length, merges, prefixSpace);
  }

  /** The vocabulary as plain data for JSON. */
  toJson(): BpeJson {
    return {
      format: "bpe",
      version: 1,
      prefixSpace: this.#prefixSpace,
      alphabet: this.#pieces.slice(FIRST_CHAR, FIRST_CHAR + this.#alphabetSize),
      merges: this.#merges.map(({ left, right }) => `${this.#pieces[left]} ${this.#pieces[right]}`),
    };
  }

  /** Number of pieces, specials and bytes included. */
  get size(): number {
    return this.#pieces.length;
  }

  /** 16 hexadecimal digits that tell vocabularies apart (FNV-1a over the JSON; no defence against forgery). */
  get hash(): string {
    this.#hash ??= contentHash(JSON.stringify(this.toJson()));
    return this.#hash;
  }

  /**
   * The text of one piece, with U+2581 for a space.
   *
   * @throws {RangeError} If there is no such id.
   */
  piece(id: number): string {
    const piece = this.#pieces[id];
    if (piece === undefined) {
      throw new RangeError(
        `Cannot name a piece as its id must be from 0 to ${this.size - 1}: current value is ${id}`,
      );
    }
    return piece;
  }

  /** The pieces of a text, for display. */
  pieces(text: string): string[] {
    return Array.from(this.encode(text), (id) => this.piece(id));
  }

  /** The ids of a text, without bos and eos. An empty or blank text has none. */
  encode(text: string): Int32Array {
    const clean = collapse(text);
    if (clean === "") return new Int32Array(0);
    const ids: number[] = [];
    forEachChunk(this.#prefixSpace ? " " + clean : clean, ENCODE_LIMIT, (chunk) => {
      for (const id of this.#encodeChunk(chunk)) ids.push(id);
    });
    return Int32Array.from(ids);
  }

  #encodeChunk(chunk: string): Int32Array {
    const known = this.#cache.get(chunk);
    if (known !== undefined) return known;
    const ids: number[] = [];
    for (const char of chunk) {
      const id = this.#chars.get(char);
      if (id !== undefined) ids.push(id);
      else for (const byte of new TextEncoder().encode(char)) ids.push(FIRST_BYTE + byte);
    }
    this.#applyMerges(ids);
    const result = Int32Array.from(ids);
    if (chunk.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHED_CHUNKS) this.#cache.clear();
      this.#cache.set(chunk, result);
    }
    return result;
  }

  /** Joins pairs in place, the earliest learned first, from left to right. */
  #applyMerges(ids: number[]): void {
    while (ids.length > 1) {
      let best = this.#merges.length;
      let place = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const rank = this.#ranks.get(ids[i] ?? 0, ids[i + 1] ?? 0);
        if (rank >= 0 && rank < best) {
          best = rank;
          place = i;
        }
      }
      const merge = this.#merges[best];
      if (merge === undefined) return;
      ids.splice(place, 2, merge.result);
    }
  }

  /**
   * The text of ids. Specials vanish; bytes that are no UTF-8, unknown ids and unk become U+FFFD. Never throws.
   */
  decode(ids: ArrayLike<number>): string {
    const text: string[] = [];
    let bytes: number[] = [];
    const flush = (): void => {
      if (bytes.length > 0) {
        text.push(new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes)));
      }
      bytes = [];
    };
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] ?? UNK;
      if (id === PAD || id === BOS || id === EOS) continue;
      if (id >= FIRST_BYTE && id < FIRST_CHAR) {
        bytes.push(id - FIRST_BYTE);
        continue;
      }
      flush();
      const piece = id === UNK ? undefined : this.#pieces[id];
      text.push(piece === undefined ? "\ufffd" : piece.replaceAll(SPACE, " "));
    }
    flush();
    const joined = text.join("");
    return this.#prefixSpace && joined.startsWith(" ") ? joined.slice(1) : joined;
  }
}

/** FNV-1a (Fowler, Noll, Vo) in two lanes of 32 bits with different starting values. */
function contentHash(text: string): string {
  let low = 0x811c9dc5;
  let high = 0x050c5d1f;
  for (const byte of new TextEncoder().encode(text)) {
    low = Math.imul(low ^ byte, 0x01000193);
    high = Math.imul(high ^ byte ^ (low >>> 24), 0x01000193);
  }
  return [high, low].map((lane) => (lane >>> 0).toString(16).padStart(8, "0")).join("");
}

/** The two vocabularies of a translation model; one and the same object where joint. */
export interface Vocabularies {
  /** Vocabulary of the source language. */
  source: Bpe;
  /** Vocabulary of the target language. */
  target: Bpe;
}

/**
 * Learns the vocabularies of a language pair from its training sentences.
 *
 * @param options.joint One vocabulary over both languages, so that embeddings can be shared. Default false.
 * @throws {RangeError} As `Bpe.train`.
 */
export function trainVocabularies(
  pairs: readonly { readonly source: string; readonly target: string }[],
  options: BpeOptions & { joint?: boolean },
): Vocabularies {
  const { joint = false, ...rest } = options;
  if (joint) {
    const both = Bpe.train(
      (function* (): Generator<string> {
        for (const pair of pairs) {
          yield pair.source;
          yield pair.target;
        }
      })(),
      rest,
    );
    return { source: both, target: both };
  }
  return {
    source: Bpe.train(pairs.map((pair) => pair.source), rest),
    target: Bpe.train(pairs.map((pair) => pair.target), rest),
  };
}
