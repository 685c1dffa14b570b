#include "imp_flash.cuh"

namespace fa::imp {
fa_status forward_bf16(fa_ctx *ctx, const fa_attention_args &args) { return forward<__nv_bfloat16>(ctx, args); }
}  // namespace fa::imp
