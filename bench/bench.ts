/**
 * `deno task bench`: times what this suite computes, checks it, and prints tables.
 *
 * `--what sweep` (the default) runs the three attention forms over the sequence lengths; `gemm` and `kernels` the rest of
 * the library; `step` whole training steps; `parity` the losses
 * of the three forms side by side; `bpe` the training of a vocabulary. Exit code 1 where a result is wrong.
 *
 * @module
 */

import { Option } from "@commander-js/extra-typings";
import { createCommand, integer, note, number, print, runMain, UsageError } from "../experiment/cli.ts";
import { Bpe } from "../data/mod.ts";
import { syntheticPairs } from "../data/synthetic.ts";
import { ATTENTION_FORMS, type AttentionForm, Context } from "../ffi/mod.ts";
import { benchGemm, benchKernels, type KernelSizes } from "./kernels.ts";
import { largestDeparture, parity } from "./parity.ts";
import { runPeer } from "./peers.ts";
import { benchStep, STEP_MODELS, type StepJob, type StepRow } from "./step.ts";
import {
  ATTENTION_COLUMNS,
  attentionFlops,
  type AttentionRow,
  describeMachine,
  table,
  writeCsv,
} from "./results.ts";
import { sweep, type SweepOptions, type SweepResult } from "./sweep.ts";
import type { TimingOptions } from "./timing.ts";

const LENGTHS = [200, 400, 800, 1000, 2000];
const GPU_EPOCHS = 1000;
const CPU_BOX_SECONDS = 5;
const GRID = { tokens: 16_384, width: 2048 } as const; // B L and H D
const GRID_PEERS = ["pytorch_flash2", "pytorch_cudnn"]; // eager code takes minutes at 16384
const KINDS = ["sweep", "gemm", "kernels", "step", "parity", "bpe"] as const;

const COMMAND = createCommand(
  "bench",
  "Time the attention forms over the sequence lengths, and the rest of the library",
)
  .addOption(new Option("--what <kind>", "what to time").choices(KINDS).default("sweep" as const))
  .addOption(
    new Option("--attn <form>", "one form, or all").choices([...ATTENTION_FORMS, "all"] as const)
      .default("all" as const),
  )
  .addOption(
    new Option("--attn_type <form>", "the same").choices([...ATTENTION_FORMS, "all"] as const).hideHelp(),
  )
  .option("--epochs <n>", "repetitions of each (default: 1000 on a GPU, time-boxed on the CPU)", integer(1))
  .option("--seq_len <L>", "one length instead of 200 400 800 1000 2000", integer(1))
  .addOption(
    new Option("--mask <mask>", "none, causal or both").choices(["none", "causal", "both"] as const),
  )
  .addOption(
    new Option("--pass <pass>", "forward, backward or both").choices(
      ["forward", "backward", "both"] as const,
    ),
  )
  .option(
    "--shortest <n>",
    "sequences of n tokens up to the length, drawn uniformly, not all of it",
    integer(1),
  )
  .option("--batch <B>", "sequences", integer(1), 32)
  .option("--heads <H>", "heads", integer(1), 8)
  .option("--dim <D>", "head dimension", integer(8), 64)
  .option("--grid", "the FlashAttention papers' grid instead: B L = 16384, H D = 2048, L 512 to 16384")
  .option("--deterministic", "the deterministic backward pass")
  .option("--box <s>", "seconds for each measurement at most (0: no limit)", number(0))
  .addOption(
    new Option("--device <device>", "where").choices(["auto", "cpu", "cuda"] as const).default(
      "auto" as const,
    ),
  )
  .option("--peers", "PyTorch's eager, FlashAttention-2 and cuDNN attention in the same run")
  .option("--data <folder>", "parity: sentence pairs (default: the built-in corpus)")
  .option("--batch-tokens <n>", "parity: tokens of a batch on its longer side", integer(1), 4096)
  .option("--csv <file>", "write the rows as CSV")
  .option("--json", "print the rows as JSON, nothing else");

