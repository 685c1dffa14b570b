/**
 * `deno task plot`: draws figures as SVG from CSV files, each beside its CSV: sweeps of `deno task bench --csv` and the
 * metrics.csv of training runs.
 *
 * @module
 */

import { parse } from "@std/csv";
import { basename, dirname, join } from "@std/path";
import { createCommand, print, runMain, UsageError } from "../experiment/cli.ts";
import { charts, type Panel, type Series } from "./svg.ts";

type Row = Record<string, string>;

const COMMAND = createCommand("plot", "Draw the sweep and the training curves as SVG from CSV files")
  .argument(
    "[files...]",
    "CSV files or folders to look in (default: experiment/results and experiment/runs)",
  );

const OURS = ["dotscale", "flash_attn", "imp_flash_attn"];

/** The rows of a CSV text, comment lines left out. */
function readRows(text: string): Row[] {
  const body = text.split(/\r?\n/).filter((line) => !line.startsWith("#")).join("\n");
  return body.trim() === "" ? [] : parse(body, { skipFirstRow: true });
}

function points(rows: readonly Row[], x: string, y: string): [number, number][] {
  return rows.filter((row) => row[y] !== "" && row[y] !== undefined)
    .map((row): [number, number] => [Number(row[x]), Number(row[y])])
    .sort(([a], [b]) => a - b);
}

/** Milliseconds and speed over the length, a panel for each pass and mask, and each head dimension where they are several. */
export function sweepFigure(rows: readonly Row[], title: string): string {
  const panels: Panel[] = [];
  const several = new Set(rows.map((row) => row.D)).size > 1;
  const groupOf = (row: Row): string =>
    `${row.pass}, ${row.causal === "true" ? "causal" : "full"}${several ? `, D ${row.D}` : ""}`;
  for (const [group, members] of Map.groupBy(rows, groupOf)) {
    const series = (y: string, factor: number): Series[] =>
      [...Map.groupBy(members, (row) => row.attn ?? "")].map(([name, own]) => ({
        name,
        points: points(own, "L", y).map(([L, value]): [number, number] => [L, value * factor]),
        faint: !OURS.includes(name),
      }));
    const x = "sequence length L";
    panels.push({ title: group, x, y: "milliseconds, lower is better", series: series("ms", 1), log: true });
    panels.push({ title: group, x, y: "TFLOP/s, higher is better", series: series("gflops", 1e-3) });
  }
  return charts(title, panels);
}

/** Loss and BLEU over the steps, a line for each run. */
export function trainingFigure(runs: ReadonlyMap<string, readonly Row[]>, title: string): string {
  const series = (y: string): Series[] =>
    [...runs].map(([name, rows]) => ({ name, points: points(rows, "step", y) }));
  return charts(title, [
    { title: "training loss", x: "step", y: "nats a token, lower is better", series: series("train_loss") },
    { title: "held-out loss", x: "step", y: "nats a token, lower is better", series: series("dev_loss") },
    { title: "held-out BLEU", x: "step", y: "BLEU, higher is better", series: series("dev_bleu") },
    {
      title: "speed",
      x: "step",
      y: "tokens a second, higher is better",
      series: series("tokens_per_second"),
    },
  ]);
}

/** CSV files under a folder, two levels down: experiment/runs/NAME/metrics.csv. */
async function csvFiles(path: string, depth = 2): Promise<string[]> {
  const found: string[] = [];
  for await (const entry of Deno.readDir(path)) {
    const inner = join(path, entry.name);
    if (entry.isDirectory && depth > 0) found.push(...await csvFiles(inner, depth - 1));
    if (entry.isFile && entry.name.endsWith(".csv")) found.push(inner);
  }
  return found.sort();
}

async function expand(paths: readonly string[]): Promise<string[]> {
  const files: string[] = [];
  const defaults = ["experiment/results", "experiment/runs"];
  for (const path of paths.length > 0 ? paths : defaults) {
    const info = await Deno.stat(path).catch((error: unknown) => {
      if (error instanceof Deno.errors.NotFound) return null;
      throw error;
    });
    if (info === null && paths.length > 0) {
      throw new UsageError(`Cannot plot ${path}: no such file or folder`);
    }
    if (info?.isDirectory) files.push(...await csvFiles(path));
    if (info?.isFile) files.push(path);
  }
  return files;
}

async function save(path: string, svg: string): Promise<void> {
  await Deno.writeTextFile(`${path}.part`, svg);
  await Deno.rename(`${path}.part`, path);
  print(path);
}

async function main(): Promise<void> {
  const [paths] = COMMAND.parse(Deno.args, { from: "user" }).processedArgs;
  const files = await expand(paths);
  const runs = new Map<string, Map<string, Row[]>>();
  let drawn = 0;
  for (const file of files) {
    const rows = readRows(await Deno.readTextFile(file));
    const columns = Object.keys(rows[0] ?? {});
    const isSweep = columns.includes("pass") && columns.includes("ms");
    if (isSweep && new Set(rows.map((row) => row.L)).size === 1 && !paths.includes(file)) continue; // no line
    if (isSweep) {
      const machine = (await Deno.readTextFile(file)).match(/^# ([^,\n]*)/)?.[1] ?? "";
      await save(
        file.replace(/\.csv$/, ".svg"),
        sweepFigure(rows, `Attention over the sequence length, ${machine}`),
      );
      drawn++;
    } else if (columns.includes("dev_loss")) {
      const own = basename(file) === "metrics.csv";
      const folder = own ? dirname(dirname(file)) : dirname(file);
      const name = own ? basename(dirname(file)) : basename(file, ".csv");
      runs.set(folder, (runs.get(folder) ?? new Map<string, Row[]>()).set(name, rows));
    } else if (paths.includes(file)) {
      throw new UsageError(`Cannot plot ${file}: it has the columns of neither a sweep nor a training run`);
    }
  }
  for (const [folder, members] of runs) {
    await save(join(folder, "training.svg"), trainingFigure(members, "Training"));
    drawn++;
  }
  if (drawn === 0) {
    throw new UsageError('Nothing to plot: run "deno task bench --csv FILE" or "deno task train" first');
  }
}

if (import.meta.main) await runMain(main);
