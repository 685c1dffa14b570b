// deno-lint-ignore-file no-non-null-assertion -- indexes within bounds by construction
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertLess,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { sweepFigure, trainingFigure } from "../../bench/plot.ts";
import { largestError, sampleHead } from "../../bench/reference.ts";
import { attentionFlops, table } from "../../bench/results.ts";
import { charts, ticks } from "../../bench/svg.ts";
import { quantile, Stopwatch } from "../../bench/timing.ts";
import { openTestContext, testDevice } from "../context.ts";

/** A head of small numbers without a pattern. */
function head(L: number, D: number, causal: boolean): Parameters<typeof sampleHead>[0] {
  const draw = (factor: number): Float64Array =>
    Float64Array.from({ length: L * D }, (_, i) => Math.sin(factor * (i + 1)));
  return { L, D, causal, q: draw(1.3), k: draw(2.7), v: draw(0.9), dout: draw(3.1) };
}

/** sum(out * dout) of attention written straight from its definition, over all rows. */
function objective({ L, D, causal, q, k, v, dout }: Parameters<typeof sampleHead>[0]): number {
  let total = 0;
  for (let i = 0; i < L; i++) {
    const weights = Array.from({ length: L }, (_, j) => {
      let score = 0;
      for (let d = 0; d < D; d++) score += q[i * D + d]! * k[j * D + d]!;
      return causal && j > i ? 0 : Math.exp(score / Math.sqrt(D));
    });
    const sum = weights.reduce((a, b) => a + b);
    for (let j = 0; j < L; j++) {
      for (let d = 0; d < D; d++) total += (weights[j]! / sum) * v[j * D + d]! * dout[i * D + d]!;
    }
  }
  return total;
}

for (const causal of [false, true]) {
  Deno.test(`sampleHead() gives the finite differences of the definition, causal ${causal}`, () => {
    const [L, D, rows] = [7, 3, [0, 4, 6]];
    const problem = head(L, D, causal);
    const sample = sampleHead(problem, rows, "all");
    assertEquals(sampleHead(problem, rows, "dq").dq, sample.dq);
    assertEquals(sampleHead(problem, rows, "out").out, sample.out);
    const eps = 1e-6;
    for (const [name, gradient] of [["q", sample.dq], ["k", sample.dk], ["v", sample.dv]] as const) {
      rows.forEach((row, index) => {
        for (let d = 0; d < D; d++) {
          const nudged = (by: number): number => {
            const values = Float64Array.from(problem[name]);
            values[row * D + d] = values[row * D + d]! + by;
            return objective({ ...problem, [name]: values });
          };
          assertAlmostEquals(gradient[index * D + d]!, (nudged(eps) - nudged(-eps)) / (2 * eps), 1e-7);
        }
      });
    }
  });
}

Deno.test("largestError() takes what was never written for an error without bound", () => {
  const expected = Float64Array.of(1, 2, 3, 4);
  assertEquals(largestError(Float32Array.of(1, 2, 0, 0, 3, 4.5), expected, [0, 2], 2), 0.5);
  assertEquals(largestError(Float32Array.of(1, NaN, 0, 0, 3, 4), expected, [0, 2], 2), Infinity);
});

Deno.test("attentionFlops() counts as the FlashAttention papers do", () => {
  const shape = { B: 32, H: 8, L: 1000, D: 64, causal: false, pass: "forward" } as const;
  assertEquals(attentionFlops(shape), 65.536e9);
  assertEquals(attentionFlops({ ...shape, causal: true, pass: "backward" }), 81.92e9);
});

Deno.test("quantile() picks the middle and the ends", () => {
  assertEquals([0, 0.5, 1].map((share) => quantile([1, 2, 3, 4, 9], share)), [1, 3, 9]);
});

Deno.test("Stopwatch times what it is asked for, and stops at its box", () => {
  using context = openTestContext();
  using stopwatch = new Stopwatch(context);
  let calls = 0;
  const timing = stopwatch.time(() => calls++, { repetitions: 7, boxSeconds: 0 });
  assertEquals([timing.count, timing.boxed], [7, false]);
  assert(calls > 7);
  assertLess(timing.low, timing.high + 1e-9);
  const wait = (): void => {
    for (const end = performance.now() + 2; performance.now() < end;);
  };
  const boxed = stopwatch.time(wait, { repetitions: 1_000_000, boxSeconds: 0.02 });
  assert(boxed.boxed && boxed.count >= 3 && boxed.count < 1_000_000);
});

