/**
 * What benchmarks share: the machine's description, CSV files, the row of an attention measurement.
 *
 * @module
 */

import { stringify } from "@std/csv";
import type { Context } from "../ffi/mod.ts";

/** One measurement of attention. */
export interface AttentionRow {
  /** The form, or the name of a peer. */
  attn: string;
  /** `forward` or `backward`. */
  pass: "forward" | "backward";
  /** Whether queries see no later keys. */
  causal: boolean;
  /** Sequences. */
  B: number;
  /** Heads. */
  H: number;
  /** Sequence length. */
  L: number;
  /** Head dimension. */
  D: number;
  /** Median milliseconds; NaN where it could not run. */
  ms: number;
  /** 10th percentile. */
  ms_low: number;
  /** 90th percentile. */
  ms_high: number;
  /** GFLOP/s, counted as {@linkcode attentionFlops} does. */
  gflops: number;
  /** Largest difference from float64 on the sampled rows; NaN for peers. */
  max_error: number;
  /** Repetitions timed. */
  repetitions: number;
}

/** Columns of the sweep's CSV files, in order. */
export const ATTENTION_COLUMNS: readonly (keyof AttentionRow)[] = [
  "attn",
  "pass",
  "causal",
  "B",
  "H",
  "L",
  "D",
  "ms",
  "ms_low",
  "ms_high",
  "gflops",
  "max_error",
  "repetitions",
];

/**
 * Floating-point operations by the convention of the FlashAttention papers: 4 B H L² D forward, half of it where causal,
 * 2.5 times as many backward.
 */
export function attentionFlops(shape: Pick<AttentionRow, "B" | "H" | "L" | "D" | "causal" | "pass">): number {
  const { B, H, L, D, causal, pass } = shape;
  return (4 * B * H * L * L * D * (pass === "backward" ? 2.5 : 1)) / (causal ? 2 : 1);
}

/** The machine in one line: name, units, clock, memory, versions. */
export function describeMachine(context: Context): string {
  const info = context.info();
  const version = (number: number): string =>
    `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;
  const gib = (info.totalBytes / 2 ** 30).toFixed(0);
  return [
    info.name,
    context.device === "cuda" ? `${info.units} multiprocessors` : `${info.units} threads`,
    info.clockMhz > 0 ? `${info.clockMhz} MHz` : "",
    `${gib} GiB`,
    context.device === "cuda" ? `CUDA ${version(info.runtime)}, driver for CUDA ${version(info.driver)}` : "",
    `Deno ${Deno.version.deno}`,
  ].filter((part) => part !== "").join(", ");
}

/** Writes rows as CSV, beside the file and renamed, after comment lines that start with "# ". */
export async function writeCsv<Row extends object>(
  path: string,
  comments: readonly string[],
  columns: readonly (keyof Row & string)[],
  rows: readonly Row[],
): Promise<void> {
  const head = comments.map((line) => `# ${line}\n`).join("");
  const table = stringify(rows.map((row) => Object.fromEntries(Object.entries(row))), {
    columns,
  });
  await Deno.writeTextFile(`${path}.part`, head + table.replaceAll("\r\n", "\n"));
  await Deno.rename(`${path}.part`, path);
}

/** A table for the terminal: columns padded, numbers to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => (row[column] ?? "").length))
  );
  const line = (cells: readonly string[]): string =>
    cells.map((cell, column) => {
      const width = widths[column] ?? 0;
      return column === 0 ? cell.padEnd(width) : cell.padStart(width);
    }).join("  ").trimEnd();
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}
