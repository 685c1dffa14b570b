// The entry points of the operations: they check every argument, then hand the call to a kernel of the best table.
#include <cmath>

#include "context.hpp"

using namespace fa;

namespace {

// Rows are summed in at most this many parts, whatever the number of threads.
constexpr int64_t SUM_PARTS = 32;

Dropout make_dropout(float p, const uint64_t *rng, uint32_t site) {
  long threshold = lround((double)p * 65536);
  // Where p rounds to 1 nothing is kept.
  float scale = threshold < 65536 ? (float)(65536.0 / (double)(65536 - threshold)) : 0;
  return {rng, site, (uint32_t)threshold, scale};
}

// Each check returns FA_OK, or the failure with its message; `op` is the name of the entry point.

fa_status check_type(fa_ctx *ctx, const char *op, int32_t dtype) {
  FA_REQUIRE(ctx, dtype >= FA_F32 && dtype <= FA_F16, FA_INVALID,
             "Cannot run %s as dtype must be 0 (float32), 1 (bfloat16) or 2 (float16): current value is %d", op, dtype);
  FA_REQUIRE(ctx, dtype == FA_F32, FA_UNSUPPORTED,
             "Cannot run %s as dtype on the CPU must be 0 (float32): current value is %d", op, dtype);
  return FA_OK;
}

fa_status check_size(fa_ctx *ctx, const char *op, const char *name, int64_t value) {
  FA_REQUIRE(ctx, value >= 0, FA_INVALID, "Cannot run %s as %s must be at least 0: current value is %lld", op, name,
             (long long)value);
  return FA_OK;
}

fa_status check_data(fa_ctx *ctx, const char *op, const char *name, const void *pointer) {
  FA_REQUIRE(ctx, pointer, FA_INVALID, "Cannot run %s as %s must not be NULL", op, name);
  return FA_OK;
}

fa_status check_dropout(fa_ctx *ctx, const char *op, float p, const uint64_t *rng) {
  FA_REQUIRE(ctx, p >= 0 && p < 1, FA_INVALID, "Cannot run %s as dropout must be in [0, 1): current value is %g", op,
             (double)p);
  FA_REQUIRE(ctx, p == 0 || rng, FA_INVALID, "Cannot run %s as rng must not be NULL where dropout is %g", op,
             (double)p);
  return FA_OK;
}

fa_status check_workspace(fa_ctx *ctx, const char *op, const void *workspace, int64_t bytes, int64_t needed) {
  FA_REQUIRE(ctx, bytes >= needed && (workspace || !needed), FA_INVALID,
             "Cannot run %s as the workspace must have %lld bytes: current value is %lld%s", op, (long long)needed,
             (long long)bytes, workspace ? "" : " (NULL)");
  return FA_OK;
}

int64_t column_sum_bytes(int64_t vectors, int64_t columns) { return SUM_PARTS * vectors * columns * 4; }

}  // namespace

// Leaves the entry point with the failure of a check.
#define CHECK(call) \
  if (fa_status status_ = (call)) return status_
#define CHECK_DATA(pointer) CHECK(check_data(ctx, op, #pointer, pointer))
#define CHECK_SIZE(value) CHECK(check_size(ctx, op, #value, value))

fa_status fa_workspace_bytes(fa_ctx *ctx, int64_t rows, int64_t columns, int64_t table_rows, int64_t *bytes) {
  const char *op = "fa_workspace_bytes";
  if (!ctx) return FA_INVALID;
  CHECK_DATA(bytes);
  CHECK_SIZE(rows);
  CHECK_SIZE(columns);
  CHECK_SIZE(table_rows);
  FA_REQUIRE(ctx, columns < INT64_MAX / 1024, FA_INVALID,
             "Cannot run %s as columns must be less: current value is %lld", op, (long long)columns);
  *bytes = column_sum_bytes(2, columns);
  return FA_OK;
}

