/* The whole C ABI of the suite: one header, two libraries. libflashattn.so (cuda/) and libflashattn_cpu.so (cpu/)
 * both export every function below; ffi/symbols.ts binds them in this order.
 *
 * Letters, here and everywhere: B sequences in a batch, H heads, D head dimension, N query length, M key length
 * (L where N = M), R packed rows (the tokens of all sequences, one after another), C model width, V vocabulary.
 * All matrices are row-major; a stride is counted in elements between the starts of two rows.
 *
 * Contract of every function that takes a context
 *   - returns FA_OK or an error whose text fa_last_error gives; on an argument error nothing has been written
 *   - is ordered after the calls before it on the same context, returns without waiting (unless it says "waits"),
 *     allocates nothing (unless it says so), and so can be captured between fa_graph_begin and fa_graph_end
 *   - device pointers are 16-byte aligned; on the GPU rows of 16-bit tensors start on 16 bytes as well
 *   - `dtype` is that of activations and weights: FA_F32 on the CPU, FA_BF16 on the GPU (attention: FA_F16 as well);
 *     statistics, losses, gradients of parameters and optimizer state are float always; sums are float or wider
 *   - `accumulate` != 0 adds to a parameter's gradient, 0 overwrites it
 *   - `workspace` is scratch: its content is nothing before and nothing after; the size comes from the matching query
 *   - results do not depend on the number of threads; on the GPU they are the same bit for bit from run to run, but for
 *     what says "deterministic" below
 *
 * Dropout. `rng` points to two device integers {seed, step}; `site` numbers the place in the model, so that no two
 * places share a mask. Philox4x32-7 (Salmon et al. 2011), key = the two 32-bit halves (low, high) of
 * seed + step * 0x9E3779B97F4A7C15, gives eight 16-bit values a call: value e = (word[e / 2] >> 16 * (e % 2)) & 0xffff.
 * An element is kept where its value >= T, T = round(p * 65536), and scaled by 65536 / (65536 - T).
 *   - element e of a tensor (its index in the logical, unpadded tensor): counter {low32(e / 8), high32(e / 8), site, 0},
 *     value e % 8
 *   - score (b, h, i, j) of attention: counter {(i / 16) * 8 + i % 8, (j / 32) * 8 + j % 8, site, 1 + b * H + h},
 *     value ((i / 8) % 2) * 4 + (j / 8) % 4
 * So a mask depends on nothing but seed, step, site and position: both devices and all attention forms draw the same.
 */
#ifndef FLASHATTN_H
#define FLASHATTN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FA_ABI_VERSION 1

typedef struct fa_ctx fa_ctx;     /* a device, its one stream, its last error */
typedef struct fa_graph fa_graph; /* a captured sequence of calls */
typedef struct fa_event fa_event; /* a point in the stream, with its time */

typedef int32_t fa_status;
enum {
  FA_OK = 0,
  FA_INVALID = 1,       /* an argument is out of range */
  FA_UNSUPPORTED = 2,   /* valid, but not on this device */
  FA_OUT_OF_MEMORY = 3, /* the device has no room for it */
  FA_DEVICE = 4,        /* the device failed; the context is of no more use */
  FA_LIBRARY = 5,       /* a library needed at run time (cuBLASLt) is missing */
  FA_STATE = 6          /* the call does not fit here: e.g. fa_download while capturing */
};

enum { FA_F32 = 0, FA_BF16 = 1, FA_F16 = 2 };                                  /* dtype */
enum { FA_DOTSCALE = 0, FA_FLASH = 1, FA_IMP_FLASH = 2 };                      /* attention form */
enum { FA_EPILOGUE_NONE = 0, FA_EPILOGUE_BIAS = 1, FA_EPILOGUE_BIAS_RELU = 2, FA_EPILOGUE_BIAS_GRAD = 3 };

/* ---- library and context ------------------------------------------------------------------------------------------ */

int32_t fa_abi_version(void);

