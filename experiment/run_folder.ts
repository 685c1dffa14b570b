/**
 * A run's folder: where it lies, what is in it, and who may write it.
 *
 *     config.json   tokenizer.json   train.log   metrics.csv   samples/   checkpoints/   best   last
 *
 * @module
 */

import { basename, dirname, join, relative, resolve } from "@std/path";
import { parse, stringify } from "@std/csv";
import { writeError, writeFileSafely } from "./checkpoint.ts";
import { print, UsageError } from "./cli.ts";

const RUNS = join(import.meta.dirname ?? ".", "runs");
const CONFIG = "config.json";
const METRICS = "metrics.csv";

/** One line of metrics.csv. */
export interface MetricsRow {
  /** Epoch, from 1. */
  readonly epoch: number;
  /** Optimizer steps done. */
  readonly step: number;
  /** Training loss per target token, label smoothing included. */
  readonly train_loss: number;
  /** Negative log-likelihood per target token on the dev set. */
  readonly dev_loss: number;
  /** BLEU on the dev set, greedy. */
  readonly dev_bleu: number;
  /** Seconds spent training in this epoch, without evaluation. */
  readonly seconds: number;
  /** Source and target tokens trained on per second. */
  readonly tokens_per_second: number;
}

const COLUMNS = [
  "epoch",
  "step",
  "train_loss",
  "dev_loss",
  "dev_bleu",
  "seconds",
  "tokens_per_second",
] as const satisfies readonly (keyof MetricsRow)[];

/** Rows as CSV; std's rows end in CR LF, which line tools trip over. */
function csv(rows: readonly MetricsRow[], headers: boolean): string {
  const data = rows.map((row) => ({ ...row }));
  return stringify(data, { columns: COLUMNS, headers }).replaceAll("\r\n", "\n");
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    // Below a file, or where nobody may look, there is nothing that could be harmed: writing will say what is wrong.
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return false;
    return !(error instanceof Deno.errors.PermissionDenied);
  }
}

/** The folder of the run that a user names: a name in experiment/runs, or a path where it holds a slash. */
export function runPath(name: string): string {
  return name.includes("/") || name === "." || name === ".." ? resolve(name) : join(RUNS, name);
}

/** How a run's folder is shown: relative to the current folder where that is shorter. */
export function shownPath(path: string): string {
  const near = relative(Deno.cwd(), path);
  return near.length < path.length && near !== "" ? near : path;
}

/** A name that no run has yet: `stem`, `stem-2`, `stem-3`, ... */
export function freeRun(stem: string): string {
  for (let n = 1;; n++) {
    const name = n === 1 ? stem : `${stem}-${n}`;
    if (!exists(join(RUNS, name))) return join(RUNS, name);
  }
}

/**
 * The run that saved a checkpoint last.
 *
 * @throws {UsageError} If there is none.
 */