fa_status fa_gemm(fa_ctx *ctx, const fa_gemm_args *args) {
  const char *op = "fa_gemm";
  if (!ctx) return FA_INVALID;
  CHECK_DATA(args);
  fa_gemm_args g = *args;
  CHECK(check_type(ctx, op, g.dtype));
  CHECK(check_type(ctx, op, g.dtype_c));
  CHECK(check_size(ctx, op, "m", g.m));
  CHECK(check_size(ctx, op, "n", g.n));
  CHECK(check_size(ctx, op, "k", g.k));
  FA_REQUIRE(ctx, g.epilogue >= FA_EPILOGUE_NONE && g.epilogue <= FA_EPILOGUE_BIAS_GRAD, FA_INVALID,
             "Cannot run %s as epilogue must be in 0 .. 3: current value is %d", op, g.epilogue);
  int32_t a_row = g.trans_a ? g.m : g.k, b_row = g.trans_b ? g.k : g.n;
  FA_REQUIRE(ctx, g.lda >= a_row && g.ldb >= b_row && g.ldc >= g.n, FA_INVALID,
             "Cannot run %s as lda, ldb, ldc must be at least %d, %d, %d: current values are %lld, %lld, %lld", op,
             a_row, b_row, g.n, (long long)g.lda, (long long)g.ldb, (long long)g.ldc);
  if (g.m && g.n) CHECK(check_data(ctx, op, "c", g.c));
  if (g.m && g.k && g.n) CHECK(check_data(ctx, op, "a", g.a));
  if (g.k && g.n && (g.m || g.epilogue == FA_EPILOGUE_BIAS_GRAD)) CHECK(check_data(ctx, op, "b", g.b));
  bool bias = g.epilogue == FA_EPILOGUE_BIAS || g.epilogue == FA_EPILOGUE_BIAS_RELU;
  if (bias && g.m && g.n) CHECK(check_data(ctx, op, "bias", g.bias));
  if (g.epilogue == FA_EPILOGUE_BIAS_GRAD && g.n) CHECK(check_data(ctx, op, "bias_grad", g.bias_grad));
  return submit(ctx, [=] { ctx->kernels->gemm(g); });
}

// ---- attention ----------------------------------------------------------------------------------------------------

namespace {

fa_status check_attention_numbers(fa_ctx *ctx, const char *op, const fa_attention_args &a) {
  CHECK(check_type(ctx, op, a.dtype));
  FA_REQUIRE(ctx, a.form >= FA_DOTSCALE && a.form <= FA_IMP_FLASH, FA_INVALID,
             "Cannot run %s as form must be in 0 .. 2: current value is %d", op, a.form);
  FA_REQUIRE(ctx, a.D >= 8 && a.D <= 128 && a.D % 8 == 0, FA_INVALID,
             "Cannot run %s as D must be a multiple of 8 in 8 .. 128: current value is %d", op, a.D);
  FA_REQUIRE(ctx, a.H >= 1, FA_INVALID, "Cannot run %s as H must be at least 1: current value is %d", op, a.H);
  CHECK(check_size(ctx, op, "B", a.B));
  CHECK(check_size(ctx, op, "rows_q", a.rows_q));
  CHECK(check_size(ctx, op, "rows_k", a.rows_k));
  CHECK(check_size(ctx, op, "max_q", a.max_q));
  CHECK(check_size(ctx, op, "max_k", a.max_k));
  FA_REQUIRE(ctx, a.dropout >= 0 && a.dropout < 1, FA_INVALID,
             "Cannot run %s as dropout must be in [0, 1): current value is %g", op, (double)a.dropout);
  return FA_OK;
}

fa_status check_stride(fa_ctx *ctx, const char *op, const char *name, int64_t stride, const fa_attention_args &a) {
  int64_t least = (int64_t)a.H * a.D;
  FA_REQUIRE(ctx, stride >= least, FA_INVALID,
             "Cannot run %s as %s must be at least H * D = %lld: current value is %lld", op, name, (long long)least,
             (long long)stride);
  return FA_OK;
}

/// What the forward and the backward pass both read.
fa_status check_attention(fa_ctx *ctx, const char *op, const fa_attention_args &a, bool backward) {
  CHECK(check_attention_numbers(ctx, op, a));
  CHECK(check_stride(ctx, op, "q_stride", a.q_stride, a));
  CHECK(check_stride(ctx, op, "k_stride", a.k_stride, a));
  CHECK(check_stride(ctx, op, "v_stride", a.v_stride, a));
  CHECK(check_stride(ctx, op, "out_stride", a.out_stride, a));
  CHECK(check_dropout(ctx, op, a.dropout, a.rng));
  if (a.rows_q) {
    CHECK(check_data(ctx, op, "q", a.q));
    CHECK(check_data(ctx, op, "out", a.out));
    CHECK(check_data(ctx, op, "lse", a.lse));
  }
  if (a.rows_k) {
    CHECK(check_data(ctx, op, "k", a.k));
    CHECK(check_data(ctx, op, "v", a.v));
  }
  if (a.B) {
    CHECK(check_data(ctx, op, "cu_q", a.cu_q));
    CHECK(check_data(ctx, op, "cu_k", a.cu_k));
  }
  int64_t sizes[3];
  ctx->kernels->attention_sizes(a, sizes);
  CHECK(check_workspace(ctx, op, a.workspace, a.workspace_bytes, sizes[backward ? 2 : 0]));
  FA_REQUIRE(ctx, a.saved_bytes >= sizes[1] && (a.saved || !sizes[1]), FA_INVALID,
             "Cannot run %s as `saved` must have %lld bytes: current value is %lld%s", op, (long long)sizes[1],
             (long long)a.saved_bytes, a.saved ? "" : " (NULL)");
  return FA_OK;
}

}  // namespace