/* "cuda" or "cpu". */
const char *fa_backend(void);

/* Number of usable devices: 1 on the CPU; 0 where no GPU or no driver is found. `message` (may be NULL, `capacity` bytes)
 * receives why it is 0. */
int32_t fa_device_count(char *message, int32_t capacity);

/* Opens device `index`. On failure *out is NULL and `message` receives the reason. Allocates. */
fa_status fa_ctx_create(int32_t index, fa_ctx **out, char *message, int32_t capacity);

/* Waits, then frees the context and what is still allocated from it. NULL is allowed. */
void fa_ctx_destroy(fa_ctx *ctx);

/* Copies the text of the last error into `buffer` (always terminated) and returns its whole length in bytes. */
int32_t fa_last_error(fa_ctx *ctx, char *buffer, int32_t capacity);

typedef struct fa_device_info {
  int64_t total_bytes, free_bytes; /* device memory (CPU: main memory) */
  int32_t major, minor;            /* compute capability; CPU: 0, 0 */
  int32_t units;                   /* multiprocessors; CPU: threads used */
  int32_t clock_mhz;               /* highest clock of those; 0 unknown */
  int32_t driver, runtime;         /* CUDA versions as 1000 * major + 10 * minor; CPU: 0 */
  int32_t l2_bytes;                /* last-level cache; 0 unknown */
  int32_t simd_width;              /* CPU: floats in a vector register; GPU: 32 */
  char name[128];
} fa_device_info;                  /* 176 bytes */
fa_status fa_get_device_info(fa_ctx *ctx, fa_device_info *out);

/* Waits until all calls so far are done, and reports what failed in them. */
fa_status fa_synchronize(fa_ctx *ctx);

/* ---- memory -------------------------------------------------------------------------------------------------------- */

fa_status fa_alloc(fa_ctx *ctx, int64_t bytes, void **out); /* 256-byte aligned, contents undefined; allocates */
fa_status fa_free(fa_ctx *ctx, void *ptr);                  /* waits for pending use; NULL is allowed */
fa_status fa_memset(fa_ctx *ctx, void *dst, int32_t byte, int64_t bytes);
fa_status fa_copy(fa_ctx *ctx, void *dst, const void *src, int64_t bytes); /* device to device, no overlap */

/* Host to device. `host` may be reused at once: the bytes go through a pinned ring. Not while capturing. */
fa_status fa_upload(fa_ctx *ctx, void *dst, const void *host, int64_t bytes);

/* Device to host; waits. Not while capturing. */
fa_status fa_download(fa_ctx *ctx, void *host, const void *src, int64_t bytes);

/* dst[dst_index[r]] = src[src_index[r]] for r < rows, rows of row_bytes bytes (a multiple of 4), strides in bytes. An index
 * may be NULL (row r itself); an index outside [0, dst_rows) or [0, src_rows) skips the row. No overlap of dst and src. */
fa_status fa_copy_rows(fa_ctx *ctx, void *dst, int64_t dst_stride, int32_t dst_rows, const int32_t *dst_index,
                       const void *src, int64_t src_stride, int32_t src_rows, const int32_t *src_index, int32_t rows,
                       int32_t row_bytes);

/* dst[i] = (dst_dtype) src[i], round to nearest even. */
fa_status fa_cast(fa_ctx *ctx, void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, int64_t n);

/* ---- graphs and events --------------------------------------------------------------------------------------------- */

fa_status fa_graph_begin(fa_ctx *ctx);                 /* from here calls are recorded, not run */
fa_status fa_graph_end(fa_ctx *ctx, fa_graph **out);   /* allocates; after an error while recording: that error, *out NULL */
fa_status fa_graph_launch(fa_ctx *ctx, fa_graph *graph);
fa_status fa_graph_destroy(fa_ctx *ctx, fa_graph *graph);