type Options = ReturnType<typeof COMMAND.opts>;

function timingOptions(context: Context, options: Options): TimingOptions {
  const cpu = context.device === "cpu";
  return {
    repetitions: options.epochs ?? GPU_EPOCHS,
    boxSeconds: options.box ?? (cpu ? CPU_BOX_SECONDS : 0),
  };
}

function formsOf(options: Options): readonly AttentionForm[] {
  const attn = options.attn_type ?? options.attn;
  return attn === "all" ? ATTENTION_FORMS : [attn];
}

function sweepOptions(context: Context, options: Options): SweepOptions {
  const cpu = context.device === "cpu";
  const mask = options.mask ?? (cpu ? "none" : "both");
  const pass = options.pass ?? (cpu ? "forward" : "both");
  return {
    ...timingOptions(context, options),
    forms: formsOf(options),
    lengths: options.seq_len === undefined ? LENGTHS : [options.seq_len],
    causal: mask === "both" ? [false, true] : [mask === "causal"],
    passes: pass === "both" ? ["forward", "backward"] : [pass],
    B: options.batch,
    H: options.heads,
    D: options.dim,
    deterministic: options.deterministic === true,
    shortest: options.shortest ?? null,
  };
}

/** The grid of the FlashAttention papers, each length with its own batch size. */
function gridOptions(options: SweepOptions): SweepOptions[] {
  return [512, 1024, 2048, 4096, 8192, 16_384]
    .map((L) => ({ ...options, lengths: [L], B: GRID.tokens / L, H: GRID.width / options.D }));
}

function rate(gflops: number): string {
  return gflops >= 1000 ? `${(gflops / 1000).toFixed(1)} TFLOP/s` : `${gflops.toFixed(1)} GFLOP/s`;
}

function isWrong(result: SweepResult): boolean {
  return result.failure === null && !(result.row.max_error <= result.tolerance);
}

/** One line a measurement: what the earlier project's script printed (length and total seconds), and more. */
function sweepLine(result: SweepResult): string {
  const { row } = result;
  const what = `${row.attn.padEnd(14)} seq_len: ${String(row.L).padStart(5)}  ${row.pass.padEnd(8)} ` +
    `${row.causal ? "causal" : "full  "}`;
  if (result.failure !== null) return `${what}  ${result.failure}`;
  const check = isWrong(result) ? `WRONG: more than ${result.tolerance.toExponential(1)}` : "ok";
  return `${what}  time: ${result.seconds.toFixed(3)} s for ${row.repetitions}${
    result.boxed ? " (time-boxed)" : ""
  }` +
    `  ${row.ms.toPrecision(4)} ms  ${rate(row.gflops)}  error ${row.max_error.toExponential(1)} ${check}`;
}

/** `peers`: names that bench/peers/attention.py knows, or null for all. */
async function peerRows(
  sweeps: readonly SweepOptions[],
  peers: readonly string[] | null,
): Promise<AttentionRow[]> {
  const jobs = sweeps.map(({ B, H, D, lengths, causal, passes, repetitions }) => ({
    ...{ B, H, D, lengths, causal, passes },
    repetitions: Math.min(repetitions, 200),
  }));
  const rows = await runPeer("attention.py", { peers, jobs });
  return rows.map((untyped) => {
    const row = untyped as Omit<AttentionRow, "gflops" | "max_error">;
    return { ...row, gflops: attentionFlops(row) / row.ms / 1e6, max_error: NaN };
  });
}

/** A table of times by length, a column an implementation, for each pass and mask. */
function sweepTables(rows: readonly AttentionRow[]): string {
  const names = [...new Set(rows.map((row) => row.attn))];
  const groups = Map.groupBy(rows, (row) => `${row.pass}, ${row.causal ? "causal" : "full"}`);
  return [...groups].map(([group, inGroup]) => {
    const lengths = [...new Set(inGroup.map((row) => row.L))];
    const cell = (L: number, name: string): string => {
      const row = inGroup.find((candidate) => candidate.L === L && candidate.attn === name);
      return row === undefined || Number.isNaN(row.ms) ? "-" : row.ms.toPrecision(4);
    };
    const body = lengths.map((L) => [String(L), ...names.map((name) => cell(L, name))]);
    return table([`${group}, ms; L`, ...names], body);
  }).join("\n\n");
}