fa_status fa_attention_sizes(fa_ctx *ctx, const fa_attention_args *args, int64_t *sizes) {
  const char *op = "fa_attention_sizes";
  if (!ctx) return FA_INVALID;
  CHECK_DATA(args);
  CHECK_DATA(sizes);
  CHECK(check_attention_numbers(ctx, op, *args));
  ctx->kernels->attention_sizes(*args, sizes);
  return FA_OK;
}

fa_status fa_attention_forward(fa_ctx *ctx, const fa_attention_args *args) {
  const char *op = "fa_attention_forward";
  if (!ctx) return FA_INVALID;
  CHECK_DATA(args);
  fa_attention_args a = *args;
  CHECK(check_attention(ctx, op, a, false));
  return submit(ctx, [=] { ctx->kernels->attention_forward(a); });
}

fa_status fa_attention_backward(fa_ctx *ctx, const fa_attention_args *args) {
  const char *op = "fa_attention_backward";
  if (!ctx) return FA_INVALID;
  CHECK_DATA(args);
  fa_attention_args a = *args;
  CHECK(check_attention(ctx, op, a, true));
  CHECK(check_stride(ctx, op, "dout_stride", a.dout_stride, a));
  CHECK(check_stride(ctx, op, "dq_stride", a.dq_stride, a));
  CHECK(check_stride(ctx, op, "dk_stride", a.dk_stride, a));
  CHECK(check_stride(ctx, op, "dv_stride", a.dv_stride, a));
  if (a.rows_q) {
    CHECK(check_data(ctx, op, "dout", a.dout));
    CHECK(check_data(ctx, op, "dq", a.dq));
  }
  if (a.rows_k) {
    CHECK(check_data(ctx, op, "dk", a.dk));
    CHECK(check_data(ctx, op, "dv", a.dv));
  }
  return submit(ctx, [=] { ctx->kernels->attention_backward(a); });
}

// ---- embedding, norm, feed-forward --------------------------------------------------------------------------------

fa_status fa_embedding_forward(fa_ctx *ctx, void *out, const int32_t *ids, const int32_t *pos, const void *table,
                               const float *positions, int32_t rows, int32_t C, int32_t V, int32_t P, float scale,
                               float dropout, const uint64_t *rng, uint32_t site, int32_t dtype) {
  const char *op = "fa_embedding_forward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(C);
  CHECK_SIZE(V);
  CHECK_SIZE(P);
  CHECK(check_dropout(ctx, op, dropout, rng));
  if (rows && C) {
    CHECK_DATA(out);
    CHECK_DATA(ids);
    if (V) CHECK_DATA(table);
    if (positions) CHECK_DATA(pos);
  }
  Embedding e{};
  e.out = (float *)out;
  e.ids = ids;
  e.pos = pos;
  e.table = (const float *)table;
  e.positions = positions;
  e.rows = rows;
  e.C = C;
  e.V = V;
  e.P = P;
  e.scale = scale;
  e.dropout = make_dropout(dropout, rng, site);
  return submit(ctx, [=] { ctx->kernels->embedding_forward(e); });
}

