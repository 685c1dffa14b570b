// The forward pass on Hopper: which shape of the kernel serves which problem.
#include "hopper.cuh"
#include "hopper_forward.cuh"

namespace fa::hopper {
namespace {

// Shapes, named by pairs x warpgroups of 64 rows and keys of a step. One score buffer, no polynomials: see the notes on
// what else was measured in cuda/README.md.
template <class T, int D, int Pairs, int Groups, int Keys, int Stages, bool Dropout>
fa_status run(fa_ctx *ctx, const fa_attention_args &args) {
  return launch_forward<ForwardConfig<T, D, Pairs, Groups, Keys, Stages, 2, 1, false, 0, Dropout>>(ctx, args);
}

// Four warpgroups that share K and V, or four pairs that take 64-row tiles on their own? The first where sequences fill
// tiles of 256 rows and there are enough of those for every multiprocessor.
bool shares_keys(const fa_ctx *ctx, const fa_attention_args &args) {
  const int64_t tiles = ceil_div(args.max_q, 256);
  if (tiles * heads_of(args) < ctx->sm_count) return false;
  if (args.rows_q < static_cast<int64_t>(args.B) * args.max_q * 3 / 4) return false;  // of varied lengths
  const bool fills = args.max_q * 10 > tiles * 256 * 9;
  return args.max_q > 1536 || (args.max_q > 448 ? fills : args.causal != 0);
}

template <class T>
fa_status run_typed(fa_ctx *ctx, const fa_attention_args &args) {
  const bool dropout = args.dropout > 0.0f;
  if (args.D == 128) return dropout ? run<T, 128, 1, 2, 64, 3, true>(ctx, args) : run<T, 128, 1, 2, 128, 2, false>(ctx, args);
  if (dropout) return run<T, 64, 3, 1, 64, 3, true>(ctx, args);
  if (shares_keys(ctx, args)) return run<T, 64, 1, 4, 64, 6, false>(ctx, args);
  return run<T, 64, 4, 1, 64, 2, false>(ctx, args);
}

}  // namespace

bool forward_supported(const fa_ctx *, const fa_attention_args &args) {
  return (args.D == 64 || args.D == 128) && (args.dtype == FA_BF16 || args.dtype == FA_F16);
}

int64_t forward_workspace_bytes(const fa_ctx *, const fa_attention_args &) { return 0; }

fa_status forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_BF16 ? run_typed<__nv_bfloat16>(ctx, args) : run_typed<__half>(ctx, args);
}

}  // namespace fa::hopper
