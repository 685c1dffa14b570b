import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  add,
  Arena,
  type Context,
  gemm,
  NativeError,
  OutOfMemoryError,
  sum,
  type Tensor,
} from "../../ffi/mod.ts";
import { StructWriter } from "../../ffi/_arguments.ts";
import { openTestContext } from "../context.ts";

const [INVALID, UNSUPPORTED, STATE] = [1, 2, 6];
const GEMM_BYTES = 104;
const ATTENTION_BYTES = 256;
const N = null;

/** A valid call for every element-wise function, but for what `change` replaces. */
interface Call {
  p: Tensor; // one tensor for all inputs
  out: Tensor; // must stay as it is
  rng: Tensor;
  dtype: number;
}

type Thunk = (context: Context, call: Call) => number;

/** Calls that have one wrong argument each. */
const WRONG: readonly (readonly [string, Thunk])[] = [
  ["fa_memset NULL", ({ symbols: s, handle: h }) => s.fa_memset(h, N, 0, 4n)],
  ["fa_memset negative", ({ symbols: s, handle: h }, c) => s.fa_memset(h, c.out.pointer, 0, -1n)],
  ["fa_copy NULL", ({ symbols: s, handle: h }, c) => s.fa_copy(h, c.out.pointer, N, 4n)],
  [
    "fa_copy_rows row_bytes",
    ({ symbols: s, handle: h }, c) =>
      s.fa_copy_rows(h, c.out.pointer, 32n, 1, N, c.p.pointer, 32n, 1, N, 1, 3),
  ],
  [
    "fa_copy_rows stride",
    ({ symbols: s, handle: h }, c) =>
      s.fa_copy_rows(h, c.out.pointer, 4n, 1, N, c.p.pointer, 32n, 1, N, 1, 8),
  ],
  ["fa_cast dtype", ({ symbols: s, handle: h }, c) => s.fa_cast(h, c.out.pointer, 3, c.p.pointer, 0, 8n)],
  ["fa_cast n", ({ symbols: s, handle: h }, c) => s.fa_cast(h, c.out.pointer, 0, c.p.pointer, 0, -8n)],
  [
    "fa_embedding_forward ids",
    ({ symbols: s, handle: h }, c) =>
      s.fa_embedding_forward(h, c.out.pointer, N, N, c.p.pointer, N, 2, 8, 2, 0, 1, 0, N, 0, c.dtype),
  ],
  ["fa_embedding_forward rng", ({ symbols: s, handle: h }, c) =>
    s.fa_embedding_forward(
      ...[h, c.out.pointer, c.p.pointer, N, c.p.pointer, N, 2, 8, 2, 0, 1, 0.5, N, 0, c.dtype] as const,
    )],
  ["fa_residual_norm_forward gamma", ({ symbols: s, handle: h }, c) => {
    const x = c.p.pointer;
    return s.fa_residual_norm_forward(h, N, c.out.pointer, x, x, x, N, N, x, 1, 8, 1e-5, 0, N, 0, c.dtype);
  }],
  ["fa_residual_norm_forward sum", ({ symbols: s, handle: h }, c) => {
    const x = c.p.pointer;
    return s.fa_residual_norm_forward(h, N, c.out.pointer, x, x, x, x, x, x, 1, 8, 1e-5, 0, N, 0, c.dtype);
  }],
  [
    "fa_bias_relu_dropout_forward rows",
    ({ symbols: s, handle: h }, c) =>
      s.fa_bias_relu_dropout_forward(h, c.out.pointer, c.p.pointer, N, -1, 8, 0, N, 0, c.dtype),
  ],
  [
    "fa_dropout p",
    ({ symbols: s, handle: h }, c) =>
      s.fa_dropout(h, c.out.pointer, c.p.pointer, 8n, 1, c.rng.pointer, 0, c.dtype),
  ],
  [
    "fa_dropout NaN",
    ({ symbols: s, handle: h }, c) =>
      s.fa_dropout(h, c.out.pointer, c.p.pointer, 8n, NaN, c.rng.pointer, 0, c.dtype),
  ],
  ["fa_add NULL", ({ symbols: s, handle: h }, c) => s.fa_add(h, c.out.pointer, N, c.p.pointer, 8n, c.dtype)],
  [
    "fa_add dtype",
    ({ symbols: s, handle: h }, c) => s.fa_add(h, c.out.pointer, c.p.pointer, c.p.pointer, 8n, 9),
  ],
  [
    "fa_column_sum stride",
    ({ symbols: s, handle: h }, c) =>
      s.fa_column_sum(h, c.out.pointer, c.p.pointer, 1, 8, 7n, c.dtype, 0, c.p.pointer, 1n << 20n),
  ],
  [
    "fa_column_sum workspace",
    ({ symbols: s, handle: h }, c) =>
      s.fa_column_sum(h, c.out.pointer, c.p.pointer, 8, 8, 8n, c.dtype, 0, N, -1n),
  ],
  [
    "fa_sum NULL",
    ({ symbols: s, handle: h }, c) => s.fa_sum(h, c.out.pointer, N, 8n, 0, c.p.pointer, 1n << 20n),
  ],
  ["fa_cross_entropy V", ({ symbols: s, handle: h }, c) => {
    const x = c.p.pointer;
    return s.fa_cross_entropy(h, x, x, N, c.out.pointer, x, 1, 0, 8n, 0, 0, x, 1, c.dtype);
  }],
  ["fa_cross_entropy smoothing", ({ symbols: s, handle: h }, c) => {
    const x = c.p.pointer;
    return s.fa_cross_entropy(h, x, x, N, c.out.pointer, x, 1, 8, 8n, -0.1, 0, x, 1, c.dtype);
  }],
  ["fa_cross_entropy grad_scale", ({ symbols: s, handle: h }, c) => {
    const x = c.p.pointer;
    return s.fa_cross_entropy(h, x, x, N, c.out.pointer, x, 1, 8, 8n, 0, 0, N, 1, c.dtype);
  }],
  [
    "fa_topk k",
    ({ symbols: s, handle: h }, c) =>
      s.fa_topk(h, c.out.pointer, c.out.pointer, c.p.pointer, 1, 8, 8n, 9, c.dtype),
  ],
  [
    "fa_topk k",
    ({ symbols: s, handle: h }, c) =>
      s.fa_topk(h, c.out.pointer, c.out.pointer, c.p.pointer, 1, 8, 8n, 0, c.dtype),
  ],
  ["fa_random_uniform NULL", ({ symbols: s, handle: h }) => s.fa_random_uniform(h, N, 8n, 0, 1, 0n, 0)],
  [
    "fa_grad_norm n",
    ({ symbols: s, handle: h }, c) =>
      s.fa_grad_norm(h, c.out.pointer, c.p.pointer, -1n, 1, c.p.pointer, 1n << 20n),
  ],
  ["fa_adam hyper", ({ symbols: s, handle: h }, c) => {
    const x = c.out.pointer;
    return s.fa_adam(h, x, x, x, x, c.p.pointer, 8n, N, N, 0.9, 0.9, 1e-9, 0, c.dtype);
  }],
  ["fa_gemm NULL", ({ symbols: s, handle: h }, c) => s.fa_gemm(h, gemmArgs(c, { a: null }))],
  ["fa_gemm m", ({ symbols: s, handle: h }, c) => s.fa_gemm(h, gemmArgs(c, { m: -1 }))],
  ["fa_gemm lda", ({ symbols: s, handle: h }, c) => s.fa_gemm(h, gemmArgs(c, { lda: 7 }))],
  ["fa_gemm epilogue", ({ symbols: s, handle: h }, c) => s.fa_gemm(h, gemmArgs(c, { epilogue: 4 }))],
  ["fa_gemm bias", ({ symbols: s, handle: h }, c) => s.fa_gemm(h, gemmArgs(c, { epilogue: 1 }))],
  [
    "fa_attention_forward D",
    ({ symbols: s, handle: h }, c) => s.fa_attention_forward(h, attentionArgs(c, 12, 0)),
  ],
  [
    "fa_attention_forward form",
    ({ symbols: s, handle: h }, c) => s.fa_attention_forward(h, attentionArgs(c, 8, 3)),
  ],
  [
    "fa_attention_forward NULL",
    ({ symbols: s, handle: h }, c) => s.fa_attention_forward(h, attentionArgs(c, 8, 1)),
  ],
  [
    "fa_attention_backward NULL",
    ({ symbols: s, handle: h }, c) => s.fa_attention_backward(h, attentionArgs(c, 8, 2)),
  ],
];