fa_status fa_embedding_backward(fa_ctx *ctx, float *dtable, const int32_t *ids, const void *dout, int32_t rows,
                                int32_t C, int32_t V, int32_t skip_id, float scale, float dropout, const uint64_t *rng,
                                uint32_t site, int32_t dtype, int32_t accumulate, void *workspace,
                                int64_t workspace_bytes) {
  const char *op = "fa_embedding_backward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(C);
  CHECK_SIZE(V);
  CHECK(check_dropout(ctx, op, dropout, rng));
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, 0));
  if (V && C) {
    CHECK_DATA(dtable);
    if (rows) CHECK_DATA(ids);
    if (rows) CHECK_DATA(dout);
  }
  Embedding e{};
  e.dtable = dtable;
  e.dout = (const float *)dout;
  e.ids = ids;
  e.rows = rows;
  e.C = C;
  e.V = V;
  e.skip_id = skip_id;
  e.accumulate = accumulate;
  e.scale = scale;
  e.dropout = make_dropout(dropout, rng, site);
  return submit(ctx, [=] { ctx->kernels->embedding_backward(e); });
}

fa_status fa_residual_norm_forward(fa_ctx *ctx, void *sum, void *out, float *mean, float *rstd, const void *x,
                                   const void *branch, const void *gamma, const void *beta, int32_t rows, int32_t C,
                                   float eps, float dropout, const uint64_t *rng, uint32_t site, int32_t dtype) {
  const char *op = "fa_residual_norm_forward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(C);
  CHECK(check_dropout(ctx, op, dropout, rng));
  if (rows && C) {
    CHECK_DATA(x);
    if (branch || !out) CHECK_DATA(sum);
    if (out) CHECK_DATA(gamma);
    if (out) CHECK_DATA(beta);
  }
  if (rows && out) {
    CHECK_DATA(mean);
    CHECK_DATA(rstd);
  }
  ResidualNorm r{(float *)sum, (float *)out, mean, rstd, (const float *)x, (const float *)branch, (const float *)gamma,
                 (const float *)beta, rows, C, eps, make_dropout(dropout, rng, site)};
  return submit(ctx, [=] { ctx->kernels->residual_norm_forward(r); });
}

fa_status fa_residual_norm_backward(fa_ctx *ctx, void *dx, void *dbranch, float *dgamma, float *dbeta, const void *dout,
                                    const void *dsum, const void *sum, const float *mean, const float *rstd,
                                    const void *gamma, int32_t rows, int32_t C, float dropout, const uint64_t *rng,
                                    uint32_t site, int32_t dtype, int32_t accumulate, void *workspace,
                                    int64_t workspace_bytes) {
  const char *op = "fa_residual_norm_backward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(C);
  CHECK(check_dropout(ctx, op, dropout, rng));
  if (rows && C) {
    CHECK_DATA(dx);
    if (dout) {
      CHECK_DATA(sum);
      CHECK_DATA(mean);
      CHECK_DATA(rstd);
      CHECK_DATA(gamma);
    }
  }
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, dgamma || dbeta ? column_sum_bytes(2, C) : 0));
  ResidualNormGrad r{(float *)dx, (float *)dbranch, dgamma, dbeta, (const float *)dout, (const float *)dsum,
                     (const float *)sum, mean, rstd, (const float *)gamma, rows, C, accumulate,
                     make_dropout(dropout, rng, site), (float *)workspace};
  return submit(ctx, [=] { ctx->kernels->residual_norm_backward(r); });
}

fa_status fa_bias_relu_dropout_forward(fa_ctx *ctx, void *y, const void *x, const void *bias, int32_t rows, int32_t n,
                                       float dropout, const uint64_t *rng, uint32_t site, int32_t dtype) {
  const char *op = "fa_bias_relu_dropout_forward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(n);
  CHECK(check_dropout(ctx, op, dropout, rng));
  if (rows && n) {
    CHECK_DATA(y);
    CHECK_DATA(x);
  }
  Dropout d = make_dropout(dropout, rng, site);
  return submit(ctx, [=] {
    ctx->kernels->bias_relu_dropout_forward((float *)y, (const float *)x, (const float *)bias, rows, n, d);
  });
}

