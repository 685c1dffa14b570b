/**
 * A context: one device, its stream, its memory, its graphs and events.
 *
 * @module
 */

import type { DType } from "./dtype.ts";
import { LibraryError, nativeError } from "./errors.ts";
import { chooseDevice, cString, type Device, deviceCount, openLibrary } from "./library.ts";
import type { ContextHandle, EventHandle, GraphHandle, Status, Symbols } from "./symbols.ts";

const MESSAGE_BYTES = 512;
const DEVICE_INFO_BYTES = 176;
const NAME_OFFSET = 48;

/** What {@linkcode Context.info} tells of a device. */
export interface DeviceInfo {
  /** Its name. */
  name: string;
  /** Device memory in bytes; on the CPU, main memory. */
  totalBytes: number;
  /** Of those, free now. */
  freeBytes: number;
  /** Compute capability, e.g. `[9, 0]`; on the CPU `[0, 0]`. */
  capability: readonly [number, number];
  /** Multiprocessors, or threads on the CPU. */
  units: number;
  /** Highest clock in MHz; 0 unknown. */
  clockMhz: number;
  /** CUDA driver version as 1000 * major + 10 * minor; 0 on the CPU. */
  driver: number;
  /** CUDA runtime version, likewise. */
  runtime: number;
  /** Last-level cache in bytes; 0 unknown. */
  cacheBytes: number;
  /** Floats in a vector register; 32 on a GPU. */
  simdWidth: number;
}

/** Options of a context. */
export interface ContextOptions {
  /** `auto` (the default) is CUDA where a GPU answers, else the CPU. */
  device?: Device | "auto";
  /** Which GPU, from 0. */
  index?: number;
}

/**
 * A device with its one stream of work.
 *
 * Calls return before their work is done; they run in order. `using` frees the context and all memory taken from it.
 *
 * @example Opening the best device
 * ```ts
 * import { Context } from "./mod.ts";
 * using context = new Context();
 * console.log(context.info().name, context.dtype);
 * ```
 */
export class Context implements Disposable {
  /** `cuda` or `cpu`. */
  readonly device: Device;
  /** Type of activations and weights here: `bf16` on a GPU, `f32` on the CPU. */
  readonly dtype: DType;
  readonly #symbols: Symbols;
  readonly #allocations = new Map<bigint, number>();
  readonly #scratch: { address: bigint; bytes: number }[] = [];
  #handle: ContextHandle | null;
  #capturing = false;