Deno.test("ticks() are round and inside", () => {
  assertEquals(ticks(0, 2000, 5), [0, 500, 1000, 1500, 2000]);
  assertEquals(ticks(0, 0.35, 6), [0, 0.1, 0.2, 0.3]);
});

Deno.test("charts() draws valid points only and escapes names", () => {
  const series = [{ name: "a < b & c", points: [[1, 2], [2, NaN], [3, 4]] as const }];
  const svg = charts("t", [{ title: "p", x: "x", y: "y", series, log: true }]);
  assertStringIncludes(svg, "a &lt; b &amp; c");
  assert(!svg.includes("NaN"));
});

Deno.test("sweepFigure() has a line for each form in each panel", () => {
  const rows = ["dotscale", "imp_flash_attn"].flatMap((attn) =>
    ["200", "400"].map((L) => ({
      attn,
      pass: "forward",
      causal: "false",
      L,
      ms: `${Number(L) / 100}`,
      gflops: "1000",
    }))
  );
  const svg = sweepFigure(rows, "Sweep");
  assertEquals(svg.match(/<path d="M[\d.]+ [\d.]+L/g)?.length, 4); // two forms, in milliseconds and in TFLOP/s
});

Deno.test("trainingFigure() leaves out what was not measured", () => {
  const rows = [
    { step: "1", train_loss: "5", dev_loss: "4", dev_bleu: "", tokens_per_second: "10" },
    { step: "2", train_loss: "3", dev_loss: "2", dev_bleu: "7", tokens_per_second: "10" },
  ];
  assert(!trainingFigure(new Map([["run", rows]]), "Training").includes("NaN"));
});

Deno.test("table() pads columns", () => {
  assertEquals(table(["a", "bb"], [["xyz", "1"]]), "a    bb\n---  --\nxyz   1");
});

const canRun = Deno.permissions.querySync({ name: "run" }).state === "granted" &&
  Deno.permissions.querySync({ name: "write" }).state === "granted";

async function bench(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const command = ["run", "--allow-ffi", "--allow-read", "--allow-write", "bench/bench.ts", ...args];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: command,
    cwd: new URL("../../", import.meta.url),
  }).output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

const SMALL = ["--batch", "2", "--heads", "3", "--dim", "16", "--epochs", "3", "--device", testDevice()];

Deno.test({
  name: "bench prints one checked row for each form, pass and mask",
  ignore: !canRun,
  fn: async () => {
    const csv = await Deno.makeTempFile({ suffix: ".csv" });
    const args = [
      "--seq_len",
      "37",
      "--shortest",
      "3",
      "--mask",
      "both",
      "--pass",
      "both",
      "--json",
      "--csv",
      csv,
    ];
    const { code, stdout, stderr } = await bench(...SMALL, ...args);
    assertEquals(code, 0, stderr);
    const rows: { attn: string; L: number; ms: number; max_error: number }[] = JSON.parse(stdout);
    assertEquals(rows.length, 12);
    assert(rows.every((row) => row.L === 37 && row.ms > 0 && row.max_error < 0.1));
    assertMatch(
      await Deno.readTextFile(csv),
      /^# .*\n# B=2 H=3 D=16 .* of 3 to L tokens .*\n# deno task bench .*\nattn,pass,causal,B,H,L,D,ms/,
    );
    await Deno.remove(csv);
  },
});

Deno.test({
  name: "bench refuses a form that does not exist, and peers without a GPU",
  ignore: !canRun,
  fn: async () => {
    const unknown = await bench("--attn", "flash");
    assertEquals(unknown.code, 1);
    assertStringIncludes(unknown.stderr, "imp_flash_attn");
    assertEquals(unknown.stderr.trim().split("\n").length, 1);
    const shortest = await bench("--seq_len", "37", "--shortest", "38");
    assertEquals(shortest.code, 1);
    assertStringIncludes(shortest.stderr, "--shortest");
    const peers = await bench("--peers", "--device", "cpu");
    assertEquals(peers.code, 1);
    assertStringIncludes(peers.stderr, "need a GPU");
  },
});