fa_status fa_bias_relu_dropout_backward(fa_ctx *ctx, void *dx, float *dbias, const void *dy, const void *y,
                                        int32_t rows, int32_t n, float dropout, int32_t dtype, int32_t accumulate,
                                        void *workspace, int64_t workspace_bytes) {
  const char *op = "fa_bias_relu_dropout_backward";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(n);
  FA_REQUIRE(ctx, dropout >= 0 && dropout < 1, FA_INVALID,
             "Cannot run %s as dropout must be in [0, 1): current value is %g", op, (double)dropout);
  if (rows && n) {
    CHECK_DATA(dx);
    CHECK_DATA(dy);
    CHECK_DATA(y);
  }
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, dbias ? column_sum_bytes(1, n) : 0));
  float scale = make_dropout(dropout, nullptr, 0).scale;
  return submit(ctx, [=] {
    ctx->kernels->bias_relu_dropout_backward((float *)dx, dbias, (const float *)dy, (const float *)y, rows, n, scale,
                                             accumulate, (float *)workspace);
  });
}

fa_status fa_dropout(fa_ctx *ctx, void *y, const void *x, int64_t n, float dropout, const uint64_t *rng, uint32_t site,
                     int32_t dtype) {
  const char *op = "fa_dropout";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(n);
  CHECK(check_dropout(ctx, op, dropout, rng));
  if (n) {
    CHECK_DATA(y);
    CHECK_DATA(x);
  }
  Dropout d = make_dropout(dropout, rng, site);
  return submit(ctx, [=] { ctx->kernels->dropout((float *)y, (const float *)x, n, d); });
}

fa_status fa_add(fa_ctx *ctx, void *out, const void *a, const void *b, int64_t n, int32_t dtype) {
  const char *op = "fa_add";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(n);
  if (n) {
    CHECK_DATA(out);
    CHECK_DATA(a);
    CHECK_DATA(b);
  }
  return submit(ctx, [=] { ctx->kernels->add((float *)out, (const float *)a, (const float *)b, n); });
}

// ---- sums, loss, optimizer, decoding ------------------------------------------------------------------------------

fa_status fa_column_sum(fa_ctx *ctx, float *out, const void *x, int32_t rows, int32_t n, int64_t stride, int32_t dtype,
                        int32_t accumulate, void *workspace, int64_t workspace_bytes) {
  const char *op = "fa_column_sum";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  CHECK_SIZE(n);
  FA_REQUIRE(ctx, stride >= n, FA_INVALID, "Cannot run %s as stride must be at least n = %d: current value is %lld", op,
             n, (long long)stride);
  if (n) CHECK_DATA(out);
  if (n && rows) CHECK_DATA(x);
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, column_sum_bytes(1, n)));
  return submit(ctx, [=] {
    ctx->kernels->column_sum(out, (const float *)x, rows, n, stride, accumulate, (float *)workspace);
  });
}

fa_status fa_sum(fa_ctx *ctx, float *out, const float *x, int64_t n, int32_t accumulate, void *workspace,
                 int64_t workspace_bytes) {
  const char *op = "fa_sum";
  if (!ctx) return FA_INVALID;
  CHECK_SIZE(n);
  CHECK_DATA(out);
  if (n) CHECK_DATA(x);
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, 0));
  return submit(ctx, [=] { ctx->kernels->sum(out, x, n, accumulate); });
}

