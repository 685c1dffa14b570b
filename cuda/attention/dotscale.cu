// dotscale: sizes, and the choice of type.
#include "dotscale.cuh"
#include "forms.cuh"

namespace fa {

void dotscale_sizes(const fa_attention_args &args, int64_t *sizes) {
  const int64_t bytes = dotscale::matrix_bytes(args);
  sizes[0] = args.dropout > 0.0f ? bytes : 0;  // the probabilities that were kept
  sizes[1] = bytes;                            // the probabilities
  sizes[2] = bytes;                            // their gradients
}

fa_status dotscale_forward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? dotscale::forward_fp16(ctx, args) : dotscale::forward_bf16(ctx, args);
}

fa_status dotscale_backward(fa_ctx *ctx, const fa_attention_args &args) {
  return args.dtype == FA_F16 ? dotscale::backward_fp16(ctx, args) : dotscale::backward_bf16(ctx, args);
}

}  // namespace fa