fa_status fa_event_create(fa_ctx *ctx, fa_event **out);
fa_status fa_event_record(fa_ctx *ctx, fa_event *event);
fa_status fa_event_elapsed(fa_ctx *ctx, fa_event *from, fa_event *to, float *ms); /* waits for both */
fa_status fa_event_destroy(fa_ctx *ctx, fa_event *event);

/* ---- matrix product ------------------------------------------------------------------------------------------------ */

/* c [m, n] = alpha * op(a) [m, k] op(b) [k, n] + beta * c, then the epilogue.
 * op(a) is a [m, lda], or the transpose of a [k, lda] where trans_a; op(b) is b [k, ldb], or of b [n, ldb] where trans_b.
 * BIAS adds bias [n]; BIAS_RELU adds it and takes max(0, .); BIAS_GRAD leaves c as it is and sets bias_grad [n] to the
 * sums over k of op(b), or adds them where beta != 0 (with dW = x^T dy: the gradient of the bias).
 * dtype is that of a, b and bias; dtype_c that of c (dtype or FA_F32). m, n or k may be 0 (k = 0: c = beta * c, epilogue). */
typedef struct fa_gemm_args {
  const void *a, *b;
  void *c;
  const void *bias;
  float *bias_grad;
  int64_t lda, ldb, ldc;
  int32_t m, n, k;
  int32_t trans_a, trans_b;
  int32_t dtype, dtype_c, epilogue;
  float alpha, beta;
} fa_gemm_args; /* 104 bytes */
fa_status fa_gemm(fa_ctx *ctx, const fa_gemm_args *args);

/* ---- attention ----------------------------------------------------------------------------------------------------- */

/* softmax(q k^T * scale + mask) v for B sequences of packed rows.
 * Sequence b has query rows cu_q[b] .. cu_q[b+1] and key rows cu_k[b] .. cu_k[b+1] (N and M of them, any from 0 up). Of its
 * keys only the first key_len[b] count, where key_len is given: a padded batch is equal offsets plus key lengths.
 * causal: query i sees keys j <= i + M - N (bottom-right aligned, M and N by the offsets), and j < key_len as always.
 * A query without a key gives out 0, lse -inf, and no gradient. Rows of no sequence (from cu_q[B], cu_k[B] up) give out 0,
 * lse -inf, and gradients 0: every row of out, lse, dq, dk, dv is written.
 * The offsets lie in device memory; kernels clamp them to [0, rows], a length to max_q or max_k, so that no value of
 * theirs reads or writes outside the tensors.
 * Dropout acts on the normalised probabilities; lse is that of the scores without dropout.
 * Forward reads q..rng, writes out, lse and `saved`. Backward reads those and dout, writes dq, dk, dv.
 * deterministic != 0: dq, dk, dv are the same bit for bit from run to run (they always are on the CPU and with dotscale). */
typedef struct fa_attention_args {
  const void *q, *k, *v;         /* [rows_q, H, D], [rows_k, H, D], [rows_k, H, D] by row stride */
  void *out;                     /* [rows_q, H, D] by row stride */
  float *lse;                    /* [H, rows_q], natural logarithm */
  const int32_t *cu_q, *cu_k;    /* [B + 1] */
  const int32_t *key_len;        /* [B] or NULL */
  const uint64_t *rng;           /* {seed, step}, or NULL where dropout is 0 */
  const void *dout;              /* [rows_q, H, D] */
  void *dq, *dk, *dv;            /* as q, k, v */
  void *saved;                   /* what dotscale keeps for the backward pass; NULL for the others */
  void *workspace;
  int64_t q_stride, k_stride, v_stride, out_stride;
  int64_t dout_stride, dq_stride, dk_stride, dv_stride;
  int64_t saved_bytes, workspace_bytes;
  int32_t rows_q, rows_k, max_q, max_k;
  int32_t B, H, D;               /* D a multiple of 8, 8 to 128 */
  int32_t form, dtype, causal, deterministic;
  uint32_t site;
  float scale, dropout;          /* scale >= 0, dropout in [0, 1) */
} fa_attention_args;             /* 256 bytes */

