/**
 * The symbol table: every function of `cuda/flashattn.h`, in the header's order, its C declaration beside each parameter.
 *
 * Device addresses are "pointer", host memory is "buffer". The brands let `deno check` tell the handles apart.
 *
 * @module
 */

/** A native context. */
export type ContextHandle = Deno.PointerObject<"fa_ctx">;
/** A native graph. */
export type GraphHandle = Deno.PointerObject<"fa_graph">;
/** A native event. */
export type EventHandle = Deno.PointerObject<"fa_event">;

/** The result of most functions: see STATUS_NAMES in errors.ts. */
export enum Status {
  /** Done. */
  Ok = 0,
}

const CTX = "pointer" as Deno.NativeTypedPointer<ContextHandle>;
const GRAPH = "pointer" as Deno.NativeTypedPointer<GraphHandle>;
const EVENT = "pointer" as Deno.NativeTypedPointer<EventHandle>;
const STATUS = "i32" as Deno.NativeI32Enum<Status>;

/** The ABI version that this table describes. */
export const ABI_VERSION = 1;

/** All functions of the native library. */
export const SYMBOLS = {
  fa_abi_version: {
    parameters: [],
    result: "i32",
  },
  fa_backend: {
    parameters: [],
    result: "pointer",
  },
  fa_device_count: {
    parameters: [
      "buffer", // char *message
      "i32", // int32_t capacity
    ],
    result: "i32",
  },
  fa_ctx_create: {
    parameters: [
      "i32", // int32_t index
      "buffer", // fa_ctx **out
      "buffer", // char *message
      "i32", // int32_t capacity
    ],
    result: STATUS,
  },
  fa_ctx_destroy: {
    parameters: [
      CTX, // fa_ctx *ctx
    ],
    result: "void",
  },
  fa_last_error: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // char *buffer
      "i32", // int32_t capacity
    ],
    result: "i32",
  },
  fa_get_device_info: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // fa_device_info *out
    ],
    result: STATUS,
  },
  fa_synchronize: {
    parameters: [
      CTX, // fa_ctx *ctx
    ],
    result: STATUS,
  },
  /** The same function on a thread of its own: awaiting it leaves the event loop free. */
  fa_synchronize_async: {
    name: "fa_synchronize",
    parameters: [CTX],
    result: STATUS,
    nonblocking: true,
  },
  fa_alloc: {
    parameters: [
      CTX, // fa_ctx *ctx
      "i64", // int64_t bytes
      "buffer", // void **out
    ],
    result: STATUS,
  },
  fa_free: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *ptr
    ],
    result: STATUS,
  },
  fa_memset: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dst
      "i32", // int32_t byte
      "i64", // int64_t bytes
    ],
    result: STATUS,
  },
  fa_copy: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dst
      "pointer", // const void *src
      "i64", // int64_t bytes
    ],
    result: STATUS,
  },
  fa_upload: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dst
      "buffer", // const void *host
      "i64", // int64_t bytes
    ],
    result: STATUS,
  },
  fa_download: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // void *host
      "pointer", // const void *src
      "i64", // int64_t bytes
    ],
    result: STATUS,
  },
  fa_copy_rows: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dst
      "i64", // int64_t dst_stride
      "i32", // int32_t dst_rows
      "pointer", // const int32_t *dst_index
      "pointer", // const void *src
      "i64", // int64_t src_stride
      "i32", // int32_t src_rows
      "pointer", // const int32_t *src_index
      "i32", // int32_t rows
      "i32", // int32_t row_bytes
    ],
    result: STATUS,
  },
  fa_cast: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dst
      "i32", // int32_t dst_dtype
      "pointer", // const void *src
      "i32", // int32_t src_dtype
      "i64", // int64_t n
    ],
    result: STATUS,
  },
  fa_graph_begin: {
    parameters: [
      CTX, // fa_ctx *ctx
    ],
    result: STATUS,
  },
  fa_graph_end: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // fa_graph **out
    ],
    result: STATUS,
  },
  fa_graph_launch: {
    parameters: [
      CTX, // fa_ctx *ctx
      GRAPH, // fa_graph *graph
    ],
    result: STATUS,
  },
  fa_graph_destroy: {
    parameters: [
      CTX, // fa_ctx *ctx
      GRAPH, // fa_graph *graph
    ],
    result: STATUS,
  },
  fa_event_create: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // fa_event **out
    ],
    result: STATUS,
  },
  fa_event_record: {
    parameters: [
      CTX, // fa_ctx *ctx
      EVENT, // fa_event *event
    ],
    result: STATUS,
  },
  fa_event_elapsed: {
    parameters: [
      CTX, // fa_ctx *ctx
      EVENT, // fa_event *from
      EVENT, // fa_event *to
      "buffer", // float *ms
    ],
    result: STATUS,
  },
  fa_event_destroy: {
    parameters: [
      CTX, // fa_ctx *ctx
      EVENT, // fa_event *event
    ],
    result: STATUS,
  },
  fa_gemm: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // const fa_gemm_args *args
    ],
    result: STATUS,
  },
  fa_attention_sizes: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // const fa_attention_args *args
      "buffer", // int64_t *sizes
    ],
    result: STATUS,
  },
  fa_attention_forward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // const fa_attention_args *args
    ],
    result: STATUS,
  },
  fa_attention_backward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "buffer", // const fa_attention_args *args
    ],
    result: STATUS,
  },
  fa_workspace_bytes: {
    parameters: [
      CTX, // fa_ctx *ctx
      "i64", // int64_t rows
      "i64", // int64_t columns
      "i64", // int64_t table_rows
      "buffer", // int64_t *bytes
    ],
    result: STATUS,
  },
  fa_embedding_forward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *out
      "pointer", // const int32_t *ids
      "pointer", // const int32_t *pos
      "pointer", // const void *table
      "pointer", // const float *positions
      "i32", // int32_t rows
      "i32", // int32_t C
      "i32", // int32_t V
      "i32", // int32_t P
      "f32", // float scale
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_embedding_backward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *dtable
      "pointer", // const int32_t *ids
      "pointer", // const void *dout
      "i32", // int32_t rows
      "i32", // int32_t C
      "i32", // int32_t V
      "i32", // int32_t skip_id
      "f32", // float scale
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
      "i32", // int32_t accumulate
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_residual_norm_forward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *sum
      "pointer", // void *out
      "pointer", // float *mean
      "pointer", // float *rstd
      "pointer", // const void *x
      "pointer", // const void *branch
      "pointer", // const void *gamma
      "pointer", // const void *beta
      "i32", // int32_t rows
      "i32", // int32_t C
      "f32", // float eps
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_residual_norm_backward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dx
      "pointer", // void *dbranch
      "pointer", // float *dgamma
      "pointer", // float *dbeta
      "pointer", // const void *dout
      "pointer", // const void *dsum
      "pointer", // const void *sum
      "pointer", // const float *mean
      "pointer", // const float *rstd
      "pointer", // const void *gamma
      "i32", // int32_t rows
      "i32", // int32_t C
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
      "i32", // int32_t accumulate
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_bias_relu_dropout_forward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *y
      "pointer", // const void *x
      "pointer", // const void *bias
      "i32", // int32_t rows
      "i32", // int32_t n
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_bias_relu_dropout_backward: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *dx
      "pointer", // float *dbias
      "pointer", // const void *dy
      "pointer", // const void *y
      "i32", // int32_t rows
      "i32", // int32_t n
      "f32", // float dropout
      "i32", // int32_t dtype
      "i32", // int32_t accumulate
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_dropout: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *y
      "pointer", // const void *x
      "i64", // int64_t n
      "f32", // float dropout
      "pointer", // const uint64_t *rng
      "u32", // uint32_t site
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_add: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *out
      "pointer", // const void *a
      "pointer", // const void *b
      "i64", // int64_t n
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_column_sum: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *out
      "pointer", // const void *x
      "i32", // int32_t rows
      "i32", // int32_t n
      "i64", // int64_t stride
      "i32", // int32_t dtype
      "i32", // int32_t accumulate
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_sum: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *out
      "pointer", // const float *x
      "i64", // int64_t n
      "i32", // int32_t accumulate
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_cross_entropy: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *loss
      "pointer", // float *nll
      "pointer", // int32_t *correct
      "pointer", // void *logits
      "pointer", // const int32_t *targets
      "i32", // int32_t rows
      "i32", // int32_t V
      "i64", // int64_t stride
      "f32", // float smoothing
      "i32", // int32_t pad_id
      "pointer", // const float *grad_scale
      "i32", // int32_t with_gradient
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_grad_norm: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *norm
      "pointer", // const float *grad
      "i64", // int64_t n
      "f32", // float max_norm
      "pointer", // void *workspace
      "i64", // int64_t workspace_bytes
    ],
    result: STATUS,
  },
  fa_adam: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // void *weights
      "pointer", // float *master
      "pointer", // float *m
      "pointer", // float *v
      "pointer", // const float *grad
      "i64", // int64_t n
      "pointer", // const float *hyper
      "pointer", // const float *norm
      "f32", // float beta1
      "f32", // float beta2
      "f32", // float eps
      "f32", // float weight_decay
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
  fa_random_uniform: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *x
      "i64", // int64_t n
      "f32", // float low
      "f32", // float high
      "u64", // uint64_t seed
      "u32", // uint32_t site
    ],
    result: STATUS,
  },
  fa_topk: {
    parameters: [
      CTX, // fa_ctx *ctx
      "pointer", // float *scores
      "pointer", // int32_t *ids
      "pointer", // const void *logits
      "i32", // int32_t rows
      "i32", // int32_t V
      "i64", // int64_t stride
      "i32", // int32_t k
      "i32", // int32_t dtype
    ],
    result: STATUS,
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** The opened native library's functions. */
export type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
