/**
 * Checkpoints of a training run.
 *
 *     RUN/checkpoints/step-00000500/model.safetensors      fp32 weights by name
 *                                   optimizer.safetensors  Adam's moments, as m.NAME and v.NAME
 *                                   state.json             all else that a resumed run needs, and the checksums
 *     RUN/last -> checkpoints/step-...    RUN/best -> checkpoints/step-...
 *
 * A checkpoint is written under another name, brought to the disk, renamed, and only then do the links move: whatever
 * fails on the way, the earlier checkpoints stay as they were. Weights are fp32 on every device, so a run may go on
 * elsewhere.
 *
 * @module
 */

import { basename, dirname, join } from "@std/path";
import { EnvironmentError, UsageError } from "./cli.ts";
import { checkSettings, type Config, resolveConfig } from "./config.ts";
import {
  type FileSeal,
  type NamedTensor,
  readSafetensors,
  writeSafetensors,
  writeSealed,
} from "./safetensors.ts";

const VERSION = 1;
const MODEL = "model.safetensors";
const OPTIMIZER = "optimizer.safetensors";
const STATE = "state.json";

/** Where training stands, beside the tensors. */
export interface TrainState {
  /** Optimizer steps done. Also the number of the dropout masks drawn. */
  readonly step: number;
  /** Epochs completed. */
  readonly epoch: number;
  /** Batches done of the epoch that has begun. */
  readonly batch: number;
  /** Sum of the training loss over the target tokens of the epoch so far. */
  readonly lossSum: number;
  /** Target tokens of the epoch so far. */
  readonly lossTokens: number;
  /** Seconds spent training, over all resumptions. */
  readonly seconds: number;
  /** Seconds spent on the epoch that has begun. */
  readonly epochSeconds: number;
  /** Source and target tokens of the epoch so far. */
  readonly epochTokens: number;
  /** Best dev BLEU so far; -1 before the first. */
  readonly bestBleu: number;
  /** Epoch of the best dev BLEU. */
  readonly bestEpoch: number;
  /** Epochs since then. */
  readonly stalled: number;
}

/** A checkpoint as it is written. */
export interface CheckpointContent {
  /** Weights, fp32. */
  readonly weights: readonly NamedTensor[];
  /** Adam's moments, named m.NAME and v.NAME. */
  readonly moments: readonly NamedTensor[];
  /** Where training stands. */
  readonly state: TrainState;
  /** The run's configuration. */
  readonly config: Config;
  /** SHA-256 of the tokenizer that the weights belong to. */
  readonly tokenizer: string;
}

/** A checkpoint as it is found, its tensors not yet read. */
export interface Checkpoint {
  /** Its folder. */
  readonly folder: string;
  /** The folder of its run. */
  readonly run: string;
  /** Where training stood. */
  readonly state: TrainState;
  /** The run's configuration. */
  readonly config: Config;
  /** SHA-256 of the tokenizer. */
  readonly tokenizer: string;
  /** Sizes and checksums of its files. */
  readonly files: Readonly<Record<string, FileSeal>>;
}

const STATE_KEYS = [
  "step",
  "epoch",
  "batch",
  "lossSum",
  "lossTokens",
  "seconds",
  "epochSeconds",
  "epochTokens",
  "bestBleu",
  "bestEpoch",
  "stalled",
] as const satisfies readonly (keyof TrainState)[];

/** What the operating system said, without the path that the message names already. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  if (/os error 28\b|ENOSPC/.test(text)) return "the disk is full";
  if (/os error 122\b|EDQUOT/.test(text)) return "the disk quota is used up";
  if (/os error 27\b|EFBIG/.test(text)) return "the file would exceed the size limit";
  if (/os error 30\b|EROFS/.test(text)) return "the file system is read-only";
  if (error instanceof Deno.errors.PermissionDenied) return "the folder may not be written";
  return text;
}

/** A failure to write `what`, as one line and an environment error. */
export function writeError(what: string, error: unknown): EnvironmentError {
  return new EnvironmentError(`Cannot write ${what} as ${reasonOf(error)}`, { cause: error });
}

function syncFolder(path: string): void {
  try {
    using folder = Deno.openSync(path, { read: true });
    folder.syncSync();
  } catch {
    // Not every file system can; the files themselves are on the disk.
  }
}

/**
 * Writes a small file aside, brings it to the disk and renames it.
 *
 * @throws {EnvironmentError} If it cannot be written; an earlier file of that name is as it was.
 */
