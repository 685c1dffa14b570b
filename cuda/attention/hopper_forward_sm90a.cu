// The forward pass on Hopper: which shape of the kernel serves which problem.
#include "hopper.cuh"
#include "hopper_forward.cuh"

namespace fa::hopper {
namespace {

template <class T, int D, int Groups, int Keys, int Stages, int QStages, int Blocks, bool TwoScores>
fa_status run(fa_ctx *ctx, const fa_attention_args &args) {
  return launch_forward<ForwardConfig<T, D, Groups, Keys, Stages, QStages, Blocks, TwoScores, 0, false>>(ctx, args);
}

template <class T>
fa_status run_with_dropout(fa_ctx *ctx, const fa_attention_args &args) {
  if (args.D == 64) return launch_forward<ForwardConfig<T, 64, 2, 96, 6, 2, 1, true, 0, true>>(ctx, args);
  return launch_forward<ForwardConfig<T, 128, 2, 96, 3, 1, 1, false, 0, true>>(ctx, args);
}

// Short sequences: one warpgroup a block and three blocks a multiprocessor, which start, load and finish apart from each
// other. Long ones: warpgroups that share K and V.
template <class T>
fa_status run_plain(fa_ctx *ctx, const fa_attention_args &args) {
  if (args.D == 128) return run<T, 128, 2, 128, 2, 2, 1, false>(ctx, args);
  if (args.max_k <= 1024) return run<T, 64, 1, 64, 3, 3, 3, false>(ctx, args);
  if (args.max_k <= 3072) return run<T, 64, 2, 112, 5, 2, 1, true>(ctx, args);
  return run<T, 64, 3, 128, 4, 2, 1, false>(ctx, args);
}

template <class T>
fa_status run_typed(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dropout > 0.0f ? run_with_dropout<T>(ctx, args) : run_plain<T>(ctx, args);
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
