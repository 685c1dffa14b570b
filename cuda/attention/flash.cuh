// The launches of flash_attn; one .cu file per type instantiates them.
#ifndef FLASHATTN_FLASH_CUH
#define FLASHATTN_FLASH_CUH

#include "flash_backward.cuh"

namespace fa::flash {

fa_status forward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_fp16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_fp16(fa_ctx *ctx, const fa_attention_args &args);

inline int tile_columns(int D) { return D <= 64 ? 64 : 128; }

// The float copies of out (forward) and dq (backward); none where every sequence has one block of keys.
inline int64_t sums_bytes(const fa_attention_args &a) {
  const int block = a.D <= 64 ? 256 : 128;
  return a.max_k <= block ? 0 : int64_t{4} * a.rows_q * a.H * tile_columns(a.D);
}

// Blocks that share a head's queries: the fewest that fill the device's slots to 95 % of the best.
inline int query_splits(const fa_ctx *ctx, const fa_attention_args &a) {
  const int64_t heads = heads_of(a) > 0 ? heads_of(a) : 1;
  const double slots = 2.0 * ctx->sm_count;
  const int64_t most = ceil_div(a.max_q > 0 ? a.max_q : 1, kRows);
  auto efficiency = [&](int splits) {
    const double waves = heads * splits / slots;
    return waves / static_cast<double>(ceil_div(heads * splits, static_cast<int64_t>(slots)));
  };
  double best = 0.0;
  for (int splits = 1; splits <= 30 && splits <= most; splits++) {
    if (efficiency(splits) > best) best = efficiency(splits);
  }
  for (int splits = 1; splits <= 30 && splits <= most; splits++) {
    if (efficiency(splits) >= 0.95 * best) return splits;
  }
  return 1;
}

template <class T, int columns>
fa_status launch_forward(fa_ctx *ctx, const fa_attention_args &args) {
  const Problem p = make_problem(args);
  const int splits = query_splits(ctx, args);
  const int64_t blocks = static_cast<int64_t>(splits) * args.H * (static_cast<int64_t>(args.B) + 1);
  FA_TRY(check_grid(ctx, blocks));
  constexpr int shared = ForwardConfig<T, columns>::shared_bytes;
  auto kernel = p.dropout.threshold != 0 ? forward_kernel<T, columns, true> : forward_kernel<T, columns, false>;
  FA_TRY(allow_shared(ctx, kernel, shared));
  kernel<<<static_cast<unsigned>(blocks), 128, shared, ctx->stream>>>(p, static_cast<float *>(args.workspace), splits);
  return FA_LAUNCHED(ctx, "flash forward");
}

template <class T, int columns>
fa_status launch_backward(fa_ctx *ctx, const fa_attention_args &args) {
  const Problem p = make_problem(args);
  char *workspace = static_cast<char *>(args.workspace);
  float2 *stats = reinterpret_cast<float2 *>(workspace);
  FA_TRY(launch_stats<T>(ctx, p, stats, nullptr, 0));
  const int64_t blocks = args.H * (static_cast<int64_t>(args.B) + 1);
  FA_TRY(check_grid(ctx, blocks));
  constexpr int shared = BackwardConfig<T, columns>::shared_bytes;
  auto kernel = p.dropout.threshold != 0 ? backward_kernel<T, columns, true> : backward_kernel<T, columns, false>;
  FA_TRY(allow_shared(ctx, kernel, shared));
  kernel<<<static_cast<unsigned>(blocks), 256, shared, ctx->stream>>>(
      p, stats, reinterpret_cast<float *>(workspace + stats_bytes(args)));
  return FA_LAUNCHED(ctx, "flash backward");
}

template <class T>
fa_status forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.D <= 64 ? launch_forward<T, 64>(ctx, args) : launch_forward<T, 128>(ctx, args);
}

template <class T>
fa_status backward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.D <= 64 ? launch_backward<T, 64>(ctx, args) : launch_backward<T, 128>(ctx, args);
}

}  // namespace fa::flash

#endif
