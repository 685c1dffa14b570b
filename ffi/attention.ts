/**
 * The three attention forms behind one interface.
 *
 * @module
 */

import {
  type Dropout,
  dropoutArguments,
  dtypeCode,
  expectContext,
  expectMatrix,
  expectSize,
  expectType,
  StructWriter,
} from "./_arguments.ts";
import type { Arena } from "./arena.ts";
import type { Tensor } from "./tensor.ts";

const ATTENTION_ARGS_BYTES = 256;

/** The attention forms, by the C enumeration. */
export const ATTENTION_FORMS = ["dotscale", "flash_attn", "imp_flash_attn"] as const;

/** Name of an attention form. */
export type AttentionForm = (typeof ATTENTION_FORMS)[number];

/** Inputs of attention over B sequences of packed rows. */
export interface AttentionInputs {
  /** Which algorithm. */
  form: AttentionForm;
  /** Queries [rowsQ, H * D]; may be columns of a wider matrix. */
  q: Tensor;
  /** Keys [rowsK, H * D]. */
  k: Tensor;
  /** Values [rowsK, H * D]. */
  v: Tensor;
  /** H. D is the number of columns over H: a multiple of 8 up to 128. */
  heads: number;
  /** i32 [B + 1]: where each sequence's queries begin, and the end. */
  offsetsQ: Tensor;
  /** i32 [B + 1]: the same for keys. */
  offsetsK: Tensor;
  /** i32 [B]: how many of a sequence's keys count; all where absent. */
  keyLengths?: Tensor | null;
  /** At least the longest query sequence. */
  maxQ: number;
  /** At least the longest key sequence. */
  maxK: number;
  /** Query i sees keys j <= i + M - N. Default false. */
  causal?: boolean;
  /** Factor of the scores, finite and not negative; default 1 / sqrt(D). */
  scale?: number;
  /** Dropout of the probabilities. */
  dropout?: Dropout | null;
  /** Make the backward pass the same bit for bit on a GPU. Default false. */
  deterministic?: boolean;
}

/** What the forward pass gives. */
export interface AttentionOutputs {
  /** [rowsQ, H * D]. */
  out: Tensor;
  /** f32 [H, rowsQ]: log-sum-exp of the scores, natural. */
  lse: Tensor;
  /** What dotscale keeps for its backward pass; null for the others. */
  saved: Tensor | null;
}

/** Gradients that the backward pass writes, shaped as q, k and v. */
export interface AttentionGradients {
  /** Gradient of q. */
  dq: Tensor;
  /** Gradient of k. */
  dk: Tensor;
  /** Gradient of v. */
  dv: Tensor;
}

/** Workspace and saved sizes, in bytes. */
export interface AttentionSizes {
  /** Scratch of the forward pass. */
  forward: number;
  /** What the forward pass keeps for the backward pass. */
  saved: number;
  /** Scratch of the backward pass. */
  backward: number;
}

/** Device memory that the passes need beside inputs and outputs. */
export function attentionSizes(inputs: AttentionInputs): AttentionSizes {
  validate(inputs, {});
  return sizesOf(inputs);
}

/**
 * softmax(q kᵀ scale + mask) v.
 *
 * `dotscale` is Vaswani et al. 2017 section 3.2.1, pass by pass; `flash_attn` FlashAttention (Dao et al. 2022, Algorithm 1);
 * `imp_flash_attn` FlashAttention-2 (Dao 2023, Algorithm 1), on Hopper with the means of FlashAttention-3 (Shah et al. 2024).
 * A query without a key, and a row of no sequence, gives 0 and lse -inf.
 *
 * @param inputs Queries, keys, values, lengths and options.
 * @param arena Owner of the outputs.
 * @param out Where to write instead, [rowsQ, H * D].
 * @throws {RangeError} If shapes, D or dropout are out of range.
 * @throws {TypeError} If types do not fit.
 */
export function attentionForward(inputs: AttentionInputs, arena: Arena, out?: Tensor): AttentionOutputs {
  const { q, heads } = inputs;
  const { context } = q;
  validate(inputs, out === undefined ? {} : { out });
  const sizes = sizesOf(inputs);
  const outputs: AttentionOutputs = {
    out: out ?? arena.tensor([q.rows, q.columns], q.dtype),
    lse: arena.tensor([heads, q.rows], "f32"),
    saved: sizes.saved > 0 ? arena.tensor([Math.ceil(sizes.saved / 4)], "f32") : null,
  };
  const bytes = pack(inputs, outputs, sizes.forward);
  context.check("fa_attention_forward", context.symbols.fa_attention_forward(context.handle, bytes));
  return outputs;
}

/**
 * Gradients of {@linkcode attentionForward} with respect to q, k and v.
 *
 * @param inputs As given to the forward pass.
 * @param outputs What that returned.
 * @param dout Gradient of `out`, [rowsQ, H * D].
 * @param gradients Where to write; every row is written.
 */
