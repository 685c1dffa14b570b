// What a kernels translation unit offers to the context: one table of functions for each instruction set.
//
// Every file of cpu/kernels/ is compiled once for each instruction set, with FA_ISA naming the namespace of that copy
// (isa_base, isa_v3, isa_v4). Nothing outside that namespace may be defined there, and no std:: template that could be
// emitted out of line may be used there: the linker would keep one copy of it, possibly of an instruction set that the
// machine lacks.
//
// A kernel has checked arguments (dtype FA_F32), starts its own parallel regions, and throws nothing inside of them.
#pragma once

#include <stdint.h>

// Only the functions of the header leave the library. Its types do not, nor do the templates made of them.
struct __attribute__((visibility("hidden"))) fa_ctx;
struct __attribute__((visibility("hidden"))) fa_graph;
struct __attribute__((visibility("hidden"))) fa_event;
#pragma GCC visibility push(default)
#include "../../cuda/flashattn.h"
#pragma GCC visibility pop

namespace fa {

/// Dropout as the kernels see it: an element is kept where its 16-bit value >= threshold. threshold 0: no dropout.
struct Dropout {
  const uint64_t *rng;  // {seed, step}, read when the kernel runs
  uint32_t site;
  uint32_t threshold;  // round(p * 65536), 0 .. 65536
  float scale;         // 65536 / (65536 - threshold); 0 where nothing is kept
};

struct ResidualNorm {
  float *sum, *out, *mean, *rstd;
  const float *x, *branch, *gamma, *beta;
  int32_t rows, C;
  float eps;
  Dropout dropout;
};

struct ResidualNormGrad {
  float *dx, *dbranch, *dgamma, *dbeta;
  const float *dout, *dsum, *sum, *mean, *rstd, *gamma;
  int32_t rows, C;
  int32_t accumulate;
  Dropout dropout;
  float *workspace;
};

struct Embedding {
  float *out;           // forward
  float *dtable;        // backward
  const float *dout;    // backward
  const int32_t *ids, *pos;
  const float *table, *positions;
  int32_t rows, C, V, P;
  int32_t skip_id, accumulate;
  float scale;
  Dropout dropout;
  int32_t *workspace;
};

struct CrossEntropy {
  float *loss, *nll;
  int32_t *correct;
  float *logits;
  const int32_t *targets;
  int32_t rows, V;
  int64_t stride;
  float smoothing;
  int32_t pad_id;
  const float *grad_scale;
  int32_t with_gradient;
};

struct Adam {
  float *weights, *master, *m, *v;
  const float *grad;
  int64_t n;
  const float *hyper, *norm;
  float beta1, beta2, eps, weight_decay;
};

struct Kernels {
  const char *name;
  int32_t simd_width;  // floats in a vector register
  void (*gemm)(const fa_gemm_args &);
  void (*attention_sizes)(const fa_attention_args &, int64_t *sizes);
  void (*attention_forward)(const fa_attention_args &);
  void (*attention_backward)(const fa_attention_args &);
  void (*embedding_forward)(const Embedding &);
  void (*embedding_backward)(const Embedding &);
  void (*residual_norm_forward)(const ResidualNorm &);
  void (*residual_norm_backward)(const ResidualNormGrad &);
  void (*bias_relu_dropout_forward)(float *y, const float *x, const float *bias, int32_t rows, int32_t n,
                                    const Dropout &dropout);
  void (*bias_relu_dropout_backward)(float *dx, float *dbias, const float *dy, const float *y, int32_t rows, int32_t n,
                                     float scale, int32_t accumulate, float *workspace);
  void (*dropout)(float *y, const float *x, int64_t n, const Dropout &dropout);
  void (*add)(float *out, const float *a, const float *b, int64_t n);
  void (*column_sum)(float *out, const float *x, int32_t rows, int32_t n, int64_t stride, int32_t accumulate,
                     float *workspace);
  void (*sum)(float *out, const float *x, int64_t n, int32_t accumulate);
  void (*cross_entropy)(const CrossEntropy &);
  void (*grad_norm)(float *norm, const float *grad, int64_t n, float max_norm);
  void (*adam)(const Adam &);
  void (*random_uniform)(float *x, int64_t n, float low, float high, uint64_t seed, uint32_t site);
  void (*topk)(float *scores, int32_t *ids, const float *logits, int32_t rows, int32_t V, int64_t stride, int32_t k);
  void (*cast)(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, int64_t n);
};

}  // namespace fa

#define FA_DECLARE_TABLE(isa)            \
  namespace isa {                        \
  extern const fa::Kernels kernel_table; \
  }
FA_DECLARE_TABLE(isa_base)
#if defined(__x86_64__)
FA_DECLARE_TABLE(isa_v3)
FA_DECLARE_TABLE(isa_v4)
#endif

#ifdef FA_ISA
// The attention kernels: cpu/kernels/attention*.cpp.
namespace FA_ISA {
void attention_sizes(const fa_attention_args &args, int64_t *sizes);
void attention_forward(const fa_attention_args &args);
void attention_backward(const fa_attention_args &args);
}  // namespace FA_ISA
#endif
