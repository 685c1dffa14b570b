/**
 * Opening the native libraries: one lazy singleton each, never closed.
 *
 * @module
 */

import { LibraryError } from "./errors.ts";
import { ABI_VERSION, SYMBOLS, type Symbols } from "./symbols.ts";

/** The device that a context runs on. */
export type Device = "cuda" | "cpu";

const FILES: Readonly<Record<Device, string>> = { cuda: "libflashattn.so", cpu: "libflashattn_cpu.so" };
const MESSAGE_BYTES = 512;
const opened = new Map<Device, Symbols>();

/** The text in a C string buffer, up to its terminating zero. */
export function cString(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Where the library of `device` lies once built. */
export function libraryUrl(device: Device): URL {
  return new URL(`../build/${FILES[device]}`, import.meta.url);
}

/**
 * Has OpenMP's threads wait for work by spinning for some tens of microseconds, then asleep.
 *
 * GNU's runtime spins for milliseconds by default, which on a busy machine keeps the very threads from running that are
 * waited for: a training step took five times as long. Without any spinning, a step on an idle machine takes 1.4 times as
 * long. The runtime reads its environment once, when it is loaded; hence before the library is. A value that the user has
 * set stands.
 */
function boundSpinning(): void {
  try {
    const signature = { parameters: ["buffer", "buffer", "i32"], result: "i32" } as const;
    const libc = Deno.dlopen("libc.so.6", { setenv: signature });
    const text = (value: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(`${value}\0`);
    libc.symbols.setenv(text("GOMP_SPINCOUNT"), text("20000"), 0);
    libc.close();
  } catch {
    // Another C library, or leave for ours alone: the default stands.
  }
}

/**
 * The functions of the library of `device`, opened at the first call.
 *
 * @throws {LibraryError} If it is not built, does not load, or speaks another ABI version.
 */
export function openLibrary(device: Device): Symbols {
  const known = opened.get(device);
  if (known !== undefined) return known;
  if (device === "cpu") boundSpinning();
  const url = libraryUrl(device);
  let symbols: Symbols;
  try {
    symbols = Deno.dlopen(url, SYMBOLS).symbols;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    const detail = cause instanceof Error ? cause.message : String(cause);
    throw new LibraryError(`Cannot load build/${FILES[device]}: run "deno task build" first (${detail})`, {
      cause,
    });
  }
  const version = symbols.fa_abi_version();
  if (version !== ABI_VERSION) {
    throw new LibraryError(
      `Cannot use build/${
        FILES[device]
      } as it speaks ABI ${version}, not ${ABI_VERSION}: run "deno task build"`,
    );
  }
  opened.set(device, symbols);
  return symbols;
}

/** How many devices the library of `device` can use, and why none where it is none. */
export function deviceCount(device: Device): { count: number; reason: string } {
  const message = new Uint8Array(MESSAGE_BYTES);
  const count = openLibrary(device).fa_device_count(message, MESSAGE_BYTES);
  return { count, reason: cString(message) };
}

/**
 * The device that `auto` stands for: CUDA where its library is built and a GPU answers, else the CPU.
 */
export function chooseDevice(): Device {
  try {
    return deviceCount("cuda").count > 0 ? "cuda" : "cpu";
  } catch (error) {
    if (error instanceof LibraryError) return "cpu";
    throw error;
  }
}
