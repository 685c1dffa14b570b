// The three forms behind dispatch.cu. Each gives its sizes and launches its kernels on the context's stream.
#ifndef FLASHATTN_FORMS_CUH
#define FLASHATTN_FORMS_CUH

#include "../context.cuh"

namespace fa {

// Queries, keys and values as separate passes over an N x M matrix in memory.
void dotscale_sizes(const fa_attention_args &args, int64_t *sizes);
fa_status dotscale_forward(fa_ctx *ctx, const fa_attention_args &args);
fa_status dotscale_backward(fa_ctx *ctx, const fa_attention_args &args);

// FlashAttention-1: keys outer, queries inner, statistics and output round trip through memory.
void flash_sizes(const fa_attention_args &args, int64_t *sizes);
fa_status flash_forward(fa_ctx *ctx, const fa_attention_args &args);
fa_status flash_backward(fa_ctx *ctx, const fa_attention_args &args);

// FlashAttention-2 on mma.sync: the portable improved kernel.
void imp_flash_sizes(const fa_attention_args &args, int64_t *sizes);
fa_status imp_flash_forward(fa_ctx *ctx, const fa_attention_args &args);
fa_status imp_flash_backward(fa_ctx *ctx, const fa_attention_args &args);

}  // namespace fa

#endif
