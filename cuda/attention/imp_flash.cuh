// The launches of imp_flash_attn's portable kernels; one .cu file per type and pass instantiates them.
#ifndef FLASHATTN_IMP_FLASH_CUH
#define FLASHATTN_IMP_FLASH_CUH

#include "imp_flash_query.cuh"

namespace fa::imp {

fa_status forward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_fp16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_fp16(fa_ctx *ctx, const fa_attention_args &args);

// Columns of the tile that holds D: 32, 64 or 128.
inline int tile_columns(int D) { return D <= 32 ? 32 : D <= 64 ? 64 : 128; }

// Keys of a tile of the backward pass.
constexpr int kBackwardBlock = 128;

inline int64_t accumulator_bytes(const fa_attention_args &a) {
  return accumulator_rows(a.rows_q, a.B) * a.H * tile_columns(a.D) * 4;
}

inline Dq dq_mode(const fa_attention_args &a) {
  if (a.max_k <= kBackwardBlock) return Dq::kStore;
  return a.deterministic != 0 ? Dq::kLeave : Dq::kAdd;
}

// Workspace of the backward pass.
inline int64_t backward_bytes(const fa_attention_args &a) {
  return stats_bytes(a) + (dq_mode(a) == Dq::kAdd ? accumulator_bytes(a) : 0);
}

template <class T>
fa_status forward(fa_ctx *ctx, const fa_attention_args &args) {
  switch (tile_columns(args.D)) {
    case 32: return launch_forward<ForwardConfig<T, 32, 2, 64, 2, 2>>(ctx, args);
    case 64:
      // Short causal sequences waste less of small tiles.
      if (args.max_q <= 64 || (args.causal != 0 && args.max_q <= 1024)) {
        return launch_forward<ForwardConfig<T, 64, 1, 64, 2, 3>>(ctx, args);
      }
      return launch_forward<ForwardConfig<T, 64, 2, 64, 2, 2>>(ctx, args);
    default: return launch_forward<ForwardConfig<T, 128, 2, 32, 2, 2>>(ctx, args);
  }
}

template <class C, bool with_dropout>
fa_status launch_backward(fa_ctx *ctx, const Problem &p, const BackwardBuffers &buffers, Dq mode) {
  const int64_t tiles = p.a.max_k > 0 ? ceil_div(p.a.max_k, C::block) : 1;
  const int64_t blocks = tiles * p.a.H * (static_cast<int64_t>(p.a.B) + 1);
  FA_TRY(check_grid(ctx, blocks));
  auto kernel = backward_kernel<C, with_dropout>;
  FA_TRY(allow_shared(ctx, kernel, C::shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), C::threads, C::shared_bytes, ctx->stream>>>(p, buffers, mode,
                                                                                      static_cast<int>(tiles));
  return FA_LAUNCHED(ctx, "imp_flash backward");
}

// dq from its accumulator, or all of it in a fixed order.
template <class T, int columns>
fa_status launch_dq(fa_ctx *ctx, const Problem &p, const BackwardBuffers &buffers, Dq mode) {
  const int64_t rows = mode == Dq::kAdd ? kBackwardRows : 64;
  const int64_t tiles = p.a.max_q > 0 ? ceil_div(p.a.max_q, rows) : 1;
  const int64_t blocks = tiles * p.a.H * (static_cast<int64_t>(p.a.B) + 1);
  FA_TRY(check_grid(ctx, blocks));
  if (mode == Dq::kAdd) {
    convert_dq_kernel<T, columns><<<static_cast<unsigned>(blocks), 128, 0, ctx->stream>>>(p, buffers.dq_sum,
                                                                                         static_cast<int>(tiles));
    return FA_LAUNCHED(ctx, "imp_flash dq conversion");
  }
  constexpr int shared = query_shared_bytes<T, columns>();
  auto kernel = query_kernel<T, columns>;
  FA_TRY(allow_shared(ctx, kernel, shared));
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared, ctx->stream>>>(p, buffers.stats, static_cast<int>(tiles));
  return FA_LAUNCHED(ctx, "imp_flash dq in order");
}

template <class C, bool with_dropout>
fa_status backward_with(fa_ctx *ctx, const fa_attention_args &args) {
  using T = typename C::Type;
  static_assert(C::block == kBackwardBlock, "dq_mode knows the tile");
  const Problem p = make_problem(args);
  char *workspace = static_cast<char *>(args.workspace);
  const BackwardBuffers buffers{reinterpret_cast<float2 *>(workspace),
                                reinterpret_cast<float *>(workspace + stats_bytes(args))};
  const Dq mode = dq_mode(args);
  const int64_t zeros = mode == Dq::kAdd ? accumulator_bytes(args) / 16 : 0;
  FA_TRY(launch_stats<T>(ctx, p, buffers.stats, reinterpret_cast<float4 *>(buffers.dq_sum), zeros));
  FA_TRY((launch_backward<C, with_dropout>(ctx, p, buffers, mode)));
  if (mode == Dq::kStore) return FA_OK;
  return launch_dq<T, C::columns>(ctx, p, buffers, mode);
}

// A device with 99 KB of shared memory takes single buffers: two blocks of head dimension 64 fit, or one of 128. With
// dropout the warps of head dimension 64 own 16 keys rather than 32: the generator needs the registers.
template <class T, bool with_dropout>
fa_status backward_as(fa_ctx *ctx, const fa_attention_args &args) {
  const bool small = ctx->shared_bytes_optin < 128 * 1024;
  const int columns = tile_columns(args.D);
  if (columns == 32) return backward_with<BackwardConfig<T, 32, 2, 4, 2, 2>, with_dropout>(ctx, args);
  if (columns == 64) {
    if constexpr (with_dropout) {
      return backward_with<BackwardConfig<T, 64, 1, 8, 2, 1>, true>(ctx, args);
    } else {
      return small ? backward_with<BackwardConfig<T, 64, 2, 4, 1, 2>, false>(ctx, args)
                   : backward_with<BackwardConfig<T, 64, 2, 4, 2, 2>, false>(ctx, args);
    }
  }
  return small ? backward_with<BackwardConfig<T, 128, 1, 8, 1, 1>, with_dropout>(ctx, args)
               : backward_with<BackwardConfig<T, 128, 1, 8, 2, 1>, with_dropout>(ctx, args);
}

template <class T>
fa_status backward(fa_ctx *ctx, const fa_attention_args &args) {
  const bool dropout = dropout_params(args.dropout, args.rng, args.site).threshold != 0;
  return dropout ? backward_as<T, true>(ctx, args) : backward_as<T, false>(ctx, args);
}

}  // namespace fa::imp

#endif