export function writeFileSafely(path: string, content: string): void {
  const aside = `${path}.part`;
  try {
    writeSealed(aside, [new TextEncoder().encode(content)]);
    Deno.renameSync(aside, path);
  } catch (error) {
    removeQuietly(aside);
    throw writeError(path, error);
  }
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch {
    // It was not there, or stays; either way the error that led here is the one to report.
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Points RUN/name to a checkpoint, in one step. */
function pointTo(run: string, name: string, checkpoint: string): void {
  const aside = join(run, `${name}.part`);
  removeQuietly(aside);
  Deno.symlinkSync(join("checkpoints", checkpoint), aside);
  Deno.renameSync(aside, join(run, name));
}

/** The checkpoint's folder name that RUN/name points to; undefined where there is none. */
function pointedTo(run: string, name: string): string | undefined {
  try {
    return basename(Deno.readLinkSync(join(run, name)));
  } catch {
    return undefined;
  }
}

/** Removes the checkpoints that neither `last` nor `best` points to. */
function prune(run: string): void {
  const kept = [pointedTo(run, "last"), pointedTo(run, "best")];
  for (const entry of Deno.readDirSync(join(run, "checkpoints"))) {
    if (!kept.includes(entry.name)) removeQuietly(join(run, "checkpoints", entry.name));
  }
}

/** The name of a checkpoint after `step`, one that is not taken. */
function freeName(run: string, step: number): string {
  const stem = `step-${String(step).padStart(8, "0")}`;
  for (let n = 1;; n++) {
    const name = n === 1 ? stem : `${stem}-${n}`;
    if (!exists(join(run, "checkpoints", name))) return name;
  }
}

/**
 * Saves a checkpoint as RUN/last, and as RUN/best where it is that; removes those that are neither any more.
 *
 * @throws {EnvironmentError} If it cannot be written; the earlier checkpoints are as they were.
 */
export function saveCheckpoint(run: string, content: CheckpointContent, best: boolean): void {
  const name = freeName(run, content.state.step);
  const folder = join(run, "checkpoints", name);
  const aside = `${folder}.part`;
  try {
    Deno.mkdirSync(aside, { recursive: true });
    const files: Record<string, FileSeal> = {
      [MODEL]: writeSafetensors(join(aside, MODEL), content.weights, { format: "flashattn-nmt" }),
      [OPTIMIZER]: writeSafetensors(join(aside, OPTIMIZER), content.moments, { format: "flashattn-nmt" }),
    };
    const { state, config, tokenizer } = content;
    const json = JSON.stringify({ version: VERSION, state, tokenizer, files, config }, null, 2) + "\n";
    writeSealed(join(aside, STATE), [new TextEncoder().encode(json)]);
    syncFolder(aside);
    Deno.renameSync(aside, folder);
    syncFolder(join(run, "checkpoints"));
    // `last` moves last: a run resumed from it does again what an interruption here left undone.
    if (best) pointTo(run, "best", name);
    pointTo(run, "last", name);
    syncFolder(run);
    prune(run);
  } catch (error) {
    removeQuietly(aside);
    throw new EnvironmentError(
      `Cannot write checkpoint ${folder} as ${reasonOf(error)}: the earlier checkpoints are as they were`,
      { cause: error },
    );
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function stateOf(value: unknown): TrainState {
  if (!isRecord(value)) throw new SyntaxError("it holds no training state");
  for (const key of STATE_KEYS) {
    if (typeof value[key] !== "number") throw new SyntaxError(`its training state lacks ${key}`);
  }
  return value as unknown as TrainState;
}

function sealsOf(value: unknown): Record<string, FileSeal> {
  if (!isRecord(value)) throw new SyntaxError("it lists no files");
  for (const name of [MODEL, OPTIMIZER]) {
    const seal = value[name];
    if (!isRecord(seal) || typeof seal["bytes"] !== "number" || typeof seal["sha256"] !== "string") {
      throw new SyntaxError(`it lacks the checksum of ${name}`);
    }
  }
  return value as unknown as Record<string, FileSeal>;
}

/** Reads a saved configuration: every key must be there and valid. */
export function configFrom(value: unknown, where: string): Config {
  if (!isRecord(value)) throw new SyntaxError("it holds no configuration");
  return resolveConfig(checkSettings(value, where));
}

/** The folder that a user's path stands for: a run (its best checkpoint, else its last) or a checkpoint itself. */
function checkpointFolder(path: string): string {
  if (basename(path) === MODEL || basename(path) === STATE) return dirname(path) || ".";
  if (exists(join(path, STATE)) || exists(join(path, MODEL))) return path;
  for (const name of ["best", "last"]) if (exists(join(path, name))) return join(path, name);
  if (!exists(path)) throw new UsageError(`Cannot load checkpoint ${path} as there is no such folder`);
  throw new UsageError(`Cannot load checkpoint ${path} as no checkpoint is in it: has this run saved one?`);
}

/**
 * Opens a checkpoint: reads and checks its state, not yet its tensors.
 *
 * @param path A run's folder, one of its links, or a checkpoint's folder.
 * @throws {UsageError} If there is none.
 * @throws {SyntaxError} If its state is damaged.
 */
export function openCheckpoint(path: string): Checkpoint {
  let folder = checkpointFolder(path);
  try {
    folder = Deno.realPathSync(folder);
  } catch (error) {
    throw new UsageError(`Cannot load checkpoint ${folder} as it is a link to a folder that is gone`, {
      cause: error,
    });
  }
  const file = join(folder, STATE);
  let content: string;
  try {
    content = Deno.readTextFileSync(file);
  } catch (error) {
    throw new UsageError(`Cannot load checkpoint ${folder} as its ${STATE} is missing`, { cause: error });
  }
  try {
    const parsed: unknown = JSON.parse(content);
    if (!isRecord(parsed)) throw new SyntaxError("it is not a JSON object");
    if (parsed["version"] !== VERSION) {
      throw new SyntaxError(`its version is ${String(parsed["version"])}, not ${VERSION}`);
    }
    const tokenizer = parsed["tokenizer"];
    if (typeof tokenizer !== "string") throw new SyntaxError("it names no tokenizer");
    return {
      folder,
      run: dirname(dirname(folder)),
      state: stateOf(parsed["state"]),
      config: configFrom(parsed["config"], file),
      tokenizer,
      files: sealsOf(parsed["files"]),
    };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SyntaxError(`Cannot read checkpoint file ${file} as ${reason}`, { cause: error });
  }
}

function readTensors(checkpoint: Checkpoint, name: string): Map<string, NamedTensor> {
  const path = join(checkpoint.folder, name);
  try {
    return readSafetensors(path, checkpoint.files[name]);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UsageError(`Cannot load checkpoint ${checkpoint.folder} as its ${name} is missing`, {
      cause: error,
    });
  }
}

/** Reads the weights, fp32 by name. @throws {SyntaxError} If the file is truncated or damaged. */
export function readWeights(checkpoint: Checkpoint): Map<string, NamedTensor> {
  return readTensors(checkpoint, MODEL);
}

/** Reads Adam's moments, named m.NAME and v.NAME. @throws {SyntaxError} If the file is truncated or damaged. */
export function readMoments(checkpoint: Checkpoint): Map<string, NamedTensor> {
  return readTensors(checkpoint, OPTIMIZER);
}

/**
 * Compares a checkpoint's tensors with those that a model has.
 *
 * @param where The checkpoint's name for the message.
 * @throws {RangeError} If one is missing, is one too many, or has another shape.
 */
export function expectTensors(
  tensors: ReadonlyMap<string, NamedTensor>,
  expected: readonly { readonly name: string; readonly shape: readonly number[] }[],
  where: string,
): void {
  const names = new Set<string>();
  for (const { name, shape } of expected) {
    names.add(name);
    const found = tensors.get(name);
    if (found === undefined) {
      throw new RangeError(
        `Cannot load checkpoint ${where} as tensor ${name} is missing: it is of another model`,
      );
    }
    if (found.shape.join() !== shape.join()) {
      throw new RangeError(
        `Cannot load checkpoint ${where} as tensor ${name} must have shape [${shape.join(", ")}]: ` +
          `current value is [${found.shape.join(", ")}]`,
      );
    }
  }
  for (const name of tensors.keys()) {
    if (!names.has(name)) {
      throw new RangeError(
        `Cannot load checkpoint ${where} as the model has no tensor ${name}: it is of another model`,
      );
    }
  }
}

/**
 * Compares a checkpoint's vocabulary with the tokenizer at hand.
 *
 * @param hash SHA-256 of the tokenizer at hand.
 * @throws {UsageError} If they differ.
 */
export function expectTokenizer(checkpoint: Checkpoint, hash: string): void {
  if (checkpoint.tokenizer !== hash) {
    throw new UsageError(
      `Cannot load checkpoint ${checkpoint.folder} as it was trained with another vocabulary: its tokenizer is ` +
        `${checkpoint.tokenizer.slice(0, 12)}, the one at hand ${hash.slice(0, 12)}`,
    );
  }
}
