// flash_attn: sizes, and the choice of type.
#include "flash.cuh"
#include "forms.cuh"

namespace fa {

void flash_sizes(const fa_attention_args &args, int64_t *sizes) {
  sizes[0] = flash::sums_bytes(args);
  sizes[1] = 0;
  sizes[2] = stats_bytes(args) + flash::sums_bytes(args);
}

fa_status flash_forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? flash::forward_fp16(ctx, args) : flash::forward_bf16(ctx, args);
}

fa_status flash_backward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? flash::backward_fp16(ctx, args) : flash::backward_bf16(ctx, args);
}

}  // namespace fa