  /**
   * Opens a device.
   *
   * @throws {LibraryError} If the library is not built, or no such device answers.
   */
  constructor(options: ContextOptions = {}) {
    const wanted = options.device ?? "auto";
    this.device = wanted === "auto" ? chooseDevice() : wanted;
    this.dtype = this.device === "cuda" ? "bf16" : "f32";
    this.#symbols = openLibrary(this.device);
    const { count, reason } = deviceCount(this.device);
    const index = options.index ?? 0;
    if (count === 0) throw new LibraryError(`Cannot use device ${this.device}: ${reason}`);
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      throw new RangeError(`Cannot open device ${index} as there are ${count}: it must be 0 to ${count - 1}`);
    }
    const out = new BigUint64Array(1);
    const message = new Uint8Array(MESSAGE_BYTES);
    const status = this.#symbols.fa_ctx_create(index, out, message, MESSAGE_BYTES);
    if (status !== 0) throw nativeError("fa_ctx_create", status, cString(message));
    this.#handle = Deno.UnsafePointer.create<"fa_ctx">(out[0] ?? 0n);
  }

  /**
   * The library's functions, for the other modules of this folder.
   *
   * @internal
   */
  get symbols(): Symbols {
    return this.#symbols;
  }

  /**
   * The native handle, for the other modules of this folder.
   *
   * @internal
   * @throws {ReferenceError} If the context is disposed of.
   */
  get handle(): ContextHandle {
    if (this.#handle === null) throw new ReferenceError("Cannot use a context after it is disposed of");
    return this.#handle;
  }

  /** Whether calls are being recorded into a graph. */
  get capturing(): boolean {
    return this.#capturing;
  }

  /** Bytes held by arenas of this context now. */
  get liveBytes(): number {
    return this.#allocations.values().reduce((sum, bytes) => sum + bytes, 0);
  }

  /**
   * Throws the typed error of `status`, where it is one.
   *
   * @internal
   */
  check(symbol: string, status: Status): void {
    if (status === 0) return;
    throw nativeError(symbol, status, this.#lastError());
  }

  /** What the device is. */
  info(): DeviceInfo {
    const bytes = new Uint8Array(DEVICE_INFO_BYTES);
    this.check("fa_get_device_info", this.#symbols.fa_get_device_info(this.handle, bytes));
    const view = new DataView(bytes.buffer);
    const int = (offset: number): number => view.getInt32(offset, true);
    return {
      name: cString(bytes.subarray(NAME_OFFSET)),
      totalBytes: Number(view.getBigInt64(0, true)),
      freeBytes: Number(view.getBigInt64(8, true)),
      capability: [int(16), int(20)],
      units: int(24),
      clockMhz: int(28),
      driver: int(32),
      runtime: int(36),
      cacheBytes: int(40),
      simdWidth: int(44),
    };
  }

  /** Waits until all work so far is done. */
  synchronize(): void {
    this.check("fa_synchronize", this.#symbols.fa_synchronize(this.handle));
  }

  /** Resolves when all work so far is done; timers and signals are served meanwhile. Do not dispose before it settles. */
  async settled(): Promise<void> {
    this.check("fa_synchronize", await this.#symbols.fa_synchronize_async(this.handle));
  }

  /** Takes `bytes` of device memory and returns the address, for Arena. */
  allocate(bytes: number): bigint {
    const address = this.#take(bytes);
    this.#allocations.set(address, bytes);
    return address;
  }

  /** Gives memory back, for Arena. Nothing happens once the context is disposed of, which frees all. */
  free(address: bigint): void {
    if (this.#handle === null || !this.#allocations.delete(address)) return;
    this.check("fa_free", this.#symbols.fa_free(this.handle, Deno.UnsafePointer.create(address)));
  }

  /**
   * Scratch of at least `bytes`, shared by all kernels: its content lasts for one call. Blocks that grew too small are kept
   * until the end, since captured graphs hold their addresses.
   */
  scratch(bytes: number): bigint {
    const current = this.#scratch.at(-1);
    if (current !== undefined && current.bytes >= bytes) return current.address;
    if (this.#capturing) {
      throw new Error("Cannot grow scratch memory while capturing: run the same calls once before capture");
    }
    const size = Math.max(bytes, 2 * (current?.bytes ?? 0), 1 << 20);
    const address = this.#take(size);
    this.#scratch.push({ address, bytes: size });
    return address;
  }

  /**
   * Records the calls that `record` makes, without running them.
   *
   * Memory must be allocated, and scratch grown, before: run the same calls once eagerly.
   */
  capture(record: () => void): Graph {
    this.check("fa_graph_begin", this.#symbols.fa_graph_begin(this.handle));
    this.#capturing = true;
    const out = new BigUint64Array(1);
    let status: Status;
    let failure: { error: unknown } | undefined;
    try {
      record();
    } catch (error) {
      failure = { error };
    } finally {
      this.#capturing = false;
      status = this.#symbols.fa_graph_end(this.handle, out);
    }
    const graph = Deno.UnsafePointer.create<"fa_graph">(out[0] ?? 0n);
    if (failure !== undefined) {
      if (graph !== null) this.#symbols.fa_graph_destroy(this.handle, graph);
      throw failure.error;
    }
    this.check("fa_graph_end", status);
    if (graph === null) throw new Error("Cannot capture: the library gave no graph");
    return new Graph(this, graph);
  }

  /** A new event. */
  event(): Event {
    const out = new BigUint64Array(1);
    this.check("fa_event_create", this.#symbols.fa_event_create(this.handle, out));
    const handle = Deno.UnsafePointer.create<"fa_event">(out[0] ?? 0n);
    if (handle === null) throw new Error("Cannot create an event: the library gave none");
    return new Event(this, handle);
  }

  /** Waits, then frees the context with all its memory. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#handle === null) return;
    const handle = this.#handle;
    this.#handle = null;
    this.#allocations.clear();
    this.#scratch.length = 0;
    this.#symbols.fa_ctx_destroy(handle);
  }

  /** Whether the context is disposed of. */
  get disposed(): boolean {
    return this.#handle === null;
  }

  #take(bytes: number): bigint {
    const out = new BigUint64Array(1);
    this.check("fa_alloc", this.#symbols.fa_alloc(this.handle, BigInt(bytes), out));
    return out[0] ?? 0n;
  }

  #lastError(): string {
    const bytes = new Uint8Array(MESSAGE_BYTES);
    this.#symbols.fa_last_error(this.handle, bytes, MESSAGE_BYTES);
    return cString(bytes);
  }
}

/** A recorded sequence of calls; see {@linkcode Context.capture}. */
export class Graph implements Disposable {
  readonly #context: Context;
  #handle: GraphHandle | null;

  /** Made by {@linkcode Context.capture}. */
  constructor(context: Context, handle: GraphHandle) {
    this.#context = context;
    this.#handle = handle;
  }

  /**
   * Runs the recorded calls.
   *
   * @throws {ReferenceError} If the graph is disposed of.
   */
  launch(): void {
    if (this.#handle === null) throw new ReferenceError("Cannot launch a graph after it is disposed of");
    const { symbols, handle } = this.#context;
    this.#context.check("fa_graph_launch", symbols.fa_graph_launch(handle, this.#handle));
  }

  /** Frees the graph. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#handle === null) return;
    const graph = this.#handle;
    this.#handle = null;
    if (this.#context.disposed) return;
    const { symbols, handle } = this.#context;
    this.#context.check("fa_graph_destroy", symbols.fa_graph_destroy(handle, graph));
  }
}

/** A point in a context's stream of work, with its time. */
export class Event implements Disposable {
  readonly #context: Context;
  #handle: EventHandle | null;

  /** Made by {@linkcode Context.event}. */
  constructor(context: Context, handle: EventHandle) {
    this.#context = context;
    this.#handle = handle;
  }

  /** Marks the present end of the stream. */
  record(): void {
    const { symbols, handle } = this.#context;
    this.#context.check("fa_event_record", symbols.fa_event_record(handle, this.#live()));
  }

  /** Milliseconds from `start` to this event; waits for both. */
  millisecondsSince(start: Event): number {
    const out = new Float32Array(1);
    const { symbols, handle } = this.#context;
    const status = symbols.fa_event_elapsed(handle, start.#live(), this.#live(), out);
    this.#context.check("fa_event_elapsed", status);
    return out[0] ?? 0;
  }

  /** Frees the event. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#handle === null) return;
    const event = this.#handle;
    this.#handle = null;
    if (this.#context.disposed) return;
    const { symbols, handle } = this.#context;
    this.#context.check("fa_event_destroy", symbols.fa_event_destroy(handle, event));
  }

  #live(): EventHandle {
    if (this.#handle === null) throw new ReferenceError("Cannot use an event after it is disposed of");
    return this.#handle;
  }
}
