import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { EnvironmentError, UsageError } from "../../experiment/cli.ts";
import {
  type CheckpointContent,
  expectTensors,
  expectTokenizer,
  openCheckpoint,
  readMoments,
  readWeights,
  saveCheckpoint,
  writeFileSafely,
} from "../../experiment/checkpoint.ts";
import { resolveConfig } from "../../experiment/config.ts";
import { type NamedTensor, readSafetensors, writeSafetensors } from "../../experiment/safetensors.ts";

const granted = (name: "read" | "write"): boolean => Deno.permissions.querySync({ name }).state === "granted";
const ignore = !granted("read") || !granted("write");

function tensors(seed: number): NamedTensor[] {
  const make = (name: string, shape: number[]): NamedTensor => {
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    return { name, shape, data: data.map((_, i) => Math.fround(Math.sin(i * 7 + seed))) };
  };
  return [make("encoder.0.w", [5, 3]), make("名前", [7]), make("empty", [0, 4]), make("scalar", [])];
}

function content(step: number, seed = 0): CheckpointContent {
  return {
    weights: tensors(seed),
    moments: tensors(seed + 1).map((t) => ({ ...t, name: `m.${t.name}` })),
    state: {
      step,
      epoch: 1,
      batch: 3,
      lossSum: 0.1 + 0.2,
      lossTokens: 17,
      seconds: 1.5,
      epochSeconds: 0.5,
      epochTokens: 40,
      bestBleu: 12.345678901234567,
      bestEpoch: 1,
      stalled: 0,
    },
    config: resolveConfig(),
    tokenizer: "a".repeat(64),
  };
}

