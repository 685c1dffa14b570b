// Philox4x32-7 (Salmon et al. 2011), in the two forms that cuda/flashattn.h defines: eight 16-bit values per counter.
// Independent counters fill the lanes of a vector.
#pragma once

#include <string.h>

#include "simd.hpp"

namespace FA_ISA {

struct PhiloxKey {
  uint32_t low, high;
};

/// The key of {seed, step}.
FA_INLINE PhiloxKey philox_key(uint64_t seed, uint64_t step) {
  uint64_t key = seed + step * 0x9E3779B97F4A7C15ull;
  return {(uint32_t)key, (uint32_t)(key >> 32)};
}

/// The two halves of the 64-bit products m * x. (Left to itself, GCC multiplies 64 by 64 bits.)
FA_INLINE void multiply_wide(vu x, uint32_t m, vu &high, vu &low) {
#if defined(__SSE2__)
  typedef uint64_t wide __attribute__((vector_size(4 * W)));
  wide even, odd, a = (wide)x;
#if defined(__AVX512F__)
  __m512i f = (__m512i)(vu{} + m);
  even = (wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, f);
  odd = (wide)_mm512_maskz_mul_epu32(0xff, (__m512i)(a >> 32), f);
#elif defined(__AVX2__)
  __m256i f = (__m256i)(vu{} + m);
  even = (wide)_mm256_mul_epu32((__m256i)a, f);
  odd = (wide)_mm256_mul_epu32((__m256i)(a >> 32), f);
#else
  static_assert(W == 4, "AVX without AVX2 is not among the instruction sets");
  __m128i f = (__m128i)(vu{} + m);
  even = (wide)_mm_mul_epu32((__m128i)a, f);
  odd = (wide)_mm_mul_epu32((__m128i)(a >> 32), f);
#endif
  high = (vu)((even >> 32) | (odd & 0xffffffff00000000u));
  low = (vu)((even & 0xffffffffu) | (odd << 32));
#else
  for (int l = 0; l < W; l++) {
    uint64_t product = (uint64_t)m * x[l];
    high[l] = (uint32_t)(product >> 32);
    low[l] = (uint32_t)product;
  }
#endif
}

/// Seven rounds over W counters at once, in place.
FA_INLINE void philox_vector(PhiloxKey key, vu &c0, vu &c1, vu &c2, vu &c3) {
  uint32_t k0 = key.low, k1 = key.high;
#pragma GCC unroll 7
  for (int round = 0; round < 7; round++) {
    vu high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/// The same over N counters in memory, N a multiple of 16.
template <int N>
FA_INLINE void philox_rounds(PhiloxKey key, uint32_t *x0, uint32_t *x1, uint32_t *x2, uint32_t *x3) {
  for (int at = 0; at < N; at += W) {
    vu c0, c1, c2, c3;
    memcpy(&c0, x0 + at, sizeof c0);
    memcpy(&c1, x1 + at, sizeof c1);
    memcpy(&c2, x2 + at, sizeof c2);
    memcpy(&c3, x3 + at, sizeof c3);
    philox_vector(key, c0, c1, c2, c3);
    memcpy(x0 + at, &c0, sizeof c0);
    memcpy(x1 + at, &c1, sizeof c1);
    memcpy(x2 + at, &c2, sizeof c2);
    memcpy(x3 + at, &c3, sizeof c3);
  }
}

/// Stores the four words of W counters, counter after counter.
FA_INLINE void store_words(uint32_t *words, vu c0, vu c1, vu c2, vu c3) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    // Pairs of words of W / 2 counters, then those pairs side by side.
    vi pairs;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) pairs[i] = half * W / 2 + i / 2 + i % 2 * W;
    vu a = __builtin_shuffle(c0, c1, pairs), b = __builtin_shuffle(c2, c3, pairs);
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
      vi fours;
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) fours[i] = 2 * ((part * W + i) / 4) + i % 2 + i / 2 % 2 * W;
      vu out = __builtin_shuffle(a, b, fours);
      memcpy(words + (2 * half + part) * W, &out, sizeof out);
    }
  }
}

/// Counters that philox_elements works on at once, and the elements that gives.
constexpr int PHILOX_GROUPS = 16;
constexpr int PHILOX_ELEMENTS = 8 * PHILOX_GROUPS;

/// The 16-bit values of elements 8 * group .. 8 * group + 127 of the tensor at `site`.
static inline void philox_elements(PhiloxKey key, uint32_t site, uint64_t group, uint16_t *values) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the low half of a word is its first value");
  vu lane;
#pragma GCC unroll 16
  for (int l = 0; l < W; l++) lane[l] = (uint32_t)l;
  for (int at = 0; at < PHILOX_GROUPS; at += W) {
    uint64_t first = group + (uint64_t)at;
    vu c0 = lane + (uint32_t)first;
    vu c1 = (uint32_t)(first >> 32) - (vu)(c0 < (uint32_t)first);  // a lane that wrapped carries
    vu c2 = vu{} + site, c3 = vu{};
    philox_vector(key, c0, c1, c2, c3);
    uint32_t words[4 * W];
    store_words(words, c0, c1, c2, c3);
    memcpy(values + 8 * at, words, sizeof words);
  }
}

}  // namespace FA_ISA
