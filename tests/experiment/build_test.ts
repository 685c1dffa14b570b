import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import {
  assertDone,
  assertFails,
  canRun,
  command,
  finish,
  type Result,
  ROOT,
  TINY_FLAGS,
} from "./process.ts";

/** A copy of the project's scripts with a little native library of its own, so that nothing here touches the real one. */
let root = "";

const HEADER = "#pragma once\nint twice(int x);\n";
const MAIN =
  '#include "twice.hpp"\nextern "C" __attribute__((visibility("default"))) int answer() { return twice(21); }\n';
const KERNEL = '#include "../twice.hpp"\nnamespace FA_ISA { int f(int x) { return twice(x); } }\n';

const FAKE_NVCC = `#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release $FAKE_VERSION, V$FAKE_VERSION.1"; exit 0;;
  --list-gpu-code) printf 'sm_80\\nsm_86\\nsm_89\\nsm_90\\n'; exit 0;;
esac
echo "$@" >> calls.txt
while [ $# -gt 0 ]; do
  case "$1" in
    -o) echo object > "$2";;
    -MF) echo "x.o: cuda/attention/kernel.cu" > "$2";;
  esac
  shift
done
printf '%b' "$FAKE_OUTPUT" >&2
`;

async function copyProject(): Promise<string> {
  const copy = Deno.makeTempDirSync();
  const items = ["experiment", "data", "ffi", "models", "deno.json", "deno.lock", "std.d.ts", "node_modules"];
  const runs = "--exclude=runs";
  const tar = `tar -C '${ROOT}' ${runs} -cf - ${items.join(" ")} | tar -C '${copy}' -xf -`;
  assertDone(
    await finish(new Deno.Command("bash", { args: ["-c", tar], stdout: "piped", stderr: "piped" }).spawn()),
  );
  return copy;
}

function write(path: string, text: string): void {
  const file = `${root}/${path}`;
  Deno.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true });
  Deno.writeTextFileSync(file, text);
}

function writeSources(): void {
  write("cpu/twice.hpp", HEADER);
  write("cpu/main.cpp", MAIN);
  write("cpu/twice.cpp", '#include "twice.hpp"\nint twice(int x) { return 2 * x; }\n');
  write("cpu/kernels/kernel.cpp", KERNEL);
}

async function build(flags: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Result> {
  return await finish(command("build", flags, { root, env }).spawn());
}

/** The answer of the library that is built, asked in a process of its own: a library once loaded stays as it was. */
async function answer(): Promise<string> {
  const script = `const { symbols } = Deno.dlopen("${root}/build/libflashattn_cpu.so", ` +
    `{ answer: { parameters: [], result: "i32" } }); Deno.stdout.writeSync(new TextEncoder().encode(String(symbols.answer())));`;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-config", "--allow-ffi", "-"],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  return assertDone(await finish(child, script)).stdout;
}

function buildTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `build: ${name}`, ignore: !canRun, fn });
}

if (canRun) {
  Deno.test.beforeAll(async () => {
    root = await copyProject();
  });
  Deno.test.beforeEach(writeSources);
  Deno.test.afterAll(() => Deno.removeSync(root, { recursive: true }));
}

buildTest("without a library a script says what to do", async () => {
  const child = command("train", [...TINY_FLAGS, "--run", `${root}/never`], { root }).spawn();
  assertFails(await finish(child), 2, /Cannot load build\/libflashattn_cpu\.so: run "deno task build"/);
});

