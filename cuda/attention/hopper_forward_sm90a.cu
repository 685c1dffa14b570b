// The forward pass on Hopper: which shape of the kernel serves which problem.
#include "hopper.cuh"
#include "hopper_forward.cuh"
#include "hopper_forward_short.cuh"

namespace fa::hopper {
namespace {

template <class T, int D, int Pairs, int Groups, int Keys, int Stages, bool Dropout>
fa_status run(fa_ctx *ctx, const fa_attention_args &args) {
  return launch_forward<ForwardConfig<T, D, Pairs, Groups, Keys, Stages, Dropout>>(ctx, args);
}

bool varied_lengths(const fa_attention_args &args) {
  return args.rows_q < static_cast<int64_t>(args.B) * args.max_q * 3 / 4;
}

// D 64: how many of the four warpgroups of a block share K and V, and with that the rows of a tile: 256, 128 or 64.
// Small tiles for sequences of varied lengths, for those that leave large tiles half empty, and where there are too
// few tiles.
int sharing_groups(const fa_ctx *ctx, const fa_attention_args &args) {
  const int64_t tiles = ceil_div(args.max_q, 256);
  if (varied_lengths(args) || tiles * heads_of(args) < ctx->sm_count) return 1;
  const bool fills = args.max_q * 10ll > tiles * 256 * 9;
  return fills || args.max_q > 1536 || args.max_q <= 448 ? 4 : 2;
}

// Up to 64 rows always; up to 112, where five blocks fit a multiprocessor, if lengths vary.
bool is_short(const fa_attention_args &args) {
  const int longest = std::max(args.max_q, args.max_k);
  return short_forward_supported(args) && (longest <= 64 || (longest <= 112 && varied_lengths(args)));
}

template <class T>
fa_status run_short(fa_ctx *ctx, const fa_attention_args &args) {
  if (std::max(args.max_q, args.max_k) <= 64) return launch_forward_short<ShortForwardConfig<T, 2, 6>>(ctx, args);
  return launch_forward_short<ShortForwardConfig<T, 3, 5>>(ctx, args);
}

template <class T>
fa_status run_wide(fa_ctx *ctx, const fa_attention_args &args) {
  if (args.dropout > 0.0f) return run<T, 128, 1, 2, 64, 3, true>(ctx, args);
  if (args.causal && args.max_q <= 1280) return run<T, 128, 1, 2, 128, 2, false>(ctx, args);
  return run<T, 128, 1, 3, 64, 3, false>(ctx, args);
}

template <class T>
fa_status run_narrow(fa_ctx *ctx, const fa_attention_args &args) {
  if (args.dropout > 0.0f) return run<T, 64, 3, 1, 64, 3, true>(ctx, args);
  if (is_short(args)) return run_short<T>(ctx, args);
  switch (sharing_groups(ctx, args)) {
    case 4: return run<T, 64, 1, 4, 64, 8, false>(ctx, args);
    case 2: return run<T, 64, 2, 2, 64, 4, false>(ctx, args);
    default: return run<T, 64, 4, 1, 64, 2, false>(ctx, args);
  }
}

template <class T>
fa_status run_typed(fa_ctx *ctx, const fa_attention_args &args) {
  return args.D == 128 ? run_wide<T>(ctx, args) : run_narrow<T>(ctx, args);
}

}  // namespace

bool forward_supported(const fa_ctx *, const fa_attention_args &args) {
  return (args.D == 64 || args.D == 128) && (args.dtype == FA_BF16 || args.dtype == FA_F16);
}

int64_t forward_workspace_bytes(const fa_ctx *, const fa_attention_args &args) {
  return may_take_turns(args) ? kForwardWorkspaceBytes : 0;
}

fa_status forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_BF16 ? run_typed<__nv_bfloat16>(ctx, args) : run_typed<__half>(ctx, args);
}

}  // namespace fa::hopper
