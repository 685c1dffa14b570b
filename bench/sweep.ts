/**
 * The sweep over sequence lengths: the three attention forms, forward and backward, checked and timed.
 *
 * The shapes are those of the project this suite does anew: B 32, H 8, D 64, lengths 200 to 2000.
 *
 * @module
 */

import {
  Arena,
  attentionBackward,
  type AttentionForm,
  attentionForward,
  type AttentionInputs,
  type Context,
  OutOfMemoryError,
  type Tensor,
  unitRoundoff,
} from "../ffi/mod.ts";
import { drawUniform } from "./draw.ts";
import { type Head, largestError, type Sample, sampleHead } from "./reference.ts";
import { attentionFlops, type AttentionRow } from "./results.ts";
import { Stopwatch, type TimingOptions } from "./timing.ts";

/** What to sweep over. */
export interface SweepOptions extends TimingOptions {
  /** Forms to time. */
  forms: readonly AttentionForm[];
  /** Sequence lengths. */
  lengths: readonly number[];
  /** Masks. */
  causal: readonly boolean[];
  /** Passes. */
  passes: readonly ("forward" | "backward")[];
  /** Sequences. */
  B: number;
  /** Heads. */
  H: number;
  /** Head dimension. */
  D: number;
  /** Make the backward pass deterministic. */
  deterministic: boolean;
  /** Sequences of this many tokens up to the length, drawn uniformly; null: all of the length. */
  shortest: number | null;
}

/** A measurement, with what the check allowed. */
export interface SweepResult {
  /** The measurement. */
  row: AttentionRow;
  /** The largest error that counts as right. */
  tolerance: number;
  /** Seconds of all repetitions together. */
  seconds: number;
  /** Whether the time box cut the repetitions. */
  boxed: boolean;
  /** Why there is no measurement, where there is none. */
  failure: string | null;
}

const SEED = 20_240_101n;
const LCG = { factor: 1_664_525, step: 1_013_904_223 } as const; // Numerical Recipes, section 7.1
const SAMPLED_ROWS = 8;
const LONGEST_KEY_CHECK = 2048; // gradients of keys cost O(L² D) on the host: beyond, only those of queries are checked

interface Shape {
  L: number;
  causal: boolean;
}

/** The device tensors of one length: inputs drawn once, gradients to write into. */
interface Problem {
  arena: Arena;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  dout: Tensor;
  offsets: Tensor;
  /** Multiplications of one matrix product over those of sequences that all have the greatest length. */
  share: number;
  /** The heads that are checked. */
  heads: HeadPlace[];
}

/** A head of a sequence: where its rows begin, how many they are, and its number. */
interface HeadPlace {
  start: number;
  length: number;
  h: number;
}

/** Runs the sweep; `report` is told of each measurement as it is made. */
export function* sweep(context: Context, options: SweepOptions): Generator<SweepResult> {
  using stopwatch = new Stopwatch(context);
  for (const L of options.lengths) {
    using arena = new Arena(context);
    const problem = drawProblem(arena, options, L);
    for (const causal of options.causal) {
      const samples = drawSamples(problem, options, causal);
      for (const form of options.forms) {
        yield* measureForm(stopwatch, problem, samples, options, { L, causal }, form);
      }
    }
  }
}

/** B lengths, from `shortest` to L. */
function drawLengths({ B, shortest }: SweepOptions, L: number): number[] {
  if (shortest === null) return Array(B).fill(L);
  let state = Number(SEED % 2n ** 32n);
  return Array.from({ length: B }, () => {
    state = (Math.imul(state, LCG.factor) + LCG.step) >>> 0;
    return shortest + Math.floor((state / 2 ** 32) * (L - shortest + 1));
  });
}

/** Inputs uniform in [-sqrt 3, sqrt 3): mean 0, variance 1. */
function drawProblem(arena: Arena, options: SweepOptions, L: number): Problem {
  const { H, D } = options;
  const lengths = drawLengths(options, L);
  const starts = Int32Array.from({ length: lengths.length + 1 }, () => 0);
  lengths.forEach((length, b) => starts[b + 1] = (starts[b] ?? 0) + length);
  const rows = starts.at(-1) ?? 0;
  const bound = Math.sqrt(3);
  const draw = (site: number): Tensor =>
    drawUniform(arena.tensor([rows, H * D]), { bound, seed: SEED, site });
  const offsets = arena.from(starts, [starts.length], "i32");
  const place = (b: number, h: number): HeadPlace => ({ start: starts[b] ?? 0, length: lengths[b] ?? 0, h });
  const heads = [place(0, 0), place(lengths.length - 1, H - 1)];
  const share = lengths.reduce((sum, length) => sum + length ** 2, 0) / (lengths.length * L ** 2);
  return { arena, q: draw(1), k: draw(2), v: draw(3), dout: draw(4), offsets, share, heads };
}

/** [L, D] of one head of one sequence, on the host. */
function readHead(tensor: Tensor, { start, length, h }: HeadPlace, D: number): Float32Array {
  const rows = tensor.slice(start, length).floats();
  const width = tensor.columns;
  const head = new Float32Array(length * D);
  for (let i = 0; i < length; i++) head.set(rows.subarray(i * width + h * D, i * width + (h + 1) * D), i * D);
  return head;
}