/** What was timed and how: the line under every table. */
function signature(context: Context, options: SweepOptions, grid: boolean): string {
  const box = options.boxSeconds > 0 ? `, at most ${options.boxSeconds} s each but 3 at least` : "";
  const ragged = options.shortest === null ? "" : ` sequences of ${options.shortest} to L tokens |`;
  const shape = grid
    ? `B L = ${GRID.tokens}, H D = ${GRID.width}, D=${options.D}`
    : `B=${options.B} H=${options.H} D=${options.D}`;
  return `${shape} ${context.dtype} |${ragged} ${options.repetitions} repetitions${box}, ` +
    `median | events on the device, cache flushed | FLOPs = 4 B H L² D, half where causal, backward 2.5 times`;
}

async function runSweep(context: Context, options: Options): Promise<boolean> {
  const base = sweepOptions(context, options);
  if (base.shortest !== null && base.shortest > Math.min(...base.lengths)) {
    throw new UsageError(`Cannot draw lengths from ${base.shortest} to ${base.lengths[0]}: lower --shortest`);
  }
  const jobs = options.grid === true ? gridOptions(base) : [base];
  const quiet = options.json === true;
  const machine = describeMachine(context);
  const header = signature(context, base, options.grid === true);
  if (!quiet) print(`${machine}\n${header}\n`);
  if (base.boxSeconds > 0 && !quiet) {
    note(`Each measurement takes ${base.boxSeconds} s at most: the whole job would take hours here`);
  }
  const rows: AttentionRow[] = [];
  let wrong = 0;
  for (const job of jobs) {
    for (const result of sweep(context, job)) {
      rows.push(result.row);
      if (isWrong(result)) wrong++;
      if (!quiet) print(sweepLine(result));
    }
  }
  if (options.peers === true) rows.push(...await peerRows(jobs, options.grid === true ? GRID_PEERS : null));
  const timed = rows.filter((row) => !Number.isNaN(row.ms));
  if (quiet) print(JSON.stringify(timed)); // NaN, as of the peers' errors, prints as null
  else print(`\n${sweepTables(rows)}\n`);
  if (options.csv !== undefined) {
    await writeCsv(options.csv, [machine, header, commandLine()], ATTENTION_COLUMNS, timed);
  }
  if (wrong > 0) note(`error: ${wrong} of ${rows.length} results are wrong`);
  return wrong === 0;
}

function commandLine(): string {
  return `deno task bench ${Deno.args.join(" ")}`.trim();
}

/** What a benchmark found: rows for CSV and JSON, and the table for the terminal. */
interface Report<Row extends object> {
  rows: readonly Row[];
  columns: readonly (keyof Row & string)[];
  /** Below the machine's line. */
  conditions: string;
  head: readonly string[];
  cells: (row: Row) => string[];
}

/** Writes the CSV where one is asked for, and prints the rows as JSON or as a table. */
async function report<Row extends object>(
  context: Context,
  options: Options,
  found: Report<Row>,
): Promise<void> {
  const { rows, columns, conditions, head, cells } = found;
  const machine = describeMachine(context);
  if (options.csv !== undefined) await writeCsv(options.csv, [machine, commandLine()], columns, rows);
  // JSON has no NaN: it prints null.
  if (options.json === true) return print(JSON.stringify(rows));
  print(`${machine}\n${conditions}\n\n${table(head, rows.map(cells))}`);
}

const GEMM_SHAPES = [
  { name: "square", m: 1024, n: 1024, k: 1024 },
  { name: "tiny qkv", m: 1024, n: 384, k: 128 },
  { name: "tiny feed-forward", m: 1024, n: 512, k: 128 },
  { name: "tiny output", m: 1024, n: 2000, k: 128 },
  { name: "base qkv", m: 4096, n: 1536, k: 512 },
  { name: "base feed-forward", m: 4096, n: 2048, k: 512 },
  { name: "base output", m: 4096, n: 32_000, k: 512 },
] as const;

