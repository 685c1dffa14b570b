// Attention behind flashattn.h's fa_attention_*: one entry for three forms. The callers have checked every number and
// pointer of `args`; offsets and lengths in device memory are clamped by the kernels.
#ifndef FLASHATTN_ATTENTION_CUH
#define FLASHATTN_ATTENTION_CUH

#include "../context.cuh"

namespace fa {

// sizes[0] workspace of the forward pass, [1] saved, [2] workspace of the backward pass, in bytes.
fa_status attention_sizes(fa_ctx *ctx, const fa_attention_args &args, int64_t *sizes);
fa_status attention_forward(fa_ctx *ctx, const fa_attention_args &args);
fa_status attention_backward(fa_ctx *ctx, const fa_attention_args &args);

}  // namespace fa

#endif
