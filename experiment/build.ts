/**
 * Builds the native libraries: build/libflashattn_cpu.so from cpu/ with g++, and build/libflashattn.so from cuda/ with nvcc.
 *
 *     deno task build [--cpu] [--cuda] [--arch 80,90a] [--jobs N] [--force] [--quiet]
 *
 * One object per source and variant lies in build/obj, with its command (.cmd) and the files it read (.d) beside it: it is
 * compiled again when either has changed. Every output is written aside and renamed, so that a build that fails or is
 * interrupted leaves the earlier library as it was.
 *
 * @module
 */

import { basename, join, relative } from "@std/path";
import {
  createCommand,
  EnvironmentError,
  EXIT,
  integer,
  note,
  noteRaw,
  runMain,
  seconds,
  UsageError,
} from "./cli.ts";
import { Progress } from "./progress.ts";
import { kernelFaults, withoutResourceLines } from "./ptxas.ts";
import {
  type CudaToolkit,
  findCxx,
  findNvcc,
  findProgram,
  hasNvidiaDriver,
  identityOf,
  queryNvcc,
  runProgram,
} from "./toolchain.ts";

const ROOT = join(import.meta.dirname ?? ".", "..");
const OBJECTS = "build/obj";
const ARCHITECTURES = ["80", "86", "89", "90"];
const OLDEST_TOOLKIT = "12.3";
const EXPORTS = "cuda/exports.map"; // the symbols that leave libflashattn.so

// errno and traps are of no use to the kernels and keep loops from being vectorised; sums keep their order.
const CXX_FLAGS = "-std=c++17 -O3 -fopenmp -fPIC -fvisibility=hidden -Wall -Wextra -fno-math-errno " +
  "-fno-trapping-math -ffp-contract=fast";
const NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v --expt-relaxed-constexpr";

// cpu/kernels is compiled once per instruction set and dispatched at run time.
const ISA_FLAGS: Readonly<Record<string, string>> = Deno.build.arch === "x86_64"
  ? {
    isa_v4: "-DFA_ISA=isa_v4 -march=x86-64-v4 -mprefer-vector-width=512",
    isa_v3: "-DFA_ISA=isa_v3 -march=x86-64-v3",
    isa_base: "-DFA_ISA=isa_base",
  }
  : { isa_base: "-DFA_ISA=isa_base" };

/** One source to compile. */
interface Unit {
  readonly source: string;
  /** Instruction set or architecture, for the progress lines; "" where there is one variant only. */
  readonly variant: string;
  readonly object: string;
  /** The compiler and its flags; input and output are added. */
  readonly command: readonly string[];
  /** Names the compiler's own state, so that a new compiler builds anew. */
  readonly identity: string;
}

/** One library to link. */
interface Library {
  readonly path: string;
  readonly units: readonly Unit[];
  readonly link: readonly string[];
  /** Files beside the objects that the link command reads. */
  readonly inputs: readonly string[];
}

/** Options of a build. */
interface BuildOptions {
  readonly jobs: number;
  readonly force: boolean;
  readonly quiet: boolean;
}

function words(text: string): string[] {
  return text.split(" ").filter((word) => word !== "");
}

/** Files under `folder` whose name ends in `extension`, relative to the root, sorted. */
function sourcesIn(folder: string, extension: string, recursive: boolean): string[] {
  const found: string[] = [];
  let entries: Deno.DirEntry[] = [];
  try {
    entries = [...Deno.readDirSync(join(ROOT, folder))];
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  for (const entry of entries) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory && recursive) found.push(...sourcesIn(path, extension, true));
    if (entry.isFile && entry.name.endsWith(extension)) found.push(path);
  }
  return found.sort();
}

function objectName(source: string, variant: string): string {
  return `${OBJECTS}/${source.replaceAll("/", "-")}${variant === "" ? "" : `.${variant}`}.o`;
}