async function runGemm(context: Context, options: Options): Promise<void> {
  const timing = { repetitions: options.epochs ?? 100, boxSeconds: options.box ?? 2 };
  await report(context, options, {
    rows: [...benchGemm(context, GEMM_SHAPES, timing)],
    columns: ["name", "m", "n", "k", "ms", "gflops", "peak"],
    conditions: `${context.dtype}, cache flushed, median`,
    head: ["matrix product", "m x n x k", "ms", "speed", "of peak at the nominal clock"],
    cells: (row) => [
      row.name,
      `${row.m} x ${row.n} x ${row.k}`,
      row.ms.toPrecision(4),
      rate(row.gflops),
      Number.isNaN(row.peak) ? "-" : `${((100 * row.gflops) / row.peak).toFixed(0)} % of ${rate(row.peak)}`,
    ],
  });
}

const GPU_SIZES: KernelSizes = { rows: 24_576, C: 512, ff: 2048, V: 32_000, parameters: 93_324_544 };
const CPU_SIZES: KernelSizes = { rows: 4096, C: 512, ff: 2048, V: 8000, parameters: 8_000_000 };

async function runKernels(context: Context, options: Options): Promise<void> {
  const timing = { repetitions: options.epochs ?? 50, boxSeconds: options.box ?? 2, cleanCache: true };
  const sizes = context.device === "cuda" ? GPU_SIZES : CPU_SIZES;
  await report(context, options, {
    rows: [...benchKernels(context, sizes, timing)],
    columns: ["name", "bytes", "ms", "gbps", "share", "equal_share"],
    conditions: `R=${sizes.rows} C=${sizes.C} ff=${sizes.ff} V=${sizes.V} | cache flushed and clean, median`,
    head: ["kernel", "MiB", "ms", "GB/s", "of copy", "of a copy as large"],
    cells: (row) => [
      row.name,
      (row.bytes / 2 ** 20).toFixed(1),
      row.ms.toPrecision(4),
      row.gbps.toFixed(0),
      `${(100 * row.share).toFixed(0)} %`,
      `${(100 * row.equal_share).toFixed(0)} %`,
    ],
  });
}

const GPU_STEPS: readonly StepJob[] = [
  { model: "base", B: 32, L: 40 },
  { model: "base", B: 128, L: 64 },
  { model: "base", B: 256, L: 96 },
  { model: "base", B: 32, L: 800 },
  { model: "tiny", B: 256, L: 16 },
  { model: "tiny", B: 1024, L: 16 },
];
const CPU_STEPS: readonly StepJob[] = [{ model: "small-cpu", B: 64, L: 16 }, {
  model: "small",
  B: 64,
  L: 16,
}];

async function stepPeers(jobs: readonly StepJob[], steps: number): Promise<StepRow[]> {
  const requests = jobs.map((job) => ({ ...job, ...STEP_MODELS[job.model] }));
  const rows = await runPeer("step.py", { jobs: requests, steps });
  return rows.map((untyped) => {
    const row = untyped as Omit<StepRow, "tokens_per_second" | "tflops">;
    return { ...row, tokens_per_second: (2 * row.B * row.L * 1000) / row.ms, tflops: NaN };
  });
}