fa_status fa_cross_entropy(fa_ctx *ctx, float *loss, float *nll, int32_t *correct, void *logits, const int32_t *targets,
                           int32_t rows, int32_t V, int64_t stride, float smoothing, int32_t pad_id,
                           const float *grad_scale, int32_t with_gradient, int32_t dtype) {
  const char *op = "fa_cross_entropy";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  FA_REQUIRE(ctx, V >= 1, FA_INVALID, "Cannot run %s as V must be at least 1: current value is %d", op, V);
  FA_REQUIRE(ctx, stride >= V, FA_INVALID, "Cannot run %s as stride must be at least V = %d: current value is %lld", op,
             V, (long long)stride);
  FA_REQUIRE(ctx, smoothing >= 0 && smoothing <= 1, FA_INVALID,
             "Cannot run %s as smoothing must be in [0, 1]: current value is %g", op, (double)smoothing);
  if (rows) {
    CHECK_DATA(loss);
    CHECK_DATA(nll);
    CHECK_DATA(logits);
    CHECK_DATA(targets);
    if (with_gradient) CHECK_DATA(grad_scale);
  }
  CrossEntropy c{loss, nll, correct, (float *)logits, targets, rows, V, stride, smoothing, pad_id, grad_scale,
                 with_gradient};
  return submit(ctx, [=] { ctx->kernels->cross_entropy(c); });
}

fa_status fa_grad_norm(fa_ctx *ctx, float *norm, const float *grad, int64_t n, float max_norm, void *workspace,
                       int64_t workspace_bytes) {
  const char *op = "fa_grad_norm";
  if (!ctx) return FA_INVALID;
  CHECK_SIZE(n);
  CHECK_DATA(norm);
  if (n) CHECK_DATA(grad);
  CHECK(check_workspace(ctx, op, workspace, workspace_bytes, 0));
  return submit(ctx, [=] { ctx->kernels->grad_norm(norm, grad, n, max_norm); });
}

fa_status fa_adam(fa_ctx *ctx, void *weights, float *master, float *m, float *v, const float *grad, int64_t n,
                  const float *hyper, const float *norm, float beta1, float beta2, float eps, float weight_decay,
                  int32_t dtype) {
  const char *op = "fa_adam";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(n);
  if (n) {
    CHECK_DATA(weights);
    CHECK_DATA(master);
    CHECK_DATA(m);
    CHECK_DATA(v);
    CHECK_DATA(grad);
    CHECK_DATA(hyper);
  }
  Adam a{(float *)weights, master, m, v, grad, n, hyper, norm, beta1, beta2, eps, weight_decay};
  return submit(ctx, [=] { ctx->kernels->adam(a); });
}

fa_status fa_random_uniform(fa_ctx *ctx, float *x, int64_t n, float low, float high, uint64_t seed, uint32_t site) {
  const char *op = "fa_random_uniform";
  if (!ctx) return FA_INVALID;
  CHECK_SIZE(n);
  if (n) CHECK_DATA(x);
  return submit(ctx, [=] { ctx->kernels->random_uniform(x, n, low, high, seed, site); });
}

fa_status fa_topk(fa_ctx *ctx, float *scores, int32_t *ids, const void *logits, int32_t rows, int32_t V, int64_t stride,
                  int32_t k, int32_t dtype) {
  const char *op = "fa_topk";
  if (!ctx) return FA_INVALID;
  CHECK(check_type(ctx, op, dtype));
  CHECK_SIZE(rows);
  FA_REQUIRE(ctx, k >= 1 && k <= 64 && k <= V, FA_INVALID,
             "Cannot run %s as k must be in 1 .. min(64, V = %d): current value is %d", op, V, k);
  FA_REQUIRE(ctx, stride >= V, FA_INVALID, "Cannot run %s as stride must be at least V = %d: current value is %lld", op,
             V, (long long)stride);
  if (rows) {
    CHECK_DATA(scores);
    CHECK_DATA(ids);
    CHECK_DATA(logits);
  }
  return submit(ctx, [=] { ctx->kernels->topk(scores, ids, (const float *)logits, rows, V, stride, k); });
}

fa_status fa_cast(fa_ctx *ctx, void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, int64_t n) {
  const char *op = "fa_cast";
  if (!ctx) return FA_INVALID;
  CHECK_SIZE(n);
  FA_REQUIRE(ctx, dst_dtype >= FA_F32 && dst_dtype <= FA_F16 && src_dtype >= FA_F32 && src_dtype <= FA_F16, FA_INVALID,
             "Cannot run %s as dtypes must be in 0 .. 2: current values are %d and %d", op, dst_dtype, src_dtype);
  if (n) {
    CHECK_DATA(dst);
    CHECK_DATA(src);
  }
  return submit(ctx, [=] { ctx->kernels->cast(dst, dst_dtype, src, src_dtype, n); });
}