function cpuLibrary(cxx: string): Library {
  const identity = identityOf(cxx);
  const unit = (source: string, variant: string, flags: string): Unit => ({
    source,
    variant,
    object: objectName(source, variant),
    command: [cxx, ...words(CXX_FLAGS), ...words(flags)],
    identity,
  });
  const units = sourcesIn("cpu", ".cpp", false).map((source) => unit(source, "", ""));
  for (const source of sourcesIn("cpu/kernels", ".cpp", false)) {
    for (const [isa, flags] of Object.entries(ISA_FLAGS)) units.push(unit(source, isa, flags));
  }
  return { path: "build/libflashattn_cpu.so", units, link: [cxx, "-shared", "-fopenmp"], inputs: [] };
}

function cudaLibrary(toolkit: CudaToolkit, architectures: readonly string[]): Library {
  const identity = identityOf(toolkit.nvcc);
  const wanted = [...new Set(architectures.map((name) => name.replace(/a$/, "")))];
  const redundant = new Set(wanted.includes("80") ? ["86", "89"] : []);
  const generate = (names: readonly string[]): string[] =>
    names.flatMap((name) => ["-gencode", `arch=compute_${name},code=sm_${name}`]);
  const units = sourcesIn("cuda", ".cu", true).map((source): Unit => {
    const hopper = source.endsWith("_sm90a.cu");
    // Code of sm_80 runs on all of generation 8: only the attention kernels gain from being compiled for each.
    const known = source.startsWith("cuda/attention/")
      ? wanted
      : wanted.filter((name) => !redundant.has(name));
    return {
      source,
      variant: "",
      object: objectName(source, ""),
      command: [toolkit.nvcc, ...words(NVCC_FLAGS), ...generate(hopper ? ["90a"] : known)],
      identity,
    };
  });
  const link = [toolkit.nvcc, "-shared", "-cudart", "static", "-Xlinker", `--version-script=${EXPORTS}`];
  return { path: "build/libflashattn.so", units, link, inputs: [EXPORTS] };
}

/** Modification times, each file looked up once. 0: the file is missing. */
class Times {
  readonly #known = new Map<string, number>();

  of(path: string): number {
    let time = this.#known.get(path);
    if (time === undefined) {
      try {
        time = Deno.statSync(join(ROOT, path)).mtime?.getTime() ?? 0;
      } catch {
        time = 0;
      }
      this.#known.set(path, time);
    }
    return time;
  }
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(join(ROOT, path));
  } catch {
    return undefined;
  }
}

/** The files that a dependency file of g++ or nvcc names. Relative to the root, as the compilers run there. */
function dependencies(text: string): string[] {
  const list = text.replaceAll("\\\n", " ").replace(/^[^:]*:\s/, "");
  return list.split(/(?<!\\)\s+/).filter((path) => path !== "").map((path) => path.replaceAll("\\ ", " "))
    .map((path) => path.startsWith("/") ? relative(ROOT, path) : path);
}

function commandText(unit: Unit): string {
  return `${unit.identity}\n${unit.command.join(" ")}\n`;
}

function isCurrent(unit: Unit, times: Times): boolean {
  const made = times.of(unit.object);
  if (made === 0 || readText(`${unit.object}.cmd`) !== commandText(unit)) return false;
  const listed = readText(`${unit.object}.d`);
  return listed !== undefined && dependencies(listed).every((path) => {
    const time = times.of(path);
    return time !== 0 && time <= made;
  });
}

function linkText(library: Library): string {
  return `${[...library.link, ...library.units.map((unit) => unit.object)].join(" ")}\n`;
}

function isLinked(library: Library, times: Times): boolean {
  const made = times.of(library.path);
  return made !== 0 && readText(`${OBJECTS}/${basename(library.path)}.cmd`) === linkText(library) &&
    [...library.inputs, ...library.units.map((unit) => unit.object)].every((path) => times.of(path) <= made);
}

async function demangle(symbol: string): Promise<string> {
  const tool = findProgram("cu++filt") ?? findProgram("c++filt");
  if (tool === undefined || symbol === "") return symbol || "a kernel";
  const { code, stdout } = await runProgram([tool, symbol], ROOT);
  return code === 0 ? stdout.trim() : symbol;
}

