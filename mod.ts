/**
 * Attention and translation from TypeScript: three attention forms in one native library, the Transformer and its training
 * around them, and the data side of translation.
 *
 * Three rooms, each a module of its own:
 * - `ffi/mod.ts`: devices, memory and checked kernels. A {@linkcode Context} is a device, an {@linkcode Arena} owns
 *   {@linkcode Tensor}s, {@linkcode attentionForward} and {@linkcode attentionBackward} run any form by name.
 * - `models/mod.ts`: the {@linkcode Transformer}, its {@linkcode Trainer}, {@linkcode greedy} and {@linkcode beamSearch}.
 * - `data/mod.ts`: corpora, byte-pair encoding, batches, BLEU and chrF; pure TypeScript.
 *
 * Letters, the same everywhere: B sequences in a batch, H heads, D head dimension, N query length, M key length (L where
 * they are equal), R packed rows, C model width, V vocabulary.
 *
 * The native library must be built first: `deno task build`.
 *
 * @example Attention over two packed sequences of 3 and 5 tokens
 * ```ts
 * import { Arena, attentionForward, Context } from "./mod.ts";
 *
 * using context = new Context();
 * using arena = new Arena(context);
 * const values = Float32Array.from({ length: 8 * 3 * 64 }, (_, i) => Math.sin(i));
 * const qkv = arena.from(values, [8, 3 * 64], context.dtype); // 8 rows, one head of 64
 * const offsets = arena.from(Int32Array.of(0, 3, 8), [3], "i32");
 * const { out } = attentionForward({
 *   form: "imp_flash_attn",
 *   q: qkv.columnSlice(0, 64),
 *   k: qkv.columnSlice(64, 64),
 *   v: qkv.columnSlice(128, 64),
 *   heads: 1,
 *   offsetsQ: offsets,
 *   offsetsK: offsets,
 *   maxQ: 5,
 *   maxK: 5,
 *   causal: true,
 * }, arena);
 * console.log(out.floats().length); // 512
 * ```
 *
 * @module
 */

export * from "./data/mod.ts";
export * from "./ffi/mod.ts";
export * from "./models/mod.ts";
/** What training needs of a batch; the batches of {@linkcode Batcher} are such. */
export type { Batch } from "./models/mod.ts";
/** A batch with what the data side knows besides. */
export type { Batch as CorpusBatch } from "./data/mod.ts";