/* sizes[0] workspace of the forward pass, [1] saved, [2] workspace of the backward pass, in bytes. Reads only the numbers. */
fa_status fa_attention_sizes(fa_ctx *ctx, const fa_attention_args *args, int64_t *sizes);
fa_status fa_attention_forward(fa_ctx *ctx, const fa_attention_args *args);
fa_status fa_attention_backward(fa_ctx *ctx, const fa_attention_args *args);

/* ---- the rest of the Transformer ------------------------------------------------------------------------------------ */

/* Bytes of workspace that any function below needs for `rows` rows of `columns` columns (V for the embedding's table rows
 * is `table_rows`, else 0). */
fa_status fa_workspace_bytes(fa_ctx *ctx, int64_t rows, int64_t columns, int64_t table_rows, int64_t *bytes);

/* out[r] = dropout(table[ids[r]] * scale + positions[pos[r]]), rows of C. table [V, C] in dtype, positions [P, C] float or
 * NULL. An id outside [0, V) counts as a row of zeros, a position outside [0, P) likewise. */
fa_status fa_embedding_forward(fa_ctx *ctx, void *out, const int32_t *ids, const int32_t *pos, const void *table,
                               const float *positions, int32_t rows, int32_t C, int32_t V, int32_t P, float scale,
                               float dropout, const uint64_t *rng, uint32_t site, int32_t dtype);

/* dtable [V, C] float (+)= the gradient; rows of id `skip_id` (padding; -1: none) give none. Adds in a fixed order: the
 * same bit for bit always. */
fa_status fa_embedding_backward(fa_ctx *ctx, float *dtable, const int32_t *ids, const void *dout, int32_t rows, int32_t C,
                                int32_t V, int32_t skip_id, float scale, float dropout, const uint64_t *rng, uint32_t site,
                                int32_t dtype, int32_t accumulate, void *workspace, int64_t workspace_bytes);

/* sum = x + dropout(branch); out = (sum - mean) * rstd * gamma + beta (Ba et al. 2016), over rows of C.
 * branch NULL: plain layer norm of x (then `sum` may be NULL). out NULL: only the sum. sum may be x. gamma, beta [C] in
 * dtype; mean, rstd [rows] float. */
fa_status fa_residual_norm_forward(fa_ctx *ctx, void *sum, void *out, float *mean, float *rstd, const void *x,
                                   const void *branch, const void *gamma, const void *beta, int32_t rows, int32_t C,
                                   float eps, float dropout, const uint64_t *rng, uint32_t site, int32_t dtype);

/* From dout (gradient of out; NULL: 0) and dsum (gradient that reaches sum by the residual path; NULL: 0):
 * dx = dsum + layer-norm backward of dout; dbranch (may be NULL) = dropout mask * dx; dgamma, dbeta [C] float (may be NULL).
 * dx may be dsum or dout; dbranch may be dx where dropout is 0. `sum` is what the forward pass normalised. */
fa_status fa_residual_norm_backward(fa_ctx *ctx, void *dx, void *dbranch, float *dgamma, float *dbeta, const void *dout,
                                    const void *dsum, const void *sum, const float *mean, const float *rstd,
                                    const void *gamma, int32_t rows, int32_t C, float dropout, const uint64_t *rng,
                                    uint32_t site, int32_t dtype, int32_t accumulate, void *workspace,
                                    int64_t workspace_bytes);

/* y = dropout(max(0, x + bias)), [rows, n]; bias [n] in dtype or NULL; y may be x. */
fa_status fa_bias_relu_dropout_forward(fa_ctx *ctx, void *y, const void *x, const void *bias, int32_t rows, int32_t n,
                                       float dropout, const uint64_t *rng, uint32_t site, int32_t dtype);

/* dx = dy where y > 0, scaled as the dropout was, else 0 (y tells both masks); dbias [n] float (may be NULL) (+)= column
 * sums of dx. dx may be dy. */
