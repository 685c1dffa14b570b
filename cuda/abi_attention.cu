// fa_attention_*: checks of every number and pointer; attention/ does the work.
#include <cmath>

#include "attention/attention.cuh"

namespace fa {
namespace {

fa_status check_numbers(fa_ctx *ctx, const fa_attention_args &a) {
  FA_TRY(check_dtype(ctx, a.dtype, false));
  FA_TRY(check_range(ctx, a.form, FA_DOTSCALE, FA_IMP_FLASH, "form"));
  FA_TRY(check_range(ctx, a.rows_q, 0, INT32_MAX, "rows_q"));
  FA_TRY(check_range(ctx, a.rows_k, 0, INT32_MAX, "rows_k"));
  FA_TRY(check_range(ctx, a.max_q, 0, INT32_MAX / 2, "max_q"));
  FA_TRY(check_range(ctx, a.max_k, 0, INT32_MAX / 2, "max_k"));
  FA_TRY(check_range(ctx, a.B, 0, INT32_MAX - 1, "B"));
  FA_TRY(check_range(ctx, a.H, 1, 65535, "H"));
  FA_TRY(check_range(ctx, a.D, 8, 128, "D"));
  if (a.D % 8 != 0) return fail(ctx, FA_INVALID, "D must be a multiple of 8: current value is %d", a.D);
  if (!std::isfinite(a.scale)) return fail(ctx, FA_INVALID, "scale must be finite: current value is %g", a.scale);
  if (!(a.dropout >= 0.0f && a.dropout < 1.0f)) {
    return fail(ctx, FA_INVALID, "dropout must be in [0, 1): current value is %g", a.dropout);
  }
  return FA_OK;
}

// A tensor [rows, H, D] by row stride; nothing is looked at where it has no rows.
fa_status check_tensor(fa_ctx *ctx, const fa_attention_args &a, const void *pointer, int64_t stride, int32_t rows,
                       const char *name) {
  if (rows == 0) return FA_OK;
  FA_TRY(check_pointer(ctx, pointer, name));
  const int64_t width = static_cast<int64_t>(a.H) * a.D;
  if (stride < width || stride % 8 != 0) {
    return fail(ctx, FA_INVALID, "the stride of %s must be a multiple of 8 and >= H * D = %lld: current value is %lld",
                name, static_cast<long long>(width), static_cast<long long>(stride));
  }
  return FA_OK;
}

fa_status check_sizes(fa_ctx *ctx, const fa_attention_args &a, bool backward) {
  int64_t sizes[3] = {};
  FA_TRY(attention_sizes(ctx, a, sizes));
  const int64_t workspace = sizes[backward ? 2 : 0];
  FA_TRY(check_workspace(ctx, a.workspace, a.workspace_bytes, workspace));
  if (a.saved_bytes < sizes[1]) {
    return fail(ctx, FA_INVALID, "saved_bytes must be >= %lld: current value is %lld", static_cast<long long>(sizes[1]),
                static_cast<long long>(a.saved_bytes));
  }
  if (sizes[1] > 0) FA_TRY(check_pointer(ctx, a.saved, "saved"));
  return FA_OK;
}

fa_status check_shared(fa_ctx *ctx, const fa_attention_args &a) {
  FA_TRY(check_numbers(ctx, a));
  FA_TRY(check_dropout(ctx, a.dropout, a.rng));
  FA_TRY(check_tensor(ctx, a, a.q, a.q_stride, a.rows_q, "q"));
  FA_TRY(check_tensor(ctx, a, a.k, a.k_stride, a.rows_k, "k"));
  FA_TRY(check_tensor(ctx, a, a.v, a.v_stride, a.rows_k, "v"));
  FA_TRY(check_tensor(ctx, a, a.out, a.out_stride, a.rows_q, "out"));
  if (a.rows_q > 0) FA_TRY(check_pointer(ctx, a.lse, "lse", 4));
  FA_TRY(check_pointer(ctx, a.cu_q, "cu_q", 4));
  FA_TRY(check_pointer(ctx, a.cu_k, "cu_k", 4));
  return check_optional(ctx, a.key_len, "key_len", 4);
}

fa_status check_gradients(fa_ctx *ctx, const fa_attention_args &a) {
  FA_TRY(check_tensor(ctx, a, a.dout, a.dout_stride, a.rows_q, "dout"));
  FA_TRY(check_tensor(ctx, a, a.dq, a.dq_stride, a.rows_q, "dq"));
  FA_TRY(check_tensor(ctx, a, a.dk, a.dk_stride, a.rows_k, "dk"));
  return check_tensor(ctx, a, a.dv, a.dv_stride, a.rows_k, "dv");
}

}  // namespace
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_attention_sizes(fa_ctx *ctx, const fa_attention_args *args, int64_t *sizes) {
  return fa::entry(ctx, "fa_attention_sizes", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, args, "args", alignof(fa_attention_args)));
    FA_TRY(fa::check_pointer(ctx, sizes, "sizes", alignof(int64_t)));
    FA_TRY(fa::check_numbers(ctx, *args));
    return fa::attention_sizes(ctx, *args, sizes);
  });
}

extern "C" FA_EXPORT fa_status fa_attention_forward(fa_ctx *ctx, const fa_attention_args *args) {
  return fa::entry(ctx, "fa_attention_forward", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, args, "args", alignof(fa_attention_args)));
    const fa_attention_args copy = *args;
    FA_TRY(fa::check_shared(ctx, copy));
    FA_TRY(fa::check_sizes(ctx, copy, false));
    return fa::attention_forward(ctx, copy);
  });
}

extern "C" FA_EXPORT fa_status fa_attention_backward(fa_ctx *ctx, const fa_attention_args *args) {
  return fa::entry(ctx, "fa_attention_backward", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, args, "args", alignof(fa_attention_args)));
    const fa_attention_args copy = *args;
    FA_TRY(fa::check_shared(ctx, copy));
    FA_TRY(fa::check_gradients(ctx, copy));
    FA_TRY(fa::check_sizes(ctx, copy, true));
    return fa::attention_backward(ctx, copy);
  });
}
