// Dropout masks of flashattn.h: Philox4x32-7 (Salmon et al. 2011) by position, so that a mask depends on seed, step,
// site and position alone. Host code makes a DropoutParams; a kernel turns it into a Dropout and asks for eight values
// a call.
#ifndef FLASHATTN_PHILOX_CUH
#define FLASHATTN_PHILOX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

namespace fa {

// Seven rounds. Words come back in the order x, y, z, w.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 7; round++) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * counter.x;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * counter.z;
    counter = make_uint4(static_cast<uint32_t>(p1 >> 32) ^ counter.y ^ key.x, static_cast<uint32_t>(p1),
                         static_cast<uint32_t>(p0 >> 32) ^ counter.w ^ key.y, static_cast<uint32_t>(p0));
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

__host__ __device__ __forceinline__ uint2 philox_key(uint64_t seed, uint64_t step) {
  const uint64_t mixed = seed + step * 0x9E3779B97F4A7C15ull;
  return make_uint2(static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32));
}

// Passed to kernels by value. threshold 0: no dropout, rng is not read.
struct DropoutParams {
  const uint64_t *rng;  // device, {seed, step}
  uint32_t site;
  uint32_t threshold;  // kept where value >= threshold
  float scale;         // of what is kept
};

// `p` in [0, 1), checked by the caller.
inline DropoutParams dropout_params(float p, const uint64_t *rng, uint32_t site) {
  const uint32_t threshold = static_cast<uint32_t>(static_cast<double>(p) * 65536.0 + 0.5);
  const float scale = threshold < 65536u ? static_cast<float>(65536.0 / (65536.0 - threshold)) : 0.0f;
  return DropoutParams{rng, site, threshold, scale};
}

// Value e (0 to 7) of one call.
__device__ __forceinline__ uint32_t dropout_value(const uint4 &words, int e) {
  const uint32_t word = (e >> 1) == 0 ? words.x : (e >> 1) == 1 ? words.y : (e >> 1) == 2 ? words.z : words.w;
  return (e & 1) ? word >> 16 : word & 0xffffu;
}

struct Dropout {
  uint2 key;
  uint32_t site;
  uint32_t threshold;
  float scale;

  __device__ __forceinline__ explicit Dropout(const DropoutParams &params)
      : key(make_uint2(0, 0)), site(params.site), threshold(params.threshold), scale(params.scale) {
    if (threshold != 0) key = philox_key(params.rng[0], params.rng[1]);
  }

  __device__ __forceinline__ bool active() const { return threshold != 0; }

  // The values of elements 8 * group .. 8 * group + 7 of a tensor (indices of the logical, unpadded tensor).
  __device__ __forceinline__ uint4 element_group(uint64_t group) const {
    return philox(make_uint4(static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), site, 0u), key);
  }

  // The values of eight scores of head `bh` = b * H + h: rows i and i ^ 8, columns j, j ^ 8, j ^ 16 and j ^ 24. Score
  // (i, j) takes value score_value(i, j). These are what one thread holds, for one of its columns, of the mma.m16n8
  // accumulators of a tile of 16 rows and 32 columns; its other column is j ^ 1.
  __device__ __forceinline__ uint4 score_group(uint32_t i, uint32_t j, uint32_t bh) const {
    return philox(make_uint4((i >> 4) * 8u + (i & 7u), (j >> 5) * 8u + (j & 7u), site, 1u + bh), key);
  }
  static __device__ __forceinline__ int score_value(uint32_t i, uint32_t j) {
    return static_cast<int>(((i >> 3) & 1u) * 4u + ((j >> 3) & 3u));
  }

  __device__ __forceinline__ bool keep(const uint4 &words, int e) const {
    return dropout_value(words, e) >= threshold;
  }
  __device__ __forceinline__ float apply(const uint4 &words, int e, float x) const {
    return keep(words, e) ? x * scale : 0.0f;
  }

  // Slow single forms, for tails and simple kernels.
  __device__ __forceinline__ bool keep_element(uint64_t e) const {
    return !active() || keep(element_group(e >> 3), static_cast<int>(e & 7));
  }
  __device__ __forceinline__ bool keep_score(uint32_t i, uint32_t j, uint32_t bh) const {
    return !active() || keep(score_group(i, j, bh), score_value(i, j));
  }
};

}  // namespace fa

#endif
