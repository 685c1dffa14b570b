// Dropout factors of a run of elements: 0 or the scale, from the 16-bit values of Philox.
#pragma once

#include "philox.hpp"
#include "table.hpp"

namespace FA_ISA {

struct Mask {
  bool on;
  PhiloxKey key;
  uint32_t site, threshold;
  float scale;
};

FA_INLINE Mask make_mask(const fa::Dropout &d) {
  Mask mask{};
  mask.on = d.threshold != 0;
  if (!mask.on) return mask;
  mask.key = philox_key(d.rng[0], d.rng[1]);
  mask.site = d.site;
  mask.threshold = d.threshold;
  mask.scale = d.scale;
  return mask;
}

/// factors[i] for the elements first + i, i < count <= 128; all 128 are written.
static inline void dropout_factors(const Mask &mask, uint64_t first, int count, float *factors) {
  typedef uint16_t vh __attribute__((vector_size(2 * W)));
  alignas(64) uint16_t values[2 * PHILOX_ELEMENTS];
  int skip = (int)(first % 8);
  philox_elements(mask.key, mask.site, first / 8, values);
  if (skip + count > PHILOX_ELEMENTS) {
    philox_elements(mask.key, mask.site, first / 8 + PHILOX_GROUPS, values + PHILOX_ELEMENTS);
  } else {
    memset(values + PHILOX_ELEMENTS, 0, 8 * sizeof(uint16_t));
  }
  vi threshold = vi{} + (int32_t)mask.threshold;
  vf kept = splat(mask.scale);
  for (int i = 0; i < PHILOX_ELEMENTS; i += W) {
    vh value;
    memcpy(&value, values + skip + i, sizeof value);
    store(factors + i, __builtin_convertvector(value, vi) >= threshold ? kept : vf{});
  }
}

}  // namespace FA_ISA