/** First, last and some rows between, spread over the tiles of any kernel. */
function sampledRows(L: number): number[] {
  const rows = Array.from({ length: SAMPLED_ROWS }, (_, i) => Math.floor(((L - 1) * i) / (SAMPLED_ROWS - 1)));
  return [...new Set(rows)];
}

/** What float64 gives for two heads: output rows and gradients. */
function drawSamples(problem: Problem, options: SweepOptions, causal: boolean): Sample[] {
  const { D } = options;
  return problem.heads.map((place) => {
    const read = (tensor: Tensor): Float64Array => Float64Array.from(readHead(tensor, place, D));
    const head: Head = {
      L: place.length,
      D,
      causal,
      q: read(problem.q),
      k: read(problem.k),
      v: read(problem.v),
      dout: read(problem.dout),
    };
    const gradients = place.length > LONGEST_KEY_CHECK ? "dq" : "all";
    const wanted = options.passes.includes("backward") ? gradients : "out";
    return sampleHead(head, sampledRows(place.length), wanted);
  });
}

/** 16-bit outputs: 8 unit roundoffs of the largest value; float: 200, as its errors add up over thousands of products. */
function toleranceOf(tensor: Tensor, expected: Float64Array): number {
  const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  return unitRoundoff(tensor.dtype) * largest * (tensor.dtype === "f32" ? 200 : 8);
}

function* measureForm(
  stopwatch: Stopwatch,
  problem: Problem,
  samples: readonly Sample[],
  options: SweepOptions,
  { L, causal }: Shape,
  form: AttentionForm,
): Generator<SweepResult> {
  const { arena, q, k, v, offsets } = problem;
  const { B, H, D } = options;
  const inputs: AttentionInputs = {
    form,
    q,
    k,
    v,
    heads: H,
    offsetsQ: offsets,
    offsetsK: offsets,
    maxQ: L,
    maxK: L,
    causal,
    deterministic: options.deterministic,
  };
  const mark = arena.mark();
  for (const pass of options.passes) {
    const row: AttentionRow = {
      ...{ attn: form, pass, causal, B, H, L, D, ms: NaN, ms_low: NaN, ms_high: NaN },
      ...{ gflops: NaN, max_error: NaN, repetitions: 0 },
    };
    try {
      const run = pass === "forward"
        ? forwardRun(problem, samples, inputs)
        : backwardRun(problem, samples, inputs);
      const timing = stopwatch.time(run.call, options);
      const { error, tolerance } = run.check();
      const gflops = (attentionFlops(row) * problem.share) / timing.ms / 1e6;
      yield {
        row: {
          ...row,
          ms: timing.ms,
          ms_low: timing.low,
          ms_high: timing.high,
          gflops,
          max_error: error,
          repetitions: timing.count,
        },
        tolerance,
        seconds: timing.total / 1000,
        boxed: timing.boxed,
        failure: null,
      };
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error;
      yield { row, tolerance: NaN, seconds: NaN, boxed: false, failure: "out of memory" };
    } finally {
      arena.rewind(mark);
    }
  }
}

interface Run {
  call: () => void;
  check: () => { error: number; tolerance: number };
}

function forwardRun(problem: Problem, samples: readonly Sample[], inputs: AttentionInputs): Run {
  const { arena, q, heads } = problem;
  const out = arena.tensor([q.rows, q.columns]).fill(0xff); // NaN: what a kernel leaves out shows
  const mark = arena.mark();
  return {
    call: () => {
      arena.rewind(mark);
      attentionForward(inputs, arena, out);
    },
    check: () => compare(samples, (sample) => [[out, sample.out]], heads, inputs),
  };
}

function backwardRun(problem: Problem, samples: readonly Sample[], inputs: AttentionInputs): Run {
  const { arena, q, k, dout, heads } = problem;
  const outputs = attentionForward(inputs, arena);
  const gradient = (like: Tensor): Tensor => arena.tensor([like.rows, like.columns]).fill(0xff);
  const gradients = { dq: gradient(q), dk: gradient(k), dv: gradient(k) };
  const { dq, dk, dv } = gradients;
  return {
    call: () => attentionBackward(inputs, outputs, dout, gradients),
    check: () =>
      compare(
        samples,
        (sample) => [[dq, sample.dq], [dk, sample.dk], [dv, sample.dv]],
        heads,
        inputs,
      ),
  };
}

/** The largest error over samples and tensors, relative to each one's tolerance, given back in the first one's unit. */
function compare(
  samples: readonly Sample[],
  pairs: (sample: Sample) => [Tensor, Float64Array][],
  heads: readonly HeadPlace[],
  inputs: AttentionInputs,
): { error: number; tolerance: number } {
  const D = inputs.q.columns / inputs.heads;
  let worst = { error: 0, tolerance: Infinity };
  samples.forEach((sample, index) => {
    const place = heads[index];
    if (place === undefined) return;
    for (const [tensor, expected] of pairs(sample)) {
      if (expected.length === 0) continue;
      const error = largestError(readHead(tensor, place, D), expected, sample.rows, D);
      const tolerance = toleranceOf(tensor, expected);
      if (error / tolerance >= worst.error / worst.tolerance) worst = { error, tolerance };
    }
  });
  return worst;
}
