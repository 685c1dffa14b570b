import { assert, assertEquals, assertInstanceOf, assertMatch, assertThrows } from "@std/assert";
import {
  add,
  Arena,
  ATTENTION_FORMS,
  attentionForward,
  Context,
  copy,
  copyRows,
  type DType,
  gemm,
  NativeError,
  OutOfMemoryError,
  type Tensor,
  topk,
} from "../../ffi/mod.ts";
import { fromBfloat16, toBfloat16 } from "../../ffi/dtype.ts";
import { openTestContext } from "../context.ts";

const floats = (n: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: n }, (_, i) => (i % 7) - 3);

Deno.test("Context.info() describes the device", () => {
  using context = openTestContext();
  const info = context.info();
  assert(info.name.length > 0);
  assert(info.units >= 1);
  assert(info.totalBytes > info.freeBytes && info.freeBytes > 0);
  assertEquals(context.device === "cuda", info.capability[0] >= 8);
});

Deno.test("Context refuses a device that is not there", () => {
  const { device } = openTestContextAndClose();
  assertThrows(() => new Context({ device, index: 4096 }), RangeError, "Cannot open device 4096");
  assertThrows(() => new Context({ device, index: -1 }), RangeError);
});

function openTestContextAndClose(): Context {
  const context = openTestContext();
  context[Symbol.dispose]();
  return context;
}

Deno.test("Context is of no use after disposal, and disposing twice does nothing", () => {
  const context = openTestContextAndClose();
  context[Symbol.dispose]();
  assertThrows(() => context.synchronize(), ReferenceError, "after it is disposed of");
  assertThrows(() => new Arena(context).tensor([1]), ReferenceError);
});

Deno.test("Context.settled() waits without blocking", async () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = arena.zeros([1024], "f32");
  await context.settled();
  assertEquals(x.floats().length, 1024);
});

Deno.test("Arena gives back what it took", () => {
  using context = openTestContext();
  const before = context.liveBytes;
  {
    using arena = new Arena(context, { chunkBytes: 4096 });
    arena.tensor([100, 100], "f32");
    arena.tensor([3], "f32");
    assert(context.liveBytes >= before + 40_000);
    arena[Symbol.dispose]();
    arena[Symbol.dispose]();
  }
  assertEquals(context.liveBytes, before);
});

Deno.test("Arena.reset() hands out the same addresses again and ends the old tensors", () => {
  using context = openTestContext();
  using arena = new Arena(context, { chunkBytes: 1 << 16 });
  const first = [arena.tensor([5], "f32"), arena.tensor([1 << 15], "f32"), arena.tensor([7], "i32")];
  const addresses = first.map((tensor) => tensor.address);
  arena.reset();
  for (const tensor of first) assertThrows(() => tensor.address, ReferenceError, "after its arena was reset");
  const second = [arena.tensor([5], "f32"), arena.tensor([1 << 15], "f32"), arena.tensor([7], "i32")];
  assertEquals(second.map((tensor) => tensor.address), addresses);
});

Deno.test("Arena.rewind() ends only what came after the mark", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const kept = arena.from(floats(3), [3], "f32");
  const mark = arena.mark();
  const dropped = arena.tensor([4], "f32");
  const view = dropped.slice(0, 2);
  arena.rewind(mark);
  assertEquals([...kept.floats()], [-3, -2, -1]);
  assertThrows(() => dropped.address, ReferenceError);
  assertThrows(() => view.floats(), ReferenceError);
});

Deno.test("Arena refuses sizes that are none, and memory that is not there", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  assertThrows(() => arena.tensor([2, -1], "f32"), RangeError, "[2,-1]");
  assertThrows(() => arena.tensor([1.5], "f32"), RangeError);
  assertThrows(() => arena.tensor([NaN], "f32"), RangeError);
  assertThrows(() => arena.tensor([2 ** 30, 2 ** 30], "f32"), RangeError);
  const error = assertThrows(
    () => arena.tensor([2 ** 44], "f32"),
    OutOfMemoryError,
    "Cannot complete fa_alloc",
  );
  assertInstanceOf(error, NativeError);
  assertEquals(error.symbol, "fa_alloc");
  assertEquals(context.liveBytes, 0);
  assertEquals(arena.from(floats(2), [2], "f32").floats().length, 2); // the context is still of use
});

for (const dtype of ["f32", "bf16", "f16"] as const satisfies readonly DType[]) {
  Deno.test(`Tensor of ${dtype} returns what was written`, () => {
    using context = openTestContext();
    using arena = new Arena(context);
    const tensor = arena.from(floats(35), [5, 7], dtype);
    assertEquals(tensor.floats(), floats(35));
    assertEquals([...tensor.slice(1, 2).floats()], [...floats(35).subarray(7, 21)]);
    assertEquals([...tensor.columnSlice(2, 3).slice(4, 1).floats()], [...floats(35).subarray(30, 33)]);
    assertEquals(tensor.columnSlice(5, 2).floats().length, 10);
    assertEquals([...tensor.reshape(7, 5).slice(6, 1).floats()], [...floats(35).subarray(30)]);
  });
}

Deno.test("Tensor checks shapes, types and bounds", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const tensor = arena.from(floats(6), [2, 3], "f32");
  assertThrows(() => tensor.write(floats(5)), RangeError, "Cannot write 5 elements");
  assertThrows(() => tensor.write(new Int32Array(6)), TypeError, "takes a Float32Array");
  assertThrows(() => tensor.slice(1, 2), RangeError);
  assertThrows(() => tensor.slice(-1, 1), RangeError);
  assertThrows(() => tensor.columnSlice(2, 2), RangeError);
  assertThrows(() => tensor.columnSlice(0, 2).reshape(4), TypeError);
  assertThrows(() => tensor.reshape(5), RangeError);
  assertThrows(() => tensor.ints(), TypeError);
  assertEquals(arena.tensor([0, 3], "f32").floats().length, 0);
});

