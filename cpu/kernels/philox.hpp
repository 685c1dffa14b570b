// Philox4x32-7 (Salmon et al. 2011), in the two forms that cuda/flashattn.h defines: eight 16-bit values per counter.
// The loops run over independent counters, so that the compiler turns them into vectors.
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

/// Seven rounds over N counters at once, in place.
template <int N>
FA_INLINE void philox_rounds(PhiloxKey key, uint32_t *__restrict x0, uint32_t *__restrict x1, uint32_t *__restrict x2,
                             uint32_t *__restrict x3) {
  uint32_t k0 = key.low, k1 = key.high;
  for (int round = 0; round < 7; round++) {
    for (int l = 0; l < N; l++) {
      uint64_t p0 = (uint64_t)0xD2511F53u * x0[l];
      uint64_t p1 = (uint64_t)0xCD9E8D57u * x2[l];
      uint32_t y0 = (uint32_t)(p1 >> 32) ^ x1[l] ^ k0;
      uint32_t y2 = (uint32_t)(p0 >> 32) ^ x3[l] ^ k1;
      x0[l] = y0;
      x1[l] = (uint32_t)p1;
      x2[l] = y2;
      x3[l] = (uint32_t)p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/// Counters that philox_elements works on at once, and the elements that gives.
constexpr int PHILOX_GROUPS = 16;
constexpr int PHILOX_ELEMENTS = 8 * PHILOX_GROUPS;

/// The 16-bit values of elements 8 * group .. 8 * group + 127 of the tensor at `site`.
static inline void philox_elements(PhiloxKey key, uint32_t site, uint64_t group, uint16_t *values) {
  constexpr int G = PHILOX_GROUPS;
  alignas(64) uint32_t x[4][G];
  for (int l = 0; l < G; l++) {
    x[0][l] = (uint32_t)(group + (uint64_t)l);
    x[1][l] = (uint32_t)((group + (uint64_t)l) >> 32);
    x[2][l] = site;
    x[3][l] = 0;
  }
  philox_rounds<G>(key, x[0], x[1], x[2], x[3]);
  for (int l = 0; l < G; l++) {
    for (int w = 0; w < 4; w++) {
      values[8 * l + 2 * w] = (uint16_t)x[w][l];
      values[8 * l + 2 * w + 1] = (uint16_t)(x[w][l] >> 16);
    }
  }
}

/// The 16-bit values of scores (i, j), 16 * tile_i <= i < 16 * tile_i + 16, 32 * tile_j <= j < 32 * tile_j + 32, of head
/// plane = b * H + h: values[i % 16][j % 32].
static inline void philox_scores(PhiloxKey key, uint32_t site, uint32_t plane, uint32_t tile_i, uint32_t tile_j,
                                 uint16_t (*values)[32]) {
  alignas(64) uint32_t x[4][64];
  for (int l = 0; l < 64; l++) {
    x[0][l] = tile_i * 8 + (uint32_t)l / 8;
    x[1][l] = tile_j * 8 + (uint32_t)l % 8;
    x[2][l] = site;
    x[3][l] = 1 + plane;
  }
  for (int part = 0; part < 64; part += 16) {
    philox_rounds<16>(key, x[0] + part, x[1] + part, x[2] + part, x[3] + part);
  }
  for (int w = 0; w < 4; w++) {
    for (int l = 0; l < 64; l++) {
      uint16_t *row = values[w / 2 * 8 + l / 8] + w % 2 * 16 + l % 8;
      row[0] = (uint16_t)x[w][l];
      row[8] = (uint16_t)(x[w][l] >> 16);
    }
  }
}

}  // namespace FA_ISA
