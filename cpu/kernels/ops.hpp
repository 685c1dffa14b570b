// The kernels of this instruction set that kernel_table lists, but for the attention forms.
#pragma once

#include "simd.hpp"
#include "table.hpp"

namespace FA_ISA {

void gemm(const fa_gemm_args &args);

void embedding_forward(const fa::Embedding &args);
void embedding_backward(const fa::Embedding &args);
void residual_norm_forward(const fa::ResidualNorm &args);
void residual_norm_backward(const fa::ResidualNormGrad &args);

void bias_relu_dropout_forward(float *y, const float *x, const float *bias, int32_t rows, int32_t n,
                               const fa::Dropout &dropout);
void bias_relu_dropout_backward(float *dx, float *dbias, const float *dy, const float *y, int32_t rows, int32_t n,
                                float scale, int32_t accumulate, float *workspace);
void dropout(float *y, const float *x, int64_t n, const fa::Dropout &dropout);
void add(float *out, const float *a, const float *b, int64_t n);
void adam(const fa::Adam &args);
void random_uniform(float *x, int64_t n, float low, float high, uint64_t seed, uint32_t site);
void cast(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, int64_t n);

void column_sum(float *out, const float *x, int32_t rows, int32_t n, int64_t stride, int32_t accumulate,
                float *workspace);
void sum(float *out, const float *x, int64_t n, int32_t accumulate);
void grad_norm(float *norm, const float *grad, int64_t n, float max_norm);

void cross_entropy(const fa::CrossEntropy &args);
void topk(float *scores, int32_t *ids, const float *logits, int32_t rows, int32_t V, int64_t stride, int32_t k);

}  // namespace FA_ISA