Deno.test("kernels refuse what does not fit, with the reason", () => {
  using context = openTestContext();
  using other = openTestContext();
  using arena = new Arena(context);
  using elsewhere = new Arena(other);
  const of = (...shape: number[]): Tensor => arena.zeros(shape);
  assertThrows(
    () => gemm({ a: of(2, 8), b: of(16, 8), c: of(2, 8) }),
    RangeError,
    "Cannot multiply [2,8] by [16,8]",
  );
  assertThrows(
    () => gemm({ a: of(2, 8), b: of(8, 8), c: of(2, 8), bias: of(9) }),
    RangeError,
    "bias must hold 8 elements",
  );
  assertThrows(() => add(of(8), of(8), elsewhere.zeros([8])), TypeError, "different contexts");
  assertThrows(
    () => topk(arena.zeros([1, 9], "f32"), arena.zeros([1, 9], "i32"), of(1, 8), 8),
    RangeError,
    "k 9",
  );
  const i32 = arena.zeros([2], "i32");
  for (const form of ATTENTION_FORMS) {
    const inputs = { form, heads: 1, offsetsQ: i32, offsetsK: i32, maxQ: 1, maxK: 1 };
    const odd = of(1, 12);
    assertThrows(
      () => attentionForward({ ...inputs, q: odd, k: odd, v: odd }, arena),
      RangeError,
      "multiple of 8",
    );
    const [q, k] = [of(1, 16), of(1, 8)];
    assertThrows(() => attentionForward({ ...inputs, q, k, v: q }, arena), RangeError, "k must be [1,16]");
    assertThrows(
      () => attentionForward({ ...inputs, q, k: q, v: q, maxQ: -1 }, arena),
      RangeError,
      "maxQ must be a whole number",
    );
    for (const scale of [-1, NaN, Infinity]) {
      assertThrows(
        () => attentionForward({ ...inputs, q, k: q, v: q, scale }, arena),
        RangeError,
        "scale must be",
      );
    }
  }
});

Deno.test("copy() moves every byte of a large tensor, and no more", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const rows = 4_300_001; // several parts of what threads or blocks share, the last one short
  const values = Int32Array.from({ length: rows }, (_, i) => Math.imul(i, 2_654_435_761));
  const to = arena.from(new Int32Array(rows + 2).fill(7), [rows + 2], "i32");
  copy(to.slice(0, rows), arena.from(values, [rows], "i32"));
  const copied = to.ints();
  assertEquals(copied.findIndex((value, i) => value !== (values[i] ?? 7)), -1);
});

Deno.test("copyRows() skips indexes outside the tensors", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const src = arena.from(floats(8), [4, 2], "f32");
  const dst = arena.zeros([3, 2], "f32");
  const srcIndex = arena.from(Int32Array.of(3, -1, 0, 4, 1), [5], "i32");
  const dstIndex = arena.from(Int32Array.of(0, 1, 7, 2, 2), [5], "i32");
  copyRows(dst, src, { srcIndex, dstIndex });
  assertEquals([...dst.floats()], [3, -3, 0, 0, -1, 0]);
});

Deno.test("a graph runs what was recorded, on what its memory holds then", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = arena.from(floats(8), [8], context.dtype);
  const total = arena.zeros([8]);
  using graph = context.capture(() => add(total, total, x));
  assertEquals([...total.floats()], Array(8).fill(0)); // recording runs nothing
  graph.launch();
  x.write(Float32Array.from(floats(8), (value) => 10 * value));
  graph.launch();
  assertEquals([...total.floats()], [...floats(8)].map((value) => 11 * value));
});

Deno.test("an error while recording leaves the context usable", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = arena.zeros([8]);
  assertThrows(
    () =>
      context.capture(() => {
        add(x, x, x);
        x.floats(); // a download waits: not possible in a graph
      }),
    NativeError,
    "fa_download",
  );
  add(x, x, x);
  assertEquals(x.floats().length, 8);
  assertThrows(
    () =>
      context.capture(() => {
        throw new Error("of the caller");
      }),
    Error,
    "of the caller",
  );
  using graph = context.capture(() => add(x, x, x));
  graph.launch();
});

Deno.test("Graph and Event throw after disposal", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = arena.zeros([8]);
  const graph = context.capture(() => add(x, x, x));
  graph[Symbol.dispose]();
  graph[Symbol.dispose]();
  assertThrows(() => graph.launch(), ReferenceError);
  const event = context.event();
  event[Symbol.dispose]();
  assertThrows(() => event.record(), ReferenceError);
});

Deno.test("Event measures time that passes", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const x = arena.zeros([1 << 20], "f32");
  using start = context.event();
  using end = context.event();
  start.record();
  x.fill(1);
  end.record();
  assert(end.millisecondsSince(start) >= 0);
  assert(start.millisecondsSince(start) === 0);
});

Deno.test("toBfloat16() rounds to nearest even and keeps NaN and infinities", () => {
  const values = Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, -0, NaN, Infinity, -Infinity, 3.4e38);
  const back = [...fromBfloat16(toBfloat16(values))];
  assertEquals(back, [1, 1, 1 + 2 ** -6, -0, NaN, Infinity, -Infinity, Infinity]);
});

Deno.test("NativeError tells the function and what it said", () => {
  using context = openTestContext();
  const error = assertThrows(() => context.check("fa_gemm", 1 as never), NativeError);
  assertMatch(error.message, /^Cannot complete fa_gemm: /);
});
