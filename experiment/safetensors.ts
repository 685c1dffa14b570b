/**
 * The safetensors format (https://github.com/huggingface/safetensors): 8 bytes of header length (little endian), a JSON
 * header that gives each tensor its dtype, shape and place, then the tensors' bytes. Read and written for F32.
 *
 * @module
 */

import { createHash } from "node:crypto";

/** A float tensor on the host, with its name. */
export interface NamedTensor {
  /** Name, such as `encoder.0.attention.wq`. */
  readonly name: string;
  /** Sizes, outermost first; [] is a single number. */
  readonly shape: readonly number[];
  /** Row-major elements. */
  readonly data: Float32Array;
}

/** A tensors file's size and checksum, kept beside it so that damage is noticed. */
export interface FileSeal {
  /** Length of the file. */
  readonly bytes: number;
  /** SHA-256 of its content, in hexadecimal. */
  readonly sha256: string;
}

interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

const HEADER_LIMIT = 100_000_000; // as in the reference implementation

function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** The length field and the header, padded with spaces so that the tensors start on 8 bytes. */
function encodeHeader(
  tensors: readonly NamedTensor[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  for (const { name, shape, data } of tensors) {
    if (product(shape) !== data.length) {
      throw new RangeError(
        `Cannot write tensor ${name} as shape [${
          shape.join(", ")
        }] does not fit: it has ${data.length} elements`,
      );
    }
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset += data.byteLength] };
  }
  let json = JSON.stringify(header);
  const length = new TextEncoder().encode(json).length;
  json += " ".repeat((8 - length % 8) % 8);
  const bytes = new TextEncoder().encode(json);
  const out = new Uint8Array(8 + bytes.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(bytes.length), true);
  out.set(bytes, 8);
  return out;
}

/**
 * Writes a file piece by piece and waits until it is on the disk.
 *
 * @param path A file that does not exist yet, or that may be replaced.
 * @returns Its size and checksum.
 */
export function writeSealed(path: string, pieces: Iterable<Uint8Array>): FileSeal {
  const hash = createHash("sha256");
  let total = 0;
  using file = Deno.openSync(path, { write: true, create: true, truncate: true });
  for (const piece of pieces) {
    hash.update(piece);
    total += piece.length;
    let rest = piece;
    while (rest.length > 0) rest = rest.subarray(file.writeSync(rest));
  }
  file.syncSync();
  return { bytes: total, sha256: hash.digest("hex") };
}

/** Writes tensors to `path` in the order given. @returns The file's size and checksum. */
export function writeSafetensors(
  path: string,
  tensors: readonly NamedTensor[],
  metadata: Readonly<Record<string, string>> = {},
): FileSeal {
  function* pieces(): Generator<Uint8Array> {
    yield encodeHeader(tensors, metadata);
    for (const { data } of tensors) yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }
  return writeSealed(path, pieces());
}

function entryOf(name: string, value: unknown): HeaderEntry {
  const entry = value as Partial<HeaderEntry> | null;
  const whole = (list: unknown): list is number[] =>
    Array.isArray(list) && list.every((n) => Number.isSafeInteger(n) && n >= 0);
  if (
    typeof entry !== "object" || entry === null || !whole(entry.shape) || !whole(entry.data_offsets) ||
    entry.data_offsets.length !== 2
  ) throw new SyntaxError(`the entry of tensor ${name} in its header is damaged`);
  if (entry.dtype !== "F32") {
    throw new SyntaxError(`tensor ${name} has dtype ${String(entry.dtype)}, not F32`);
  }
  return entry as HeaderEntry;
}

function decodeHeader(bytes: Uint8Array): { start: number; entries: Map<string, HeaderEntry> } {
  if (bytes.length < 8) throw new SyntaxError(`it is truncated: ${bytes.length} bytes`);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
  if (length > BigInt(HEADER_LIMIT)) {
    throw new SyntaxError("its header is damaged: the length in it is impossible");
  }
  const start = 8 + Number(length);
  if (bytes.length < start) throw new SyntaxError(`it is truncated in its header: ${bytes.length} bytes`);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, start)));
  } catch (error) {
    throw new SyntaxError("its header is damaged: it is not JSON", { cause: error });
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) {
    throw new SyntaxError("its header is damaged: it is not a JSON object");
  }
  const entries = new Map<string, HeaderEntry>();
  for (const [name, value] of Object.entries(header)) {
    if (name !== "__metadata__") entries.set(name, entryOf(name, value));
  }
  return { start, entries };
}

function decode(bytes: Uint8Array<ArrayBuffer>): Map<string, NamedTensor> {
  const { start, entries } = decodeHeader(bytes);
  const tensors = new Map<string, NamedTensor>();
  let expected = start;
  for (const [name, { shape, data_offsets: [from, to] }] of entries) {
    if (to - from !== product(shape) * 4) {
      throw new SyntaxError(
        `tensor ${name} has ${to - from} bytes, which shape [${shape.join(", ")}] does not take`,
      );
    }
    expected = Math.max(expected, start + to);
    if (bytes.length < start + to) {
      throw new SyntaxError(
        `it is truncated in tensor ${name}: ${bytes.length} bytes of at least ${start + to}`,
      );
    }
    // A copy: the bytes of a tensor need not start on four.
    tensors.set(name, { name, shape, data: new Float32Array(bytes.slice(start + from, start + to).buffer) });
  }
  if (bytes.length !== expected) {
    throw new SyntaxError(`${bytes.length - expected} bytes follow its last tensor`);
  }
  return tensors;
}

/**
 * Reads the tensors of `path`.
 *
 * @param seal Size and checksum that the file must have; undefined: they are not compared.
 * @throws {SyntaxError} If the file is truncated or damaged; the message names file and place.
 */
export function readSafetensors(path: string, seal?: FileSeal): Map<string, NamedTensor> {
  const bytes = Deno.readFileSync(path);
  try {
    if (seal !== undefined && bytes.length < seal.bytes) {
      throw new SyntaxError(`it is truncated: ${bytes.length} bytes of ${seal.bytes}`);
    }
    const tensors = decode(bytes);
    if (seal !== undefined && createHash("sha256").update(bytes).digest("hex") !== seal.sha256) {
      throw new SyntaxError("its content is damaged: the checksum differs");
    }
    return tensors;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new SyntaxError(`Cannot read checkpoint file ${path} as ${error.message}`, { cause: error });
  }
}
