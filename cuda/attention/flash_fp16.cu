#include "flash.cuh"

namespace fa::flash {
fa_status forward_fp16(fa_ctx *ctx, const fa_attention_args &args) { return forward<__half>(ctx, args); }
fa_status backward_fp16(fa_ctx *ctx, const fa_attention_args &args) { return backward<__half>(ctx, args); }
}  // namespace fa::flash