buildTest("without g++ it says what to install", async () => {
  assertFails(
    await build([], { PATH: "/nowhere", CXX: "" }),
    2,
    /as g\+\+ is missing: install it \("apt install g\+\+"/,
  );
});

buildTest(
  "a library is built, found up to date, and built again after a change of what it includes",
  async () => {
    const first = assertDone(await build(["--cpu"]));
    assertMatch(first.stderr, /cpu\/kernels\/kernel\.cpp \(isa_base\)/);
    assertEquals(await answer(), "42");
    assertEquals(assertDone(await build(["--cpu", "--quiet"])).stderr, "");

    write("cpu/main.cpp", MAIN.replace("21", "4"));
    const second = assertDone(await build(["--cpu"]));
    assertMatch(second.stderr, /^\[1\/1\] cpu\/main\.cpp .*\nBuilt /);
    assertEquals(await answer(), "8");

    write("cpu/twice.hpp", HEADER + "// changed\n");
    const third = assertDone(await build(["--cpu"]));
    assertStringIncludes(third.stderr, "cpu/twice.cpp");
    assertStringIncludes(third.stderr, "isa_base");
  },
);

buildTest(
  "a source that does not compile is shown with exit code 2, and the earlier library stays",
  async () => {
    assertDone(await build(["--cpu", "--quiet"]));
    write("cpu/main.cpp", MAIN.replace("21", "missing"));
    const { code, stderr } = await build(["--cpu", "--jobs", "1"]);
    assertEquals(code, 2);
    assertMatch(stderr, /cpu\/main\.cpp:2:\d+: error: .*missing/);
    assertMatch(
      stderr,
      /\nerror: Cannot compile cpu\/main\.cpp: \S+ ended with 1, its messages are above\n$/,
    );
    assertEquals(await answer(), "42");
    writeSources();
    assertDone(await build(["--cpu", "--quiet"]));
  },
);

buildTest("an earlier library without g++ is good enough until a source changes", async () => {
  assertDone(await build(["--cpu", "--quiet"]));
  const without = { PATH: "/nowhere", CXX: "" };
  assertDone(await build(["--cpu", "--quiet"], without));
  const later = new Date(Date.now() + 5000);
  Deno.utimeSync(`${root}/cpu/main.cpp`, later, later);
  assertFails(await build(["--cpu"], without), 2, /g\+\+ is missing/);
  const lenient = assertDone(await build(["--cpu", "--needed"], without));
  assertMatch(lenient.stderr, /may be older than its sources, and g\+\+ is missing/);
});

buildTest("CUDA sources are compiled for the architectures, Hopper's for sm_90a alone", async () => {
  write("cuda/attention/kernel.cu", "");
  write("cuda/attention/wgmma_sm90a.cu", "");
  write("nvcc", FAKE_NVCC);
  Deno.chmodSync(`${root}/nvcc`, 0o755);
  const env = { NVCC: `${root}/nvcc`, FAKE_VERSION: "12.4", FAKE_OUTPUT: "" };
  const attempt = (flags: string[], more: Record<string, string> = {}): Promise<Result> =>
    build(["--cuda", "--jobs", "1", ...flags], { ...env, ...more });

  assertFails(await attempt([], { FAKE_VERSION: "12.2" }), 2, /toolkit must be 12\.3 or newer: it is 12\.2/);
  assertFails(await attempt(["--arch", "80,x"]), 1, /architecture "x"/);
  assertFails(await attempt(["--arch", "52"]), 1, /architecture 52: CUDA 12\.4 knows 80, 86, 89, 90/);

  const serial =
    "ptxas info : (C7510) wgmma.mma_async instructions are serialized in the function '_Z4slowv'\\n";
  const refused = await attempt(["--arch", "90"], { FAKE_OUTPUT: serial });
  assertEquals(refused.code, 2);
  assertMatch(refused.stderr, /cuda\/attention\/kernel\.cu: \S*slow.*: C7510/);
  const spill =
    "ptxas info : Function properties for _Z3bigv\\n 8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\\n";
  assertMatch((await attempt(["--arch", "90"], { FAKE_OUTPUT: spill })).stderr, /big.*spills registers/);
  assert(!fileExists("build/libflashattn.so"));

  Deno.removeSync(`${root}/calls.txt`);
  assertDone(await attempt(["--arch", "80,90a"]));
  const calls = Deno.readTextFileSync(`${root}/calls.txt`).trimEnd().split("\n");
  assertEquals(calls.length, 3);
  assertStringIncludes(
    calls[0] ?? "",
    "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -c cuda/attention/kernel.cu",
  );
  assertStringIncludes(
    calls[1] ?? "",
    "-gencode arch=compute_90a,code=sm_90a -c cuda/attention/wgmma_sm90a.cu",
  );
  assertMatch(
    calls[2] ?? "",
    /-shared -cudart static .*--version-script=cuda\/exports\.map -o build\/libflashattn\.so\.part /,
  );
  assert(fileExists("build/libflashattn.so"));

  // Code of sm_80 runs on sm_86 and sm_89: only the attention kernels are compiled for each.
  write("cuda/plain.cu", "");
  Deno.removeSync(`${root}/calls.txt`);
  assertDone(await attempt(["--arch", "80,86,90"]));
  const plain = Deno.readTextFileSync(`${root}/calls.txt`).split("\n").find((call) =>
    call.includes("-c cuda/plain.cu")
  );
  assertStringIncludes(plain ?? "", "code=sm_80 -gencode arch=compute_90,code=sm_90 -c");
  assert(!(plain ?? "").includes("sm_86"));
});

buildTest("--cuda without nvcc says what to install", async () => {
  write("cuda/attention/kernel.cu", "");
  assertFails(
    await build(["--cuda"], { NVCC: "/nowhere/nvcc" }),
    2,
    /as nvcc is missing: install the CUDA toolkit 12\.3/,
  );
});

function fileExists(path: string): boolean {
  try {
    return Deno.statSync(`${root}/${path}`).isFile;
  } catch {
    return false;
  }
}
