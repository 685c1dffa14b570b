/**
 * What the command-line scripts share: the command parser's set-up, output, and the way from an error to one line and an
 * exit code. It imports nothing native, so that a script which needs no library starts without one.
 *
 * Exit codes: 0 done, 1 the user's input is wrong, 2 the machine lacks something (a compiler, a library, room on the
 * disk), 3 training diverged, 130 and 143 stopped by a signal.
 *
 * @module
 */

import { Command, InvalidArgumentError } from "@commander-js/extra-typings";
import { setImmediate } from "node:timers";
import { closestString, levenshteinDistance } from "@std/text";

/** Exit codes of every script. */
export const EXIT = { done: 0, user: 1, environment: 2, diverged: 3 } as const;

/** The user's input is wrong: exit code 1. */
export class UsageError extends Error {
  /** Name shown with the stack. */
  override name = "UsageError";
}

/** The machine lacks something that the command needs: exit code 2. */
export class EnvironmentError extends Error {
  /** Name shown with the stack. */
  override name = "EnvironmentError";
}

/** Training left the range of finite numbers: exit code 3. */
export class DivergedError extends Error {
  /** Name shown with the stack. */
  override name = "DivergedError";
}

const encoder = new TextEncoder();

function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let bytes = encoder.encode(text);
  while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
}

/** Writes one line to standard output. */
export function print(line = ""): void {
  writeAll(Deno.stdout, line + "\n");
}

/** Writes one line to standard error: progress, notes and errors go there, so that output can be piped. */
export function note(line = ""): void {
  writeAll(Deno.stderr, line + "\n");
}

/** Writes text as it is to standard error: the compilers' own messages. */
export function noteRaw(text: string): void {
  writeAll(Deno.stderr, text);
}

/**
 * A command with the set-up of this project: it reads no environment variable (so it needs no permission for that),
 * reports a mistake in one line with a suggestion, and exits with 1.
 *
 * @param name The task's name, as in `deno task name`.
 * @param description One sentence for the help text.
 */
export function createCommand(name: string, description: string): Command {
  return new Command()
    .name(name)
    .description(description)
    .configureOutput({
      getOutHasColors: () => false,
      getErrHasColors: () => false,
      getOutHelpWidth: () => 100,
      getErrHelpWidth: () => 100,
      writeOut: (text) => writeAll(Deno.stdout, text),
      writeErr: (text) => writeAll(Deno.stderr, text),
      outputError: (text, write) => write(text.replace(/\n(?=.)/g, " ")),
    })
    .option("--verbose", "show where an error arose")
    .showHelpAfterError(false)
    .showSuggestionAfterError(true)
    .allowExcessArguments(false);
}

/**
 * Reads an integer option.
 *
 * @param minimum The least value allowed.
 * @returns A parser for commander's `option()`.
 */
export function integer(minimum: number): (text: string) => number {
  return (text) => {
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : NaN;
    if (!Number.isSafeInteger(value) || value < minimum) {
      throw new InvalidArgumentError(`It must be a whole number of at least ${minimum}.`);
    }
    return value;
  };
}

/** Reads a number option, in [minimum, maximum]. */
export function number(minimum: number, maximum = Infinity): (text: string) => number {
  return (text) => {
    const value = text.trim() === "" ? NaN : Number(text);
    if (!(value >= minimum && value <= maximum)) {
      const range = maximum === Infinity ? `of at least ${minimum}` : `from ${minimum} to ${maximum}`;
      throw new InvalidArgumentError(`It must be a number ${range}.`);
    }
    return value;
  };
}

/** " (did you mean x?)" where one of the names is near to `word`, else "". */
export function suggestion(word: string, names: readonly string[]): string {
  if (names.length === 0) return "";
  const nearest = closestString(word, names);
  const distance = levenshteinDistance(word.toLowerCase(), nearest.toLowerCase());
  return distance <= Math.max(2, Math.ceil(word.length / 3)) ? ` (did you mean ${nearest}?)` : "";
}

/** The exit code that an error stands for. Native errors are known by name: this file must not load the library. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof DivergedError) return EXIT.diverged;
  if (error instanceof EnvironmentError) return EXIT.environment;
  if (error instanceof UsageError) return EXIT.user;
  if (!(error instanceof Error)) return EXIT.user;
  if (["NativeError", "OutOfMemoryError", "LibraryError"].includes(error.name)) return EXIT.environment;
  if (error instanceof Deno.errors.PermissionDenied || error instanceof Deno.errors.NotCapable) {
    return EXIT.environment;
  }
  if (/os error (27|28|30|122)\b|ENOSPC|EROFS|EFBIG|EDQUOT/.test(error.message)) return EXIT.environment;
  return EXIT.user;
}

/** The error's message in one line. */
export function messageOf(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.trim().replace(/\s*\n\s*/g, " ");
}

/**
 * Runs a script: awaits `main`, and turns an error into one line on standard error and its exit code. With `--verbose` on
 * the command line the stack follows.
 */
export async function runMain(main: () => Promise<void> | void): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(EXIT.done);
    note(`error: ${messageOf(error)}`);
    if (Deno.args.includes("--verbose") && error instanceof Error) {
      for (let e: unknown = error; e instanceof Error; e = e.cause) note(e.stack ?? e.message);
    }
    Deno.exit(exitCodeOf(error));
  }
}

let lastTimer = 0;

/**
 * Lets timers and signals have their turn. An immediate takes microseconds but lets signals wait for several turns; a timer
 * takes a millisecond or two and does not: one every fifth of a second is enough.
 */
export function nextTurn(): Promise<void> {
  const now = performance.now();
  if (now - lastTimer < 200) return new Promise((resolve) => setImmediate(() => resolve()));
  lastTimer = now;
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** Seconds as "0.4 s", "12 s" or "3 min 20 s". */
export function seconds(value: number): string {
  if (value < 10) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 100) return `${whole} s`;
  if (whole < 6000) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}
