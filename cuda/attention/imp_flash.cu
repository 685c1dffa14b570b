// imp_flash_attn where no Hopper kernel takes the call: sizes, and the choice of type.
#include "forms.cuh"
#include "imp_flash.cuh"

namespace fa {

void imp_flash_sizes(const fa_attention_args &args, int64_t *sizes) {
  sizes[0] = sizes[1] = 0;
  sizes[2] = stats_bytes(args) + (imp::dq_mode(args) == imp::Dq::kAdd ? imp::accumulator_bytes(args) : 0);
}

fa_status imp_flash_forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? imp::forward_fp16(ctx, args) : imp::forward_bf16(ctx, args);
}

fa_status imp_flash_backward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? imp::backward_fp16(ctx, args) : imp::backward_bf16(ctx, args);
}

}  // namespace fa