/** Runs `body` in a folder of its own. */
function inFolder(body: (folder: string) => void): void {
  const folder = Deno.makeTempDirSync();
  try {
    body(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test({
  name: "safetensors: a file read back equals what was written",
  ignore,
  fn: () =>
    inFolder((folder) => {
      const path = `${folder}/x.safetensors`;
      const seal = writeSafetensors(path, tensors(0), { note: "x" });
      assertEquals([...readSafetensors(path, seal).values()], tensors(0));
      // The layout is that of the format: the header's length, then JSON, the first tensor at the data's start.
      const bytes = Deno.readFileSync(path);
      const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
      const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
      assertEquals(header["encoder.0.w"], { dtype: "F32", shape: [5, 3], data_offsets: [0, 60] });
      assertEquals(header.__metadata__, { note: "x" });
      assertEquals(length % 8, 0);
      assertEquals(new DataView(bytes.buffer).getFloat32(8 + length + 4, true), Math.fround(Math.sin(7)));
    }),
});

Deno.test({
  name: "safetensors: every truncation is one clear line",
  ignore,
  fn: () =>
    inFolder((folder) => {
      const path = `${folder}/x.safetensors`;
      writeSafetensors(path, tensors(0));
      const whole = Deno.readFileSync(path);
      for (let length = 0; length < whole.length; length += 3) {
        Deno.writeFileSync(path, whole.subarray(0, length));
        const error = assertThrows(
          () => readSafetensors(path),
          SyntaxError,
          `Cannot read checkpoint file ${path} as`,
        );
        assertEquals(error.message.includes("\n"), false);
      }
    }),
});

Deno.test({
  name: "safetensors: damage to header or data is one clear line",
  ignore,
  fn: () =>
    inFolder((folder) => {
      const path = `${folder}/x.safetensors`;
      const seal = writeSafetensors(path, tensors(0));
      const whole = Deno.readFileSync(path);
      for (const place of [0, 5, 7, 8, 9, 30, 60, whole.length - 1]) {
        const damaged = whole.slice();
        damaged[place] = (damaged[place] ?? 0) ^ 0xff;
        Deno.writeFileSync(path, damaged);
        assertThrows(() => readSafetensors(path, seal), SyntaxError, path);
      }
      Deno.writeFileSync(path, new Uint8Array([...whole, 0]));
      assertThrows(() => readSafetensors(path), SyntaxError, "follow its last tensor");
      const overlong = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}';
      Deno.writeFileSync(
        path,
        new Uint8Array([overlong.length, 0, 0, 0, 0, 0, 0, 0, ...new TextEncoder().encode(overlong)]),
      );
      assertThrows(() => readSafetensors(path), SyntaxError, "tensor a has 4 bytes");
    }),
});

Deno.test({
  name: "a checkpoint comes back as it was saved",
  ignore,
  fn: () =>
    inFolder((run) => {
      const saved = content(12);
      saveCheckpoint(run, saved, true);
      const found = openCheckpoint(run);
      assertEquals(found.state, saved.state);
      assertEquals(found.config, saved.config);
      assertEquals(found.run, Deno.realPathSync(run));
      assertEquals([...readWeights(found).values()], saved.weights);
      assertEquals([...readMoments(found).values()], saved.moments);
    }),
});

Deno.test({
  name: "last and best move on, and older checkpoints go",
  ignore,
  fn: () =>
    inFolder((run) => {
      saveCheckpoint(run, content(1), false);
      saveCheckpoint(run, content(2), true);
      saveCheckpoint(run, content(3), false);
      saveCheckpoint(run, content(4), false);
      saveCheckpoint(run, content(4, 9), false);
      assertEquals(openCheckpoint(`${run}/best`).state.step, 2);
      assertEquals(openCheckpoint(`${run}/last`).state.step, 4);
      assertEquals(
        [...readWeights(openCheckpoint(`${run}/last`)).values()],
        tensors(9),
        "the second of step 4",
      );
      const names = [...Deno.readDirSync(`${run}/checkpoints`)].map((entry) => entry.name).sort();
      assertEquals(names, ["step-00000002", "step-00000004-2"]);
    }),
});

Deno.test({
  name: "a checkpoint that cannot be written leaves the earlier one as it was",
  ignore,
  fn: () =>
    inFolder((run) => {
      saveCheckpoint(run, content(1), true);
      // Writing fails in the middle: a tensor whose shape does not fit is refused after the first file is open.
      const broken: CheckpointContent = {
        ...content(2),
        moments: [{ name: "m.x", shape: [3], data: new Float32Array(2) }],
      };
      assertThrows(
        () => saveCheckpoint(run, broken, true),
        EnvironmentError,
        "the earlier checkpoints are as they were",
      );
      assertEquals(openCheckpoint(`${run}/last`).state.step, 1);
      readMoments(openCheckpoint(`${run}/best`));
      assertEquals([...Deno.readDirSync(`${run}/checkpoints`)].length, 1);
    }),
});

Deno.test({
  name: "a folder that cannot be written is one clear line",
  ignore,
  fn: () =>
    inFolder((folder) => {
      Deno.writeTextFileSync(`${folder}/file`, "");
      const error = assertThrows(() => saveCheckpoint(`${folder}/file`, content(1), false), EnvironmentError);
      assertStringIncludes(
        error.message,
        `Cannot write checkpoint ${folder}/file/checkpoints/step-00000001 as `,
      );
      assertThrows(() => writeFileSafely(`${folder}/file/x`, "x"), EnvironmentError, `${folder}/file/x`);
    }),
});

Deno.test({
  name: "a missing, damaged or foreign checkpoint is one clear line",
  ignore,
  fn: () =>
    inFolder((run) => {
      assertThrows(() => openCheckpoint(`${run}/nowhere`), UsageError, "no such folder");
      assertThrows(() => openCheckpoint(run), UsageError, "no checkpoint is in it");
      saveCheckpoint(run, content(1), true);
      const found = openCheckpoint(run);
      assertThrows(() => expectTokenizer(found, "b".repeat(64)), UsageError, "another vocabulary");
      expectTokenizer(found, "a".repeat(64));
      Deno.truncateSync(`${found.folder}/model.safetensors`, 100);
      assertThrows(() => readWeights(found), SyntaxError, "truncated: 100 bytes of");
      Deno.removeSync(`${found.folder}/optimizer.safetensors`);
      assertThrows(() => readMoments(found), UsageError, "optimizer.safetensors is missing");
      const state = `${found.folder}/state.json`;
      const text = Deno.readTextFileSync(state);
      for (
        const damaged of ["", text.slice(0, 50), "[]", text.replace('"version": 1', '"version": 9'), "{}"]
      ) {
        Deno.writeTextFileSync(state, damaged);
        assertThrows(
          () => openCheckpoint(run),
          SyntaxError,
          `Cannot read checkpoint file ${Deno.realPathSync(state)} as`,
        );
      }
      Deno.removeSync(found.folder, { recursive: true });
      assertThrows(() => openCheckpoint(`${run}/best`), UsageError);
    }),
});

Deno.test("expectTensors() names the tensor that does not fit", () => {
  const found = new Map(tensors(0).map((t) => [t.name, t]));
  expectTensors(found, tensors(1), "x");
  const [first, ...rest] = tensors(1);
  assertThrows(() => expectTensors(found, rest, "x"), RangeError, "the model has no tensor encoder.0.w");
  assertThrows(
    () => expectTensors(found, [{ name: "other", shape: [] }, ...rest], "x"),
    RangeError,
    "tensor other is missing",
  );
  assertThrows(
    () => expectTensors(found, [{ name: first?.name ?? "", shape: [3, 5] }, ...rest], "x"),
    RangeError,
    "tensor encoder.0.w must have shape [3, 5]: current value is [5, 3]",
  );
});
