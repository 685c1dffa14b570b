#include "dotscale.cuh"

namespace fa::dotscale {
fa_status forward_bf16(fa_ctx *ctx, const fa_attention_args &args) { return forward<__nv_bfloat16>(ctx, args); }
fa_status backward_bf16(fa_ctx *ctx, const fa_attention_args &args) { return backward<__nv_bfloat16>(ctx, args); }
}  // namespace fa::dotscale
