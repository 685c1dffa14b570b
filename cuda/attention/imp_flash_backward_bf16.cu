#include "imp_flash.cuh"

namespace fa::imp {
fa_status backward_bf16(fa_ctx *ctx, const fa_attention_args &args) { return backward<__nv_bfloat16>(ctx, args); }
}  // namespace fa::imp