export function attentionBackward(
  inputs: AttentionInputs,
  outputs: AttentionOutputs,
  dout: Tensor,
  gradients: AttentionGradients,
): void {
  const { context } = inputs.q;
  const written = { ...outputs, dout, ...gradients };
  validate(inputs, written);
  const bytes = pack(inputs, written, sizesOf(inputs).backward);
  context.check("fa_attention_backward", context.symbols.fa_attention_backward(context.handle, bytes));
}

type Written = Partial<AttentionOutputs & AttentionGradients & { dout: Tensor }>;

function validate(inputs: AttentionInputs, written: Written): void {
  const { q, k, v, heads, offsetsQ, offsetsK, keyLengths } = inputs;
  const { out, lse, saved, dout, dq, dk, dv } = written;
  const name = inputs.form;
  expectContext(name, q.context, [
    q,
    k,
    v,
    offsetsQ,
    offsetsK,
    keyLengths,
    out,
    lse,
    saved,
    dout,
    dq,
    dk,
    dv,
  ]);
  expectType(name, q.dtype, { k, v, out, dout, dq, dk, dv });
  expectType(name, "i32", { offsetsQ, offsetsK, keyLengths });
  const D = q.columns / heads;
  if (!Number.isInteger(heads) || heads < 1 || D % 8 !== 0 || D < 8 || D > 128) {
    throw new RangeError(
      `Cannot run ${name} as the head dimension must be a multiple of 8 up to 128: [${q.shape}] over ${heads} heads`,
    );
  }
  expectMatrix(name, "k", k, k.rows, q.columns);
  expectMatrix(name, "v", v, k.rows, q.columns);
  for (const [label, tensor] of Object.entries({ out, dout, dq })) {
    if (tensor) expectMatrix(name, label, tensor, q.rows, q.columns);
  }
  for (const [label, tensor] of Object.entries({ dk, dv })) {
    if (tensor) expectMatrix(name, label, tensor, k.rows, q.columns);
  }
  if (lse) expectSize(name, "lse", lse, heads * q.rows);
  if (offsetsQ.size < 1) throw new RangeError(`Cannot run ${name}: offsets must hold B + 1 numbers`);
  expectSize(name, "offsetsQ", offsetsQ, offsetsQ.size);
  expectSize(name, "offsetsK", offsetsK, offsetsQ.size);
  expectSize(name, "keyLengths", keyLengths, offsetsQ.size - 1);
  const scale = inputs.scale ?? 1;
  if (!(scale >= 0 && scale < Infinity)) {
    throw new RangeError(
      `Cannot run ${name} as scale must be finite and not negative: current value is ${scale}`,
    );
  }
  for (const [label, value] of Object.entries({ maxQ: inputs.maxQ, maxK: inputs.maxK })) {
    if (!Number.isInteger(value) || value < 0) {
      throw new RangeError(
        `Cannot run ${name} as ${label} must be a whole number from 0: current value is ${value}`,
      );
    }
  }
}

function pack(inputs: AttentionInputs, written: Written, workspaceBytes: number): Uint8Array<ArrayBuffer> {
  const { q, k, v, heads } = inputs;
  const { out, lse, saved, dout, dq, dk, dv } = written;
  const { context } = q;
  const workspace = workspaceBytes > 0 ? context.scratch(workspaceBytes) : 0n;
  const D = q.columns / heads;
  const dropout = dropoutArguments(inputs.form, inputs.dropout);
  const stride = (tensor: Tensor | undefined): number => tensor?.stride ?? 0;
  return new StructWriter(ATTENTION_ARGS_BYTES)
    .pointers(q, k, v, out, lse, inputs.offsetsQ, inputs.offsetsK, inputs.keyLengths)
    .pointers(dropout.p > 0 ? inputs.dropout?.rng : null, dout, dq, dk, dv, saved)
    .addresses(workspace)
    .longs(q.stride, k.stride, v.stride, stride(out), stride(dout), stride(dq), stride(dk), stride(dv))
    .longs(saved?.byteLength ?? 0, workspaceBytes)
    .ints(q.rows, k.rows, inputs.maxQ, inputs.maxK, inputs.offsetsQ.size - 1, heads, D)
    .ints(ATTENTION_FORMS.indexOf(inputs.form), dtypeCode(inputs.form, q))
    .ints(Number(inputs.causal ?? false), Number(inputs.deterministic ?? false), dropout.site)
    .floats(inputs.scale ?? 1 / Math.sqrt(D), dropout.p)
    .bytes;
}

/** The library's answer for inputs that are validated. */
function sizesOf(inputs: AttentionInputs): AttentionSizes {
  const { context } = inputs.q;
  const sizes = new BigInt64Array(3);
  const bytes = new Uint8Array(sizes.buffer);
  const status = context.symbols.fa_attention_sizes(context.handle, pack(inputs, {}, 0), bytes);
  context.check("fa_attention_sizes", status);
  const [forward = 0n, saved = 0n, backward = 0n] = sizes;
  return { forward: Number(forward), saved: Number(saved), backward: Number(backward) };
}
