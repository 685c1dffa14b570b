/**
 * From native status codes to typed errors.
 *
 * @module
 */

/** Status codes of `cuda/flashattn.h`, by value. */
export const STATUS_NAMES: readonly string[] = [
  "Ok",
  "Invalid",
  "Unsupported",
  "OutOfMemory",
  "Device",
  "Library",
  "State",
];

const OUT_OF_MEMORY = 3;

/** What the native library reports: an argument it refuses, or a failure of the device. */
export class NativeError extends Error {
  /** Name shown before the message. */
  override name = "NativeError";
  /** The C function that failed, e.g. `fa_gemm`. */
  readonly symbol: string;
  /** Its status, an index into {@linkcode STATUS_NAMES}. */
  readonly status: number;

  /** Makes the error of `symbol` returning `status` with the library's own `detail`. */
  constructor(symbol: string, status: number, detail: string) {
    super(`Cannot complete ${symbol}: ${detail} (${STATUS_NAMES[status] ?? `status ${status}`})`);
    this.symbol = symbol;
    this.status = status;
  }
}

/** The device has no room for an allocation. */
export class OutOfMemoryError extends NativeError {
  /** Name shown before the message. */
  override name = "OutOfMemoryError";
}

/** No usable library or device: what is missing, and what to do about it. */
export class LibraryError extends Error {
  /** Name shown before the message. */
  override name = "LibraryError";
}

/** The error for a status other than 0. */
export function nativeError(symbol: string, status: number, detail: string): NativeError {
  return status === OUT_OF_MEMORY
    ? new OutOfMemoryError(symbol, status, detail)
    : new NativeError(symbol, status, detail);
}