async function reportFaults(unit: Unit, output: string): Promise<void> {
  const faults = kernelFaults(output, unit.source.startsWith("cuda/attention/"));
  if (faults.length === 0) return;
  for (const fault of faults) note(`${unit.source}: ${await demangle(fault.symbol)}: ${fault.reason}`);
  throw new EnvironmentError(
    `Cannot accept ${unit.source} as ${faults.length} kernel report${
      faults.length > 1 ? "s" : ""
    } of ptxas ` +
      "above would cost its speed: serialised wgmma, ignored setmaxnreg or spilled registers",
  );
}

async function compile(unit: Unit, signal: AbortSignal): Promise<void> {
  const aside = `${unit.object}.part`;
  const started = new Date();
  const command = [
    ...unit.command,
    ...["-c", unit.source, "-o", aside, "-MD", "-MF", `${aside}.d`],
  ];
  const { code, stdout, stderr } = await runProgram(command, ROOT, signal);
  if (signal.aborted) return;
  const output = stdout + stderr;
  noteRaw(withoutResourceLines(output));
  if (code !== 0) {
    const old = /bad value.*-march|-march=.*bad value/.test(output) ? " (g++ 11 or newer is needed)" : "";
    const variant = unit.variant === "" ? "" : ` (${unit.variant})`;
    const program = basename(unit.command[0] ?? "");
    throw new EnvironmentError(
      `Cannot compile ${unit.source}${variant}: ${program} ended with ${code}, its messages are above${old}`,
    );
  }
  Deno.writeTextFileSync(join(ROOT, `${unit.object}.log`), output);
  await reportFaults(unit, output);
  // The time at which the compiler began, so that a source saved meanwhile counts as newer.
  Deno.utimeSync(join(ROOT, aside), started, started);
  Deno.renameSync(join(ROOT, `${aside}.d`), join(ROOT, `${unit.object}.d`));
  Deno.renameSync(join(ROOT, aside), join(ROOT, unit.object));
  // Last, so that an interruption here leaves an object that counts as out of date.
  Deno.writeTextFileSync(join(ROOT, `${unit.object}.cmd`), commandText(unit));
}

/** Compiles what is not current, `options.jobs` at a time. The first failure ends the others. */
async function compileAll(units: readonly Unit[], options: BuildOptions): Promise<void> {
  const progress = new Progress("build", units.length);
  const abort = new AbortController();
  const queue = [...units];
  let done = 0;
  const worker = async (): Promise<void> => {
    for (let unit = queue.shift(); unit !== undefined && !abort.signal.aborted; unit = queue.shift()) {
      const label = `${unit.source}${unit.variant === "" ? "" : ` (${unit.variant})`}`;
      const start = performance.now();
      progress.update(done, label);
      await compile(unit, abort.signal);
      done++;
      progress.clear();
      if (!progress.live) {
        note(`[${done}/${units.length}] ${label}  ${seconds((performance.now() - start) / 1000)}`);
      }
      progress.update(done);
    }
  };
  const workers = Array.from({ length: Math.min(options.jobs, units.length) }, worker);
  try {
    await Promise.all(workers);
  } finally {
    queue.length = 0;
    abort.abort();
    await Promise.allSettled(workers);
    progress.clear();
  }
}

async function link(library: Library): Promise<void> {
  const aside = `${library.path}.part`;
  const started = new Date();
  const objects = library.units.map((unit) => unit.object);
  const extra = Deno.build.os === "linux" ? ["-ldl", "-lpthread"] : [];
  const command = [...library.link, "-o", aside, ...objects, ...extra];
  const { code, stdout, stderr } = await runProgram(command, ROOT);
  noteRaw(stdout + stderr);
  if (code !== 0) {
    throw new EnvironmentError(
      `Cannot link ${library.path}: the linker ended with ${code}, its messages are above`,
    );
  }
  Deno.utimeSync(join(ROOT, aside), started, started);
  Deno.renameSync(join(ROOT, aside), join(ROOT, library.path));
  Deno.writeTextFileSync(join(ROOT, `${OBJECTS}/${basename(library.path)}.cmd`), linkText(library));
}

