// One vector of floats as wide as the instruction set allows, by GCC's vector extensions: the same source for every
// ISA. Arithmetic, comparison and ?: work on the types themselves; this adds what the language does not have.
#pragma once

#include <omp.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace FA_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

#define FA_INLINE static inline __attribute__((always_inline))

FA_INLINE vf splat(float x) { return x - vf{}; }

FA_INLINE vf load(const float *p) {
  vf v;
  memcpy(&v, p, sizeof v);
  return v;
}

FA_INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/// The first n < W floats; `fill` in the other lanes.
FA_INLINE vf load_part(const float *p, int n, float fill = 0) {
  vf v = splat(fill);
  for (int i = 0; i < W; i++) {
    if (i < n) v[i] = p[i];
  }
  return v;
}

FA_INLINE void store_part(float *p, vf v, int n) {
  for (int i = 0; i < W; i++) {
    if (i < n) p[i] = v[i];
  }
}

FA_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
FA_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

/// Sum of the lanes, in a fixed order for each width.
FA_INLINE float hsum(vf v) {
  float x[W];
  store(x, v);
  for (int half = W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  }
  return x[0];
}

FA_INLINE float hmax(vf v) {
  float x[W];
  store(x, v);
  for (int half = W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  }
  return x[0];
}

/// One bit for each lane that a comparison found true.
FA_INLINE uint32_t lane_bits(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX__)
  return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
  return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
  uint32_t bits = 0;
  for (int l = 0; l < W; l++) bits |= mask[l] ? 1u << l : 0;
  return bits;
#endif
}

/// e^c = p * 2^n for c where 2^n is a float or nearly: returns p, in [0.7, 1.5], and n. The polynomial is that of Cephes'
/// expf.
FA_INLINE vf exp_parts(vf c, vi &n) {
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
  const vf t = c * 1.44269504f + magic;
  const vf whole = t - magic;
  const vf r = c - whole * 0.693359375f + whole * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  n = (vi)t - (vi)magic;
  return p * (r * r) + r + 1.f;
}

/// e^x to about 1 ulp. Below -86.2 it gives 0 (results under 3.7e-38: so no intermediate is denormal, which would cost
/// a hundred cycles), above 88.72 inf; NaN stays NaN.
FA_INLINE vf vexp(vf x) {
  const vf low = splat(-86.2f), high = splat(88.7228394f);
  vf c = x < low ? low : x;
  c = c > high ? high : c;
  vi n;
  const vf p = exp_parts(c, n);
  vf y = p * (vf)((n + 126) << 23) * 2.f;  // 2^(n - 1), doubled afterwards: 2^128 itself is no float
  y = x < low ? splat(0.f) : y;
  return x > high ? splat(__builtin_inff()) : y;
}

/// Threads worth starting for `work` elementary operations (about 1 ns each): a region costs a few microseconds.
FA_INLINE int threads_for(double work) { return work < 30000 ? 1 : omp_get_max_threads(); }

}  // namespace FA_ISA