fa_status fa_bias_relu_dropout_backward(fa_ctx *ctx, void *dx, float *dbias, const void *dy, const void *y, int32_t rows,
                                        int32_t n, float dropout, int32_t dtype, int32_t accumulate, void *workspace,
                                        int64_t workspace_bytes);

/* y = dropout(x), n elements; y may be x. Its own backward pass. */
fa_status fa_dropout(fa_ctx *ctx, void *y, const void *x, int64_t n, float dropout, const uint64_t *rng, uint32_t site,
                     int32_t dtype);

/* out = a + b, n elements; out may be a or b. */
fa_status fa_add(fa_ctx *ctx, void *out, const void *a, const void *b, int64_t n, int32_t dtype);

/* out [n] float (+)= the column sums of x [rows, n] by stride. */
fa_status fa_column_sum(fa_ctx *ctx, float *out, const void *x, int32_t rows, int32_t n, int64_t stride, int32_t dtype,
                        int32_t accumulate, void *workspace, int64_t workspace_bytes);

/* out[0] (+)= the sum of x [n], both float, in a fixed order. */
fa_status fa_sum(fa_ctx *ctx, float *out, const float *x, int64_t n, int32_t accumulate, void *workspace,
                 int64_t workspace_bytes);

/* Softmax cross-entropy with label smoothing e over V classes (Szegedy et al. 2016): target distribution
 * (1 - e) at the target + e / V everywhere. logits [rows, V] by stride (stride >= V); a row whose target is `pad_id` or
 * outside [0, V) counts nothing. loss, nll [rows] float: smoothed and plain (0 on rows that count nothing).
 * with_gradient: logits become (softmax - target distribution) * grad_scale[0] (device float), 0 on rows that count
 * nothing and in columns V .. stride. correct (may be NULL) [rows] int32: 1 where the arg max is the target. */
fa_status fa_cross_entropy(fa_ctx *ctx, float *loss, float *nll, int32_t *correct, void *logits, const int32_t *targets,
                           int32_t rows, int32_t V, int64_t stride, float smoothing, int32_t pad_id,
                           const float *grad_scale, int32_t with_gradient, int32_t dtype);

/* norm[0] = the 2-norm of grad [n]; norm[1] = the factor that clips it to max_norm (max_norm <= 0: 1), or 0 where the norm
 * is not finite: fa_adam then leaves everything as it is. */
fa_status fa_grad_norm(fa_ctx *ctx, float *norm, const float *grad, int64_t n, float max_norm, void *workspace,
                       int64_t workspace_bytes);

/* Adam with decoupled weight decay (Loshchilov & Hutter 2019) over flat buffers of n: g = grad * norm[1] (norm NULL: 1);
 * m, v, master float; weights in dtype = master, rounded to nearest even (weights may be master on the CPU).
 * hyper (device floats): {learning rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t)}. */
fa_status fa_adam(fa_ctx *ctx, void *weights, float *master, float *m, float *v, const float *grad, int64_t n,
                  const float *hyper, const float *norm, float beta1, float beta2, float eps, float weight_decay,
                  int32_t dtype);

/* x[i] = low + (high - low) * u_i, float, u uniform in [0, 1) by Philox (counter {i, i >> 32, site, 2}, word 0 >> 8). */
fa_status fa_random_uniform(fa_ctx *ctx, float *x, int64_t n, float low, float high, uint64_t seed, uint32_t site);

/* Per row of logits [rows, V] by stride: the k best classes of log_softmax, best first, ties to the lower id.
 * scores [rows, k] float, ids [rows, k] int32; k from 1 to 64, k <= V. */
fa_status fa_topk(fa_ctx *ctx, float *scores, int32_t *ids, const void *logits, int32_t rows, int32_t V, int64_t stride,
                  int32_t k, int32_t dtype);

#ifdef __cplusplus
}
#endif
#endif