/** Brings one library up to date. @returns Whether there was anything to do. */
async function buildLibrary(library: Library, options: BuildOptions): Promise<boolean> {
  if (library.units.length === 0) {
    throw new EnvironmentError(`Cannot build ${library.path}: no source is in ${join(ROOT, "cpu")}`);
  }
  const stale = (times: Times): Unit[] =>
    library.units.filter((unit) => options.force || !isCurrent(unit, times));
  const current = (): boolean => {
    const times = new Times();
    return !options.force && library.units.every((unit) => isCurrent(unit, times)) &&
      isLinked(library, times);
  };
  if (current()) return false;
  Deno.mkdirSync(join(ROOT, OBJECTS), { recursive: true });
  using lock = Deno.openSync(join(ROOT, OBJECTS, ".lock"), { create: true, write: true });
  if (!lock.tryLockSync(true)) {
    note("Another build is running: waiting for it.");
    lock.lockSync(true);
  }
  // Another build may have done the work while this one waited.
  if (current()) return false;
  const start = performance.now();
  const units = stale(new Times());
  await compileAll(units, options);
  await link(library);
  note(`Built ${library.path} in ${seconds((performance.now() - start) / 1000)}.`);
  return true;
}

function architecturesOf(text: string): string[] {
  const names = text.split(",").map((name) => name.trim().replace(/^(sm|compute)_/, ""));
  const wrong = names.find((name) => !/^\d{2,3}a?$/.test(name));
  if (wrong !== undefined) {
    throw new UsageError(`Cannot build for architecture "${wrong}": --arch takes names such as 80,86,89,90a`);
  }
  return names;
}

/** The architectures that the present CUDA library was built for. Undefined where there is none. */
function builtArchitectures(): string[] | undefined {
  const text = readText(`${OBJECTS}/architectures`);
  return text === undefined ? undefined : words(text.trim());
}

async function planCuda(nvcc: string, wanted: readonly string[], explicit: boolean): Promise<Library> {
  const toolkit = await queryNvcc(nvcc);
  const [major, minor] = toolkit.version;
  const [needMajor = 0, needMinor = 0] = OLDEST_TOOLKIT.split(".").map(Number);
  if (major < needMajor || (major === needMajor && minor < needMinor)) {
    throw new EnvironmentError(
      `Cannot build for CUDA with ${nvcc} as the toolkit must be ${OLDEST_TOOLKIT} or newer: it is ${major}.${minor}`,
    );
  }
  const known = wanted.filter((name) => toolkit.architectures.includes(name.replace(/a$/, "")));
  const unknown = wanted.filter((name) => !known.includes(name));
  if (known.length === 0 || (explicit && unknown.length > 0)) {
    throw new UsageError(
      `Cannot build for architecture ${unknown.join(", ")}: CUDA ${major}.${minor} knows ${
        toolkit.architectures.join(", ")
      }`,
    );
  }
  return cudaLibrary(toolkit, known);
}

/** A library without its compiler is good enough where nothing has changed since it was built. */
function isNewerThan(library: string, sources: readonly string[]): boolean {
  const times = new Times();
  const made = times.of(library);
  return made !== 0 && sources.every((source) => times.of(source) <= made);
}

/** Without a compiler: whether the CPU library that lies there is good enough. */
function makesDo(needed: boolean): boolean {
  const path = "build/libflashattn_cpu.so";
  const sources = [...sourcesIn("cpu", "", true), "cuda/flashattn.h"];
  if (isNewerThan(path, sources)) return true;
  if (!needed) return false;
  // A machine that only runs what was built elsewhere: copying may have made the sources newer.
  const there = new Times().of(path) !== 0;
  if (there) note(`${path} may be older than its sources, and g++ is missing: it is used as it is.`);
  return there || (hasNvidiaDriver() && new Times().of("build/libflashattn.so") !== 0);
}

