// The backward pass on Hopper: which kernels serve which problem.
#include "hopper.cuh"
#include "hopper_backward_fused_wide.cuh"
#include "hopper_backward_key.cuh"
#include "hopper_backward_query.cuh"
#include "hopper_backward_short.cuh"

namespace fa::hopper {
namespace {

// Lengths from which the fused kernel is faster than one kernel for dq and one for dk and dv: D 64, with and without a
// causal mask, and D 128. Its five products take less power than their seven: where a call lasts, that counts.
constexpr int kLong = 1500, kLongCausal = 3000, kLongWide = 600;

bool is_short(const fa_attention_args &args) { return args.max_q <= kShortRows && args.max_k <= kShortRows; }

// The fused kernel alone adds in no fixed order. At D 128 its registers hold no dropout.
bool is_fused(const fa_attention_args &args) {
  if (args.deterministic != 0) return false;
  if (args.D == 64) return args.max_k >= (args.causal ? kLongCausal : kLong);
  return args.dropout == 0.0f && args.max_k >= kLongWide;
}

// Tiles that the length fills.
template <class T, bool Dropout>
fa_status run_query64(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  if (p.a.max_q <= 256) return launch_backward_query<QueryConfig<T, 64, 2, 64, 4, 2, Dropout>>(ctx, p, stats);
  return launch_backward_query<QueryConfig<T, 64, 3, 64, 4, 2, Dropout>>(ctx, p, stats);
}

// Longer steps where there are many; a dropout call serves 32 queries.
template <class T, bool Dropout>
fa_status run_key64(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  if constexpr (Dropout) {
    return launch_backward_key<KeyConfig<T, 64, 2, 64, 3, 2, true>>(ctx, p, stats);
  } else {
    const bool many = p.a.max_q >= (p.a.causal ? 1500 : 900);
    if (many) return launch_backward_key<KeyConfig<T, 64, 2, 96, 4, 2, false>>(ctx, p, stats);
    return launch_backward_key<KeyConfig<T, 64, 2, 80, 4, 2, false>>(ctx, p, stats);
  }
}

template <class T, int D, bool Dropout>
using Fused = FusedConfig<T, D, 3, Dropout>;

template <class T, bool Dropout>
fa_status run64(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  if (is_short(p.a)) return launch_backward_short<ShortConfig<T, 64, 2, Dropout>>(ctx, p);
  if (is_fused(p.a)) return launch_backward_fused<Fused<T, 64, Dropout>>(ctx, p, stats);
  FA_TRY((run_query64<T, Dropout>(ctx, p, stats)));
  return run_key64<T, Dropout>(ctx, p, stats);
}

template <class T, bool Dropout>
fa_status run128(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  if (is_short(p.a)) return launch_backward_short<ShortConfig<T, 128, 1, Dropout>>(ctx, p);
  if constexpr (!Dropout) {
    using C = Fused<T, 128, false>;
    if (is_fused(p.a)) return launch_backward_fused<C, WideConsumer<C>>(ctx, p, stats);
  }
  FA_TRY((launch_backward_query<QueryConfig<T, 128, 2, Dropout ? 64 : 80, 3, 1, Dropout>>(ctx, p, stats)));
  return launch_backward_key<KeyConfig<T, 128, 2, 48, 3, 2, Dropout>>(ctx, p, stats);
}

template <class T, bool Dropout>
fa_status run(fa_ctx *ctx, const fa_attention_args &args) {
  const Problem p = make_problem(args);
  const RowStats stats = row_stats_at(args, args.workspace);
  return args.D == 64 ? run64<T, Dropout>(ctx, p, stats) : run128<T, Dropout>(ctx, p, stats);
}

template <class T>
fa_status run_typed(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dropout > 0.0f ? run<T, true>(ctx, args) : run<T, false>(ctx, args);
}

}  // namespace

bool backward_supported(const fa_ctx *, const fa_attention_args &args) {
  return (args.D == 64 || args.D == 128) && (args.dtype == FA_BF16 || args.dtype == FA_F16);
}

int64_t backward_workspace_bytes(const fa_ctx *ctx, const fa_attention_args &args) {
  if (is_short(args)) return 0;
  if (!is_fused(args)) return row_stats_bytes(args);
  return args.D == 64 ? fused_workspace_bytes<Fused<__half, 64, false>>(ctx, args)
                      : fused_workspace_bytes<Fused<__half, 128, false>>(ctx, args);
}

fa_status backward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_BF16 ? run_typed<__nv_bfloat16>(ctx, args) : run_typed<__half>(ctx, args);
}

}  // namespace fa::hopper
