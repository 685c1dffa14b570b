// imp_flash_attn on Hopper (wgmma, TMA): hopper_forward_sm90a.cu and hopper_backward_sm90a.cu, built for sm_90a alone.
// dispatch.cu asks *_supported with the numbers of the arguments (pointers may be NULL there) and takes the portable
// kernels where the answer is false. Forward and backward may be mixed freely: both speak through out and lse alone.
#ifndef FLASHATTN_HOPPER_CUH
#define FLASHATTN_HOPPER_CUH

#include "../context.cuh"

namespace fa::hopper {

bool forward_supported(const fa_ctx *ctx, const fa_attention_args &args);
int64_t forward_workspace_bytes(const fa_ctx *ctx, const fa_attention_args &args);
fa_status forward(fa_ctx *ctx, const fa_attention_args &args);

bool backward_supported(const fa_ctx *ctx, const fa_attention_args &args);
int64_t backward_workspace_bytes(const fa_ctx *ctx, const fa_attention_args &args);
fa_status backward(fa_ctx *ctx, const fa_attention_args &args);

}  // namespace fa::hopper

#endif