/** @param needed Whether only what a script cannot do without is asked for. */
async function buildCpu(options: BuildOptions, needed: boolean): Promise<void> {
  const cxx = findCxx();
  if (cxx === undefined) {
    if (!options.force && makesDo(needed)) return;
    throw new EnvironmentError(
      'Cannot build build/libflashattn_cpu.so as g++ is missing: install it ("apt install g++" on Debian and Ubuntu, ' +
        '"dnf install gcc-c++" on Fedora) or set CXX',
    );
  }
  const built = await buildLibrary(cpuLibrary(cxx), options);
  if (!built && !options.quiet) note("build/libflashattn_cpu.so is up to date.");
}

interface CudaWishes {
  readonly arch: string | undefined;
  /** --cuda was given: what is missing is an error. */
  readonly demanded: boolean;
  /** --needed was given: build only where a GPU is. */
  readonly needed: boolean;
}

async function buildCuda(options: BuildOptions, wishes: CudaWishes): Promise<void> {
  if (wishes.needed && !hasNvidiaDriver()) return;
  const nvcc = findNvcc();
  if (nvcc === undefined || sourcesIn("cuda", ".cu", true).length === 0) {
    if (wishes.demanded) {
      throw new EnvironmentError(
        `Cannot build build/libflashattn.so as nvcc is missing: install the CUDA toolkit ${OLDEST_TOOLKIT} or newer, ` +
          "or set CUDA_HOME to where it is",
      );
    }
    if (!options.quiet) note("No nvcc: build/libflashattn.so is left as it is.");
    return;
  }
  const explicit = wishes.arch === undefined ? undefined : architecturesOf(wishes.arch);
  const wanted = explicit ?? (wishes.needed ? builtArchitectures() : undefined) ?? ARCHITECTURES;
  const library = await planCuda(nvcc, wanted, explicit !== undefined);
  const built = await buildLibrary(library, options);
  if (built) Deno.writeTextFileSync(join(ROOT, OBJECTS, "architectures"), wanted.join(" ") + "\n");
  else if (!options.quiet) note("build/libflashattn.so is up to date.");
}

/**
 * Builds what this machine needs and is not up to date: the CPU library, and the CUDA library where a GPU is. Says nothing
 * when there is nothing to do.
 *
 * @throws {EnvironmentError} If a compiler is missing or fails.
 */
export async function buildNeeded(): Promise<void> {
  const options: BuildOptions = { jobs: navigator.hardwareConcurrency, force: false, quiet: true };
  await buildCpu(options, true);
  await buildCuda(options, { arch: undefined, demanded: false, needed: true });
}

function stopOnSignal(): void {
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    Deno.addSignalListener(signal, () => Deno.exit(code));
  }
}

async function main(): Promise<void> {
  const command = createCommand("build", "Build the native libraries that are not up to date.")
    .option("--cpu", "only the CPU library (g++)")
    .option("--cuda", "only the CUDA library (nvcc)")
    .option("--needed", "the CPU library, and the CUDA library where this machine has a GPU")
    .option("--arch <list>", `GPU architectures, such as 80,90a (default: ${ARCHITECTURES.join(",")})`)
    .option("-j, --jobs <n>", "compilers at a time (default: one per core)", integer(1))
    .option("--force", "build anew what is up to date as well")
    .option("--quiet", "say nothing when everything is up to date")
    .parse();
  const given = command.opts();
  if (given.cpu === true && given.arch !== undefined) {
    throw new UsageError("Cannot combine --cpu with --arch");
  }
  const options: BuildOptions = {
    jobs: given.jobs ?? navigator.hardwareConcurrency,
    force: given.force === true,
    quiet: given.quiet === true,
  };
  stopOnSignal();
  const both = given.cpu === given.cuda;
  if (given.cpu === true || both) await buildCpu(options, given.needed === true);
  if (given.cuda === true || both) {
    await buildCuda(options, {
      arch: given.arch,
      demanded: given.cuda === true && given.cpu !== true,
      needed: given.needed === true,
    });
  }
}

if (import.meta.main) {
  await runMain(main);
  Deno.exit(EXIT.done);
}
