/**
 * Running the scripts as processes, with the permissions that the tasks of deno.json give them.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import config from "../../deno.json" with { type: "json" };

/** Whether this test run may start processes, read and write. */
export const canRun = (["run", "read", "write"] as const).every((name) =>
  Deno.permissions.querySync({ name }).state === "granted"
);

/** The repository's root. */
export const ROOT = new URL("../../", import.meta.url).pathname;

/** What a process left. */
export interface Result {
  /** Its exit code. */
  readonly code: number;
  /** Standard output. */
  readonly stdout: string;
  /** Standard error. */
  readonly stderr: string;
}

/** Where and how a script runs. */
export interface RunOptions {
  /** Standard input. */
  readonly stdin?: string | Uint8Array;
  /** Environment variables beside those of this process. */
  readonly env?: Readonly<Record<string, string>>;
  /** The root of the project's copy to run in; default: this one. */
  readonly root?: string;
}

/** The arguments of `deno` that a task runs its script with: permission flags and the script's path. */
function taskArguments(task: keyof typeof config.tasks): string[] {
  const command = config.tasks[task].command.split("&&").at(-1)?.trim() ?? "";
  return command.split(" ").slice(1);
}

/** The command that a task runs, its build left out. */
export function command(
  task: keyof typeof config.tasks,
  args: readonly string[],
  options: RunOptions = {},
): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: [...taskArguments(task), ...args],
    cwd: options.root ?? ROOT,
    env: { NO_COLOR: "1", ...options.env },
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  });
}

/** Runs a task's script to its end. */
export async function run(
  task: keyof typeof config.tasks,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Result> {
  return await finish(command(task, args, options).spawn(), options.stdin);
}

/** Feeds a process and waits for its end. */
export async function finish(child: Deno.ChildProcess, stdin?: string | Uint8Array): Promise<Result> {
  if (stdin !== undefined) {
    const writer = child.stdin.getWriter();
    try {
      await writer.write(typeof stdin === "string" ? new TextEncoder().encode(stdin) : stdin);
      await writer.close();
    } catch {
      // It ended without reading all: its exit code and messages tell why.
    }
  }
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/** A failure as users shall see it: the exit code, and one line that matches. */
export function assertFails(result: Result, code: number, message: RegExp): void {
  assertMatch(result.stderr, message);
  assertEquals(result.code, code, result.stderr);
  const lines = result.stderr.trim().split("\n");
  assertEquals(lines.length, 1, result.stderr);
  assertMatch(lines[0] ?? "", /^error: /);
}

/** A run that must succeed. */
export function assertDone(result: Result): Result {
  assertEquals(result.code, 0, result.stderr + result.stdout);
  return result;
}

const NUMBERS = [["one", "一"], ["two", "两"], ["three", "三"], ["four", "四"], ["five", "五"]] as const;
const THINGS = [["book", "本书"], ["cat", "只猫"], ["car", "辆车"], ["cup", "个杯子"]] as const;
const WHO = [["I have", "我有"], ["you see", "你看见"], ["they buy", "他们买"]] as const;

/** Sixty little pairs in a fixed mixed order, as lines of a .tsv file. */
export function pairLines(): string[] {
  const lines: string[] = [];
  for (const [number, numeral] of NUMBERS) {
    for (const [thing, measured] of THINGS) {
      for (const [who, subject] of WHO) {
        lines.push(`${who} ${number} ${thing}\t${subject}${numeral}${measured}\n`);
      }
    }
  }
  return lines.map((_, i) => lines[(i * 23) % lines.length] ?? "");
}

/** Writes a data folder of these pairs: 44 for training, 8 dev, 8 test. */
export function writeData(folder: string): void {
  Deno.mkdirSync(folder, { recursive: true });
  const lines = pairLines();
  Deno.writeTextFileSync(`${folder}/train.tsv`, lines.slice(0, 44).join(""));
  Deno.writeTextFileSync(`${folder}/dev.tsv`, lines.slice(44, 52).join(""));
  Deno.writeTextFileSync(`${folder}/test.tsv`, lines.slice(52).join(""));
}

/** Flags of a model so small that an epoch takes no time. */
export const TINY_FLAGS: readonly string[] = (
  "--vocab-size 320 --d-model 16 --heads 2 --ff 32 --encoder-layers 1 --decoder-layers 1 --batch-tokens 150 " +
  "--lr 0.01 --warmup 10 --epochs 2 --beam 2 --max-len 12 --device cpu"
).split(" ");
