// Operations that touch each element once: dropout, sums of tensors, bias and ReLU, Adam, casts, random numbers.
#include <string.h>

#include "dropout.hpp"
#include "ops.hpp"

namespace FA_ISA {
namespace {

// Elements that one thread takes at a time; a multiple of what Philox gives at once.
constexpr int64_t BLOCK = 4096;

FA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

void dropout(float *y, const float *x, int64_t n, const fa::Dropout &d) {
  Mask mask = make_mask(d);
  int threads = threads_for((double)n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < n; first += PHILOX_ELEMENTS) {
    int count = (int)least(PHILOX_ELEMENTS, n - first);
    if (!mask.on) {
      memmove(y + first, x + first, (size_t)count * 4);
      continue;
    }
    float factors[PHILOX_ELEMENTS];
    dropout_factors(mask, (uint64_t)first, count, factors);
    for (int i = 0; i < count; i++) y[first + i] = x[first + i] * factors[i];
  }
}

void add(float *out, const float *a, const float *b, int64_t n) {
  int threads = threads_for((double)n / 4);
#pragma omp parallel for simd schedule(static) num_threads(threads) if (parallel : threads > 1)
  for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

void bias_relu_dropout_forward(float *y, const float *x, const float *bias, int32_t rows, int32_t n,
                               const fa::Dropout &d) {
  Mask mask = make_mask(d);
  int threads = threads_for((double)rows * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < n; c += PHILOX_ELEMENTS) {
      int count = (int)least(PHILOX_ELEMENTS, n - c);
      float factors[PHILOX_ELEMENTS];
      if (mask.on) dropout_factors(mask, (uint64_t)(r * n + c), count, factors);
      const float *from = x + r * n + c;
      float *to = y + r * n + c;
      int i = 0;
      for (; i + W <= count; i += W) {
        vf v = load(from + i);
        if (bias) v += load(bias + c + i);
        v = vmax(v, vf{});
        store(to + i, mask.on ? v * load(factors + i) : v);
      }
      for (; i < count; i++) {
        float v = from[i] + (bias ? bias[c + i] : 0);
        v = v > 0 ? v : 0;
        to[i] = mask.on ? v * factors[i] : v;
      }
    }
  }
}

void adam(const fa::Adam &a) {
  if (a.n == 0) return;
  float clip = a.norm ? a.norm[1] : 1;
  if (clip == 0) return;
  float rate = a.hyper[0], correct1 = a.hyper[1], correct2 = a.hyper[2];
  float beta1 = a.beta1, beta2 = a.beta2, eps = a.eps, decay = a.weight_decay;
  int threads = threads_for((double)a.n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < a.n; first += BLOCK) {
    int64_t end = least(a.n, first + BLOCK);
    float *weights = a.weights, *master = a.master, *m = a.m, *v = a.v;
    const float *grad = a.grad;
#pragma omp simd
    for (int64_t i = first; i < end; i++) {
      float g = grad[i] * clip;
      float mean = beta1 * m[i] + (1 - beta1) * g;
      float square = beta2 * v[i] + (1 - beta2) * g * g;
      float w = master[i];
      w -= rate * (mean * correct1 / (__builtin_sqrtf(square * correct2) + eps) + decay * w);
      m[i] = mean;
      v[i] = square;
      master[i] = w;
      weights[i] = w;
    }
  }
}

void random_uniform(float *x, int64_t n, float low, float high, uint64_t seed, uint32_t site) {
  PhiloxKey key = philox_key(seed, 0);
  int threads = threads_for((double)n * 4);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < n; first += 16) {
    alignas(64) uint32_t c[4][16];
    for (int l = 0; l < 16; l++) {
      uint64_t i = (uint64_t)(first + l);
      c[0][l] = (uint32_t)i;
      c[1][l] = (uint32_t)(i >> 32);
      c[2][l] = site;
      c[3][l] = 2;
    }
    philox_rounds<16>(key, c[0], c[1], c[2], c[3]);
    int count = (int)least(16, n - first);
    for (int l = 0; l < count; l++) x[first + l] = low + (high - low) * ((float)(int32_t)(c[0][l] >> 8) * 0x1p-24f);
  }
}

// ---- casts --------------------------------------------------------------------------------------------------------

namespace {

FA_INLINE uint32_t bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}

FA_INLINE float from_bits(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

FA_INLINE float bf16_to_float(uint16_t h) { return from_bits((uint32_t)h << 16); }

FA_INLINE uint16_t float_to_bf16(float x) {
  uint32_t b = bits(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(b >> 16 | 0x40);  // NaN stays NaN
  return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

FA_INLINE float f16_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  // Moved into place the exponent is off by 127 - 15, which a product with 2^112 puts right, subnormals included.
  float value = from_bits(rest << 13) * 0x1p112f;
  if (rest >= 0x7c00) value = from_bits(rest << 13 | 0x7f800000u);
  return from_bits(bits(value) | sign);
}

FA_INLINE uint16_t float_to_f16(float x) {
  uint32_t b = bits(x), sign = b >> 16 & 0x8000;
  b &= 0x7fffffffu;
  if (b > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (b >> 13 & 0x3ff));
  if (b >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);  // 65520 and more round to infinity
  if (b < 0x38800000u) {
    // Below 2^-14: adding 1/2 leaves the result, rounded, in the low bits.
    return (uint16_t)(sign | (bits(from_bits(b) + 0.5f) - 0x3f000000u));
  }
  return (uint16_t)(sign | ((b - 0x38000000u + 0xfff + (b >> 13 & 1)) >> 13));
}

FA_INLINE float read(const void *src, int32_t dtype, int64_t i) {
  if (dtype == FA_F32) return ((const float *)src)[i];
  uint16_t h = ((const uint16_t *)src)[i];
  return dtype == FA_BF16 ? bf16_to_float(h) : f16_to_float(h);
}

FA_INLINE void write(void *dst, int32_t dtype, int64_t i, float x) {
  if (dtype == FA_F32) {
    ((float *)dst)[i] = x;
  } else {
    ((uint16_t *)dst)[i] = dtype == FA_BF16 ? float_to_bf16(x) : float_to_f16(x);
  }
}

}  // namespace

void cast(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, int64_t n) {
  if (dst_dtype == src_dtype) {
    if (n) memmove(dst, src, (size_t)n * (dst_dtype == FA_F32 ? 4 : 2));
    return;
  }
  int threads = threads_for((double)n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < n; i++) write(dst, dst_dtype, i, read(src, src_dtype, i));
}

}  // namespace FA_ISA