export function latestRun(): string {
  let latest: { path: string; time: number } | undefined;
  try {
    for (const entry of Deno.readDirSync(RUNS)) {
      const path = join(RUNS, entry.name);
      if (!exists(join(path, "last"))) continue;
      const time = Deno.lstatSync(join(path, "last")).mtime?.getTime() ?? 0;
      if (latest === undefined || time > latest.time) latest = { path, time };
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  if (latest === undefined) {
    throw new UsageError(
      "Cannot find a trained model as experiment/runs holds none: run deno task train first",
    );
  }
  return latest.path;
}

/** The folder of one training run. */
export class RunFolder {
  /** @param path Its absolute path. */
  constructor(readonly path: string) {}

  /** How it is shown to the user. */
  get shown(): string {
    return shownPath(this.path);
  }

  /** The path of a file in it. */
  file(name: string): string {
    return join(this.path, name);
  }

  /**
   * Says no where starting a new run would overwrite an old one, before any work is done.
   *
   * @param overwrite Whether the user allows it.
   * @throws {UsageError} If the folder exists and `overwrite` is false, or it is no run's folder.
   */
  expectFree(overwrite: boolean): void {
    if (!exists(this.path)) return;
    const entries = Deno.statSync(this.path).isDirectory ? [...Deno.readDirSync(this.path)] : undefined;
    if (entries?.length === 0) return;
    if (entries === undefined || !exists(this.file(CONFIG))) {
      throw new UsageError(`Cannot train in ${this.shown} as it exists and is not the folder of a run`);
    }
    if (!overwrite) {
      throw new UsageError(
        `Cannot train in ${this.shown} as this run exists: choose another --run, go on with --resume, or give --overwrite`,
      );
    }
  }

  /**
   * Makes the folder where it is missing and sees whether it can be written, before hours are spent on what goes there.
   *
   * @throws {EnvironmentError} If it cannot.
   */
  expectWritable(): void {
    try {
      Deno.mkdirSync(this.path, { recursive: true });
      Deno.writeTextFileSync(this.file("config.json.part"), "");
      Deno.removeSync(this.file("config.json.part"));
    } catch (error) {
      throw writeError(`the run folder ${this.shown}`, error);
    }
  }

  /**
   * Makes the folder, without the files of an earlier run, and saves the configuration.
   *
   * @throws {EnvironmentError} If it cannot be written.
   */
  create(config: unknown): void {
    try {
      Deno.mkdirSync(this.file("samples"), { recursive: true });
      for (const name of ["best", "last", "checkpoints", "samples", "train.log", METRICS, "tokenizer.json"]) {
        if (exists(this.file(name))) Deno.removeSync(this.file(name), { recursive: true });
      }
      Deno.mkdirSync(this.file("samples"));
    } catch (error) {
      throw writeError(`the run folder ${this.shown}`, error);
    }
    this.saveConfig(config);
    writeFileSafely(this.file(METRICS), COLUMNS.join(",") + "\n");
  }

  /** Saves the resolved configuration. */
  saveConfig(config: unknown): void {
    writeFileSafely(this.file(CONFIG), JSON.stringify(config, null, 2) + "\n");
  }

  /** Prints a line and adds it to train.log. */
  log(line = ""): void {
    print(line);
    this.#append("train.log", line + "\n");
  }

  #append(name: string, text: string): void {
    const path = this.file(name);
    try {
      Deno.writeTextFileSync(path, text, { append: true });
    } catch (error) {
      throw writeError(shownPath(path), error);
    }
  }

  /** Adds a line to metrics.csv. */
  addMetrics(row: MetricsRow): void {
    this.#append(METRICS, csv([row], false));
  }

  /** The lines of metrics.csv. */
  metrics(): MetricsRow[] {
    if (!exists(this.file(METRICS))) return [];
    const rows = parse(Deno.readTextFileSync(this.file(METRICS)), { skipFirstRow: true });
    return rows.map((row) =>
      Object.fromEntries(COLUMNS.map((key) => [key, Number(row[key])])) as unknown as MetricsRow
    );
  }

  /** Takes back the lines of epochs after `epoch`: a resumed run trains them again. */
  dropMetricsAfter(epoch: number): void {
    const kept = this.metrics().filter((row) => row.epoch <= epoch);
    writeFileSafely(
      this.file(METRICS),
      csv(kept, true),
    );
  }

  /** Saves sample translations of an epoch, or of the test set. */
  saveSamples(name: string, text: string): void {
    try {
      Deno.mkdirSync(this.file("samples"), { recursive: true });
    } catch (error) {
      throw writeError(`the run folder ${this.shown}`, error);
    }
    writeFileSafely(this.file(`samples/${name}`), text);
  }
}

/** The run that a checkpoint's folder belongs to: the nearest folder above it that holds a configuration. */
export function runOf(checkpointFolder: string): string {
  const inCheckpoints = basename(dirname(checkpointFolder)) === "checkpoints";
  return inCheckpoints ? dirname(dirname(checkpointFolder)) : dirname(checkpointFolder);
}