/** An 8 x 8 x 8 product of `p` with itself, but for what `change` replaces. */
function gemmArgs(
  { p, out, dtype }: Call,
  change: { a?: null; m?: number; lda?: number; epilogue?: number },
): Uint8Array<ArrayBuffer> {
  return new StructWriter(GEMM_BYTES)
    .pointers(change.a === null ? null : p, p, out, null, null)
    .longs(change.lda ?? 8, 8, 8)
    .ints(change.m ?? 8, 8, 8, 0, 0, dtype, dtype, change.epilogue ?? 0)
    .floats(1, 0).bytes;
}

/** Attention of 8 rows that gives q and out, but no keys. */
function attentionArgs({ p, out, dtype }: Call, D: number, form: number): Uint8Array<ArrayBuffer> {
  return new StructWriter(ATTENTION_BYTES)
    .pointers(p, null, p, out, p, p, p, null, null, p, p, p, p, null, null)
    .longs(D, D, D, D, D, D, D, D, 0, 0)
    .ints(8, 8, 8, 8, 1, 1, D, form, dtype, 0, 0, 0)
    .floats(1, 0).bytes;
}

function prepare(context: Context, arena: Arena): Call {
  return {
    p: arena.zeros([64]),
    out: arena.tensor([64]).fill(0x3c),
    rng: arena.from(new BigUint64Array([1n, 2n]), [2], "u64"),
    dtype: context.dtype === "f32" ? 0 : 1,
  };
}

