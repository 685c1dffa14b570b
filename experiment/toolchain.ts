/**
 * Finds the compilers and runs them.
 *
 * @module
 */

import { join } from "@std/path";

/** An environment variable, or undefined where it is unset or may not be read. */
export function environment(name: string): string | undefined {
  try {
    return Deno.env.get(name) || undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** The path of program `name`: as it stands where it holds a slash, else the first on PATH. Undefined where it is missing. */
export function findProgram(name: string): string | undefined {
  if (name.includes("/")) return isFile(name) ? name : undefined;
  for (const folder of (environment("PATH") ?? "").split(":")) {
    if (folder !== "" && isFile(join(folder, name))) return join(folder, name);
  }
  return undefined;
}

/** The C++ compiler: $CXX, or g++. Undefined where it is missing. */
export function findCxx(): string | undefined {
  return findProgram(environment("CXX") ?? "g++");
}

/** nvcc: $NVCC, PATH, $CUDA_HOME/bin, $CUDA_PATH/bin, then /usr/local/cuda/bin. Undefined where it is missing. */
export function findNvcc(): string | undefined {
  const named = environment("NVCC");
  if (named !== undefined) return findProgram(named);
  const homes = [environment("CUDA_HOME"), environment("CUDA_PATH"), "/usr/local/cuda"];
  const places = homes.filter((home) => home !== undefined).map((home) => join(home, "bin", "nvcc"));
  return findProgram("nvcc") ?? places.find(isFile);
}

/** Whether an NVIDIA driver is loaded: its device file is there. */
export function hasNvidiaDriver(): boolean {
  for (const path of ["/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"]) {
    try {
      Deno.statSync(path);
      return true;
    } catch {
      // Not there, or not readable: ask for the next.
    }
  }
  return false;
}

/** A program and its state on the disk: a compiler that was replaced compiles everything anew. */
export function identityOf(program: string): string {
  const { size, mtime } = Deno.statSync(program);
  return `${program} ${size} ${mtime?.getTime() ?? 0}`;
}

/** What a program that has ended left. */
export interface Outcome {
  /** Exit code; 128 + n after signal n. */
  readonly code: number;
  /** Standard output. */
  readonly stdout: string;
  /** Standard error. */
  readonly stderr: string;
}

/**
 * Runs a program to its end, in folder `cwd`.
 *
 * @param signal Aborting it ends the program.
 */
export async function runProgram(
  command: readonly string[],
  cwd: string,
  signal?: AbortSignal,
): Promise<Outcome> {
  const [program = "", ...args] = command;
  const child = new Deno.Command(program, {
    args,
    cwd,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...(signal === undefined ? {} : { signal }),
  });
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/** What nvcc can do. */
export interface CudaToolkit {
  /** Path of nvcc. */
  readonly nvcc: string;
  /** Version as [major, minor]. */
  readonly version: readonly [number, number];
  /** Architectures it generates code for: "80", "90", ... */
  readonly architectures: readonly string[];
}

/**
 * Asks nvcc for its version and architectures.
 *
 * @throws {Error} If it does not run or its answer cannot be read.
 */
export async function queryNvcc(nvcc: string): Promise<CudaToolkit> {
  const [about, codes] = await Promise.all([
    runProgram([nvcc, "--version"], "."),
    runProgram([nvcc, "--list-gpu-code"], "."),
  ]);
  const release = /release (\d+)\.(\d+)/.exec(about.stdout);
  if (about.code !== 0 || release === null) {
    throw new Error(
      `Cannot read the version of ${nvcc}: ${about.stderr.trim() || "no release in its answer"}`,
    );
  }
  const architectures = [...codes.stdout.matchAll(/\bsm_(\d+[a-z]?)\b/g)].map((match) => match[1] ?? "");
  return { nvcc, version: [Number(release[1]), Number(release[2])], architectures };
}