async function runStep(context: Context, options: Options): Promise<void> {
  const cuda = context.device === "cuda";
  const all = cuda ? GPU_STEPS : CPU_STEPS;
  const jobs = all.filter(({ L }) => options.seq_len === undefined || L === options.seq_len);
  if (jobs.length === 0) {
    const lengths = [...new Set(all.map(({ L }) => L))].join(", ");
    throw new UsageError(`Cannot time steps of length ${options.seq_len} as they are ${lengths} here`);
  }
  const steps = options.epochs ?? (cuda ? 50 : 4);
  const rows = jobs.flatMap((job) => formsOf(options).map((form) => benchStep(context, job, form, steps)));
  if (options.peers === true) rows.push(...await stepPeers(jobs, steps));
  await report(context, options, {
    rows,
    columns: ["attn", "model", "B", "L", "ms", "ms_low", "ms_high", "tokens_per_second", "tflops"],
    conditions: `dropout 0.1, label smoothing 0.1, clipping, Adam; ${steps} steps a round, 5 rounds`,
    head: ["training step", "attention", "ms", "spread", "tokens/s (both sides)", "TFLOP/s"],
    cells: (row) => [
      `${row.model} ${row.B} x ${row.L}`,
      row.attn,
      row.ms.toPrecision(4),
      `${row.ms_low.toPrecision(4)} to ${row.ms_high.toPrecision(4)}`,
      Math.round(row.tokens_per_second).toLocaleString("en"),
      Number.isNaN(row.tflops) ? "-" : row.tflops.toPrecision(3),
    ],
  });
}

async function runParity(context: Context, options: Options): Promise<void> {
  const steps = options.epochs ?? 300;
  const rows = await parity(context, {
    forms: formsOf(options),
    data: options.data,
    steps,
    batchTokens: options.batchTokens,
  });
  const comments = [describeMachine(context), commandLine()];
  if (options.csv !== undefined) {
    await writeCsv(options.csv, comments, ["attn", "device", "step", "loss"], rows);
  }
  if (options.json === true) return print(JSON.stringify(rows));
  const shown = [1, 10, 50, 100, 200, 300, steps].filter((step, i, all) =>
    step <= steps && all.indexOf(step) === i
  );
  const lossOf = (attn: string, step: number): string =>
    rows.find((row) => row.attn === attn && row.step === step)?.loss.toFixed(4) ?? "-";
  const body = shown.map((step) => [String(step), ...formsOf(options).map((form) => lossOf(form, step))]);
  print(`${describeMachine(context)}\n\n${table(["loss at step", ...formsOf(options)], body)}\n`);
  print(
    `largest departure from ${formsOf(options)[0]}: ${
      (100 * largestDeparture(rows)).toFixed(3)
    } % (means of 10 steps)`,
  );
}

const BPE_PAIRS = 250_000;
const BPE_VOCABULARY = 38_000; // 256 bytes, 4 marks, some 5,000 characters, and 32,000 merges

/** Training a joint vocabulary on synthetic text: word frequencies by Zipf's law, Chinese without spaces. */
function runBpe(options: Options): void {
  const pairs = [...syntheticPairs({ pairs: BPE_PAIRS })];
  const start = performance.now();
  const bpe = Bpe.train(pairs.flatMap(({ source, target }) => [source, target]), {
    vocabSize: BPE_VOCABULARY,
  });
  const seconds = (performance.now() - start) / 1000;
  const bytes = Deno.memoryUsage().rss;
  const merges = bpe.toJson().merges.length;
  if (options.json === true) {
    return print(JSON.stringify({ pairs: pairs.length, merges, seconds, bytes }));
  }
  print(
    `${merges} merges from ${pairs.length} pairs in ${seconds.toFixed(1)} s, ` +
      `${(bytes / 2 ** 30).toFixed(2)} GiB of memory in use, the text included`,
  );
}

async function main(): Promise<void> {
  const options = COMMAND.parse(Deno.args, { from: "user" }).opts();
  if (options.what === "bpe") return runBpe(options);
  using context = new Context({ device: options.device });
  if (options.peers === true && context.device !== "cuda") {
    throw new UsageError("Cannot run the peers as they need a GPU: leave --peers away, or use --device cuda");
  }
  let right = true;
  if (options.what === "sweep") right = await runSweep(context, options);
  if (options.what === "gemm") await runGemm(context, options);
  if (options.what === "kernels") await runKernels(context, options);
  if (options.what === "step") await runStep(context, options);
  if (options.what === "parity") await runParity(context, options);
  if (!right) Deno.exit(1);
}

await runMain(main);