Deno.test("a wrong argument is an error with a message, and nothing is written", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const call = prepare(context, arena);
  const before = call.out.floats();
  for (const [name, run] of WRONG) {
    const status = run(context, call);
    assertEquals(status, INVALID, name);
    const symbol = name.split(" ")[0] ?? name;
    const error = assertThrows(() => context.check(symbol, status), NativeError);
    assert(/Cannot .+/.test(error.message), `${name}: ${error.message}`);
    assertEquals(call.out.floats(), before, name);
  }
  add(call.out, call.p, call.p); // the context works on
  assertEquals([...call.out.floats()], new Array(64).fill(0));
});

Deno.test("every function answers a NULL context by its status", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const call = prepare(context, arena);
  const none = { symbols: context.symbols, handle: null } as unknown as Context;
  for (const [name, run] of WRONG) assertEquals(run(none, call), INVALID, name);
  context.symbols.fa_ctx_destroy(null);
});

Deno.test("a type of the other device is refused as unsupported, or computed", () => {
  using context = openTestContext();
  if (context.device !== "cpu") return;
  using arena = new Arena(context);
  const { p, out } = prepare(context, arena);
  const { symbols, handle } = context;
  assertEquals<number>(symbols.fa_add(handle, out.pointer, p.pointer, p.pointer, 8n, 1), UNSUPPORTED);
  assertEquals<number>(symbols.fa_gemm(handle, gemmArgs({ p, out, rng: p, dtype: 2 }, {})), UNSUPPORTED);
});

Deno.test("empty operations need no data", () => {
  using context = openTestContext();
  const { symbols: s, handle: h } = context;
  const dtype = context.dtype === "f32" ? 0 : 1;
  assertEquals<number>(s.fa_memset(h, N, 0, 0n), 0);
  assertEquals<number>(s.fa_copy(h, N, N, 0n), 0);
  assertEquals<number>(s.fa_add(h, N, N, N, 0n, dtype), 0);
  assertEquals<number>(s.fa_dropout(h, N, N, 0n, 0, N, 0, dtype), 0);
  assertEquals<number>(s.fa_adam(h, N, N, N, N, N, 0n, N, N, 0.9, 0.9, 0, 0, dtype), 0);
  assertEquals<number>(s.fa_random_uniform(h, N, 0n, 0, 1, 0n, 0), 0);
  assertEquals<number>(s.fa_free(h, N), 0);
});

Deno.test("memory: absurd sizes, foreign pointers and double frees are errors", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const { symbols: s, handle: h } = context;
  const out = new BigUint64Array([7n]);
  const refused = s.fa_alloc(h, 1n << 60n, out);
  assertThrows(() => context.check("fa_alloc", refused), OutOfMemoryError);
  assertEquals(out[0], 0n);
  assertEquals<number>(s.fa_alloc(h, -1n, out), INVALID);
  assertEquals<number>(s.fa_free(h, Deno.UnsafePointer.create(arena.tensor([64]).address + 16n)), INVALID);
  assertEquals<number>(s.fa_alloc(h, 100n, out), 0);
  assertEquals((out[0] ?? 1n) % 256n, 0n);
  assertEquals<number>(s.fa_free(h, Deno.UnsafePointer.create(out[0] ?? 0n)), 0);
  assertEquals<number>(s.fa_free(h, Deno.UnsafePointer.create(out[0] ?? 0n)), INVALID);
});

Deno.test("what waits or allocates is refused while recording", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const { p } = prepare(context, arena);
  const { symbols: s, handle: h } = context;
  const out = new BigUint64Array(1);
  const attempts: (readonly [string, () => number])[] = [
    ["fa_alloc", () => s.fa_alloc(h, 256n, out)],
    ["fa_synchronize", () => s.fa_synchronize(h)],
    ["fa_upload", () => s.fa_upload(h, p.pointer, new Uint8Array(8), 8n)],
    ["fa_download", () => s.fa_download(h, new Uint8Array(8), p.pointer, 8n)],
    ["fa_graph_begin", () => s.fa_graph_begin(h)],
  ];
  for (const [name, attempt] of attempts) {
    assertEquals<number>(s.fa_graph_begin(h), 0, name);
    assertEquals(attempt(), STATE, name);
    assertEquals<number>(s.fa_graph_end(h, out), STATE, `${name}: the graph is spoilt`);
    assertEquals(out[0], 0n);
  }
  assertEquals<number>(s.fa_graph_end(h, out), STATE, "no graph was begun");
});

Deno.test("a graph of products and sums gives bit for bit what the calls give", () => {
  using context = openTestContext();
  using arena = new Arena(context);
  const n = 96;
  const values = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i) / 8);
  const a = arena.from(values, [n, n], context.dtype);
  const [c, total] = [arena.zeros([n, n], "f32"), arena.zeros([1], "f32")];
  const calls = (): void => {
    gemm({ a, b: a, c, transB: true, beta: 1 });
    sum(total, c.reshape(n * n), true);
  };
  calls();
  calls();
  const expected = [c.floats(), total.floats()];
  c.fill(0);
  total.fill(0);
  using graph = context.capture(calls);
  graph.launch();
  graph.launch();
  assertEquals([c.floats(), total.floats()], expected);
});
