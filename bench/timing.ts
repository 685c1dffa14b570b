/**
 * Timing by device events: warm-up, the cache flushed before each repetition, the median.
 *
 * @module
 */

import { Arena, type Context, type Event, gradNorm, type Tensor } from "../ffi/mod.ts";

/** Times of repeated calls, in milliseconds. */
export interface Timing {
  /** Median. */
  ms: number;
  /** 10th percentile. */
  low: number;
  /** 90th percentile. */
  high: number;
  /** Sum over the repetitions. */
  total: number;
  /** Repetitions timed. */
  count: number;
  /** Whether the time box ended the repetitions. */
  boxed: boolean;
}

/** How long to time. */
export interface TimingOptions {
  /** Repetitions wanted. */
  repetitions: number;
  /** Stop after this many seconds, once three repetitions are timed; 0: never. */
  boxSeconds: number;
  /**
   * Flush the cache by reading, which leaves it clean. After a flush by writing, which peers do too, lines are written
   * back while the call runs: traffic that weighs most where a call only reads.
   */
  cleanCache?: boolean;
}

const LEAST_REPETITIONS = 3;
const EVENTS_AT_A_TIME = 64; // the host runs this far ahead of the device
const WARM_UP_SECONDS = 0.025; // as Triton's do_bench
const MOST_WARM_UPS = 25;

/** The value below which `share` of the sorted values lie. */
export function quantile(sorted: readonly number[], share: number): number {
  const at = Math.round(share * (sorted.length - 1));
  return sorted[at] ?? NaN;
}

/**
 * Times calls on one context. It owns a buffer, some times the cache's size, whose filling evicts what a call left there.
 */
export class Stopwatch implements Disposable {
  readonly #context: Context;
  readonly #arena: Arena;
  readonly #flush: Tensor;
  readonly #norm: Tensor;
  readonly #events: [Event, Event][];

  /** Takes its buffer and events. */
  constructor(context: Context) {
    this.#context = context;
    this.#arena = new Arena(context);
    const bytes = context.device === "cuda" ? Math.max(256 << 20, 4 * context.info().cacheBytes) : 4;
    this.#flush = this.#arena.zeros([Math.ceil(bytes / 4)], "f32");
    this.#norm = this.#arena.zeros([2], "f32");
    const count = context.device === "cuda" ? EVENTS_AT_A_TIME : 1;
    this.#events = Array.from({ length: count }, () => [context.event(), context.event()]);
  }

  /** Times `call`. */
  time(call: () => void, options: TimingOptions): Timing {
    const begin = performance.now();
    let warmUps = 0;
    do {
      call();
      this.#context.synchronize();
      warmUps++;
    } while (warmUps < MOST_WARM_UPS && performance.now() - begin < 1000 * WARM_UP_SECONDS);
    const times: number[] = [];
    let boxed = false;
    const start = performance.now();
    while (times.length < options.repetitions && !boxed) {
      times.push(...this.#round(call, options, options.repetitions - times.length));
      const elapsed = (performance.now() - start) / 1000;
      boxed = options.boxSeconds > 0 && times.length >= LEAST_REPETITIONS && elapsed >= options.boxSeconds &&
        times.length < options.repetitions;
    }
    const total = times.reduce((sum, ms) => sum + ms, 0);
    times.sort((a, b) => a - b);
    const [ms, low, high] = [quantile(times, 0.5), quantile(times, 0.1), quantile(times, 0.9)];
    return { ms, low, high, total, count: times.length, boxed };
  }

  #round(call: () => void, { cleanCache }: TimingOptions, most: number): number[] {
    const events = this.#events.slice(0, most);
    for (const [from, to] of events) {
      if (cleanCache === true) {
        gradNorm(this.#norm, this.#flush, 1); // reads all of it
      } else {
        this.#flush.fill(0);
      }
      from.record();
      call();
      to.record();
    }
    return events.map(([from, to]) => to.millisecondsSince(from));
  }

  /** Frees buffer and events. */
  [Symbol.dispose](): void {
    for (const event of this.#events.flat()) event[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
  }
}
