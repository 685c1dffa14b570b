#include "imp_flash.cuh"

namespace fa::imp {
fa_status backward_fp16(fa_ctx *ctx, const fa_attention_args &args) { return backward<__half>(ctx, args); }
}  // namespace fa::imp
