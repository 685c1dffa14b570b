/**
 * Says what this machine has, what is missing and what to do about it.
 *
 *     deno task doctor
 *
 * Ends with 0 where training can run (a library is built, or can be built), else with 2.
 *
 * @module
 */

import { Context, type Device, deviceCount, libraryUrl } from "../ffi/mod.ts";
import { createCommand, EXIT, messageOf, print, runMain } from "./cli.ts";
import {
  environment,
  findCxx,
  findNvcc,
  findProgram,
  hasNvidiaDriver,
  queryNvcc,
  runProgram,
} from "./toolchain.ts";

const GIB = 2 ** 30;
const CUBLAS_VERSIONS = ["13", "12", "11"];

/** One line of the report. */
interface Finding {
  readonly name: string;
  /** ok: fine; note: not needed here; missing: something to do. */
  readonly state: "ok" | "note" | "missing";
  readonly text: string;
  /** What to do about it. */
  readonly advice?: string;
}

function denoFinding(): Finding {
  const [major = 0, minor = 0] = Deno.version.deno.split(".").map(Number);
  const text = `${Deno.version.deno} (${Deno.build.target})`;
  if (major > 2 || (major === 2 && minor >= 9)) return { name: "Deno", state: "ok", text };
  return { name: "Deno", state: "missing", text, advice: "Deno 2.9 or newer is needed: run deno upgrade" };
}

async function cxxFinding(): Promise<Finding> {
  const cxx = findCxx();
  if (cxx === undefined) {
    return {
      name: "g++",
      state: "missing",
      text: "not found",
      advice: 'install it ("apt install g++" on Debian and Ubuntu), or set CXX: it builds the CPU library',
    };
  }
  const { stdout } = await runProgram([cxx, "--version"], ".");
  return { name: "g++", state: "ok", text: `${stdout.split("\n")[0] ?? ""} (${cxx})` };
}

async function nvccFinding(): Promise<Finding> {
  const nvcc = findNvcc();
  if (nvcc === undefined) {
    const advice = hasNvidiaDriver() ? "install the CUDA toolkit 12.3 or newer, or set CUDA_HOME" : undefined;
    return {
      name: "nvcc",
      state: advice === undefined ? "note" : "missing",
      text: "not found: only the CUDA library needs it",
      ...(advice === undefined ? {} : { advice }),
    };
  }
  try {
    const { version: [major, minor] } = await queryNvcc(nvcc);
    const recent = major > 12 || (major === 12 && minor >= 3);
    return {
      name: "nvcc",
      state: recent ? "ok" : "missing",
      text: `CUDA ${major}.${minor} (${nvcc})`,
      ...(recent ? {} : { advice: "CUDA 12.3 or newer is needed" }),
    };
  } catch (error) {
    return { name: "nvcc", state: "missing", text: messageOf(error), advice: "repair the CUDA toolkit" };
  }
}

async function gpuFinding(): Promise<Finding> {
  if (!hasNvidiaDriver()) {
    return { name: "GPU", state: "note", text: "none (no NVIDIA driver): the CPU is used" };
  }
  const tool = findProgram("nvidia-smi");
  if (tool === undefined) return { name: "GPU", state: "note", text: "a driver, but no nvidia-smi to ask" };
  const query = "--query-gpu=name,compute_cap,memory.total,driver_version";
  const { code, stdout, stderr } = await runProgram([tool, query, "--format=csv,noheader"], ".");
  if (code !== 0) {
    const text = (stdout + stderr).trim().split("\n")[0] ?? "nvidia-smi fails";
    return { name: "GPU", state: "missing", text, advice: "repair or restart the NVIDIA driver" };
  }
  const gpus = stdout.trim().split("\n");
  const [name, capability, memory, driver] = (gpus[0] ?? "").split(",").map((part) => part.trim());
  const count = gpus.length > 1 ? `${gpus.length} x ` : "";
  return { name: "GPU", state: "ok", text: `${count}${name}, sm_${capability}, ${memory}, driver ${driver}` };
}

function cublasFinding(): Finding {
  const homes = [environment("CUDA_HOME"), environment("CUDA_PATH"), "/usr/local/cuda"];
  const folders = homes.filter((home) => home !== undefined).map((home) => `${home}/lib64/`);
  for (const version of CUBLAS_VERSIONS) {
    for (const folder of ["", ...folders]) {
      const path = `${folder}libcublasLt.so.${version}`;
      try {
        Deno.dlopen(path, {}).close();
        return { name: "cuBLASLt", state: "ok", text: path };
      } catch {
        // Not there: try the next.
      }
    }
  }
  if (!hasNvidiaDriver()) return { name: "cuBLASLt", state: "note", text: "not found: only a GPU needs it" };
  const advice = "install the CUDA toolkit (libcublas), or set CUDA_HOME";
  return { name: "cuBLASLt", state: "missing", text: "not found", advice };
}

function describe(device: Device): string {
  using context = new Context({ device });
  const info = context.info();
  const memory = `${(info.totalBytes / GIB).toFixed(1)} GiB`;
  if (device === "cpu") {
    return `${info.name}, ${info.units} threads, ${info.simdWidth} floats wide, ${memory}`;
  }
  return `${info.name}, sm_${info.capability.join("")}, ${info.units} multiprocessors, ${memory}`;
}

function libraryFinding(device: Device, canBuild: boolean): Finding {
  const name = device === "cpu" ? "CPU library" : "CUDA library";
  const wanted = device === "cpu" || hasNvidiaDriver();
  try {
    Deno.statSync(libraryUrl(device));
  } catch {
    if (!wanted) return { name, state: "note", text: "not built: without a GPU it is of no use" };
    const advice = canBuild
      ? "run deno task build"
      : "install the compiler named above, then run deno task build";
    return { name, state: canBuild ? "note" : "missing", text: "not built yet", advice };
  }
  try {
    const { count, reason } = deviceCount(device);
    if (count === 0) return { name, state: wanted ? "missing" : "note", text: `built; no device: ${reason}` };
    return { name, state: "ok", text: describe(device) };
  } catch (error) {
    return { name, state: "missing", text: messageOf(error), advice: "run deno task build --force" };
  }
}

async function main(): Promise<void> {
  createCommand("doctor", "Say what this machine has, what is missing and what to do about it.").parse();
  const cxx = await cxxFinding();
  const nvcc = await nvccFinding();
  const cpu = libraryFinding("cpu", cxx.state === "ok");
  const cuda = libraryFinding("cuda", nvcc.state === "ok");
  const findings = [denoFinding(), cxx, nvcc, await gpuFinding(), cublasFinding(), cpu, cuda];
  const marks = { ok: "ok", note: "-", missing: "!" };
  for (const { name, state, text, advice } of findings) {
    print(`${marks[state].padEnd(3)} ${name.padEnd(13)} ${text}`);
    if (advice !== undefined) print(`    ${"".padEnd(13)} -> ${advice}`);
  }
  const usable = cpu.state === "ok" || cuda.state === "ok";
  const buildable = cxx.state === "ok";
  print();
  if (usable) print("This machine can train: deno task train");
  else if (buildable) print("This machine can train once the library is built: deno task train builds it");
  else print("This machine cannot train yet: see the lines marked with !");
  Deno.exit(usable || buildable ? EXIT.done : EXIT.environment);
}

if (import.meta.main) await runMain(main);
