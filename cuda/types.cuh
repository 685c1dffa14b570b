// Element types of the kernels: conversion, access in groups of eight, reductions over a warp or a block, dispatch.
#ifndef FLASHATTN_TYPES_CUH
#define FLASHATTN_TYPES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "context.cuh"

namespace fa {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }

// Eight consecutive elements: one 16-byte access of 16-bit types, two of float. Kept as words, as the compiler would
// hold single 16-bit elements in a register each.
template <class T>
struct Pack {
  static constexpr int words = sizeof(T) / 2;
  uint4 w[words];
};

// Vector access needs `p` on 16 bytes; otherwise the first `valid` elements go one by one and the rest read as zero.
template <class T, bool Vector>
__device__ __forceinline__ Pack<T> load_pack(const T *p, int valid) {
  Pack<T> pack;
  if constexpr (Vector) {
#pragma unroll
    for (int i = 0; i < Pack<T>::words; i++) pack.w[i] = reinterpret_cast<const uint4 *>(p)[i];
  } else {
    alignas(16) T element[8];
#pragma unroll
    for (int i = 0; i < 8; i++) element[i] = i < valid ? p[i] : from_float<T>(0.0f);
#pragma unroll
    for (int i = 0; i < Pack<T>::words; i++) pack.w[i] = reinterpret_cast<const uint4 *>(element)[i];
  }
  return pack;
}

template <class T, bool Vector>
__device__ __forceinline__ void store_pack(T *p, int valid, const Pack<T> &pack) {
  if constexpr (Vector) {
#pragma unroll
    for (int i = 0; i < Pack<T>::words; i++) reinterpret_cast<uint4 *>(p)[i] = pack.w[i];
  } else {
    alignas(16) T element[8];
#pragma unroll
    for (int i = 0; i < Pack<T>::words; i++) reinterpret_cast<uint4 *>(element)[i] = pack.w[i];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i < valid) p[i] = element[i];
    }
  }
}

// The same for what the L2 cache need not keep: vectors leave it first, so that what is still wanted stays.
template <class T, bool Vector>
__device__ __forceinline__ void store_pack_streaming(T *p, int valid, const Pack<T> &pack) {
  if constexpr (Vector) {
#pragma unroll
    for (int i = 0; i < Pack<T>::words; i++) __stcs(reinterpret_cast<uint4 *>(p) + i, pack.w[i]);
  } else {
    store_pack<T, false>(p, valid, pack);
  }
}

template <class T>
__device__ __forceinline__ Pack<T> zero_pack() {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::words; i++) pack.w[i] = make_uint4(0, 0, 0, 0);
  return pack;
}

// Two elements of a 32-bit word.
__device__ __forceinline__ float2 unpack_word(uint32_t word, bf16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack_word(uint32_t word, f16) {
  return __half22float2(*reinterpret_cast<const __half2 *>(&word));
}
__device__ __forceinline__ uint32_t pack_word(float low, float high, bf16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}
__device__ __forceinline__ uint32_t pack_word(float low, float high, f16) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

template <class T>
__device__ __forceinline__ void unpack(const Pack<T> &pack, float (&x)[8]) {
  const uint32_t words[4] = {pack.w[0].x, pack.w[0].y, pack.w[0].z, pack.w[0].w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = unpack_word(words[i], T{});
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
template <>
__device__ __forceinline__ void unpack<float>(const Pack<float> &pack, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    x[4 * i] = __uint_as_float(pack.w[i].x);
    x[4 * i + 1] = __uint_as_float(pack.w[i].y);
    x[4 * i + 2] = __uint_as_float(pack.w[i].z);
    x[4 * i + 3] = __uint_as_float(pack.w[i].w);
  }
}

template <class T>
__device__ __forceinline__ Pack<T> pack_of(const float (&x)[8]) {
  Pack<T> pack;
  pack.w[0] = make_uint4(pack_word(x[0], x[1], T{}), pack_word(x[2], x[3], T{}), pack_word(x[4], x[5], T{}),
                         pack_word(x[6], x[7], T{}));
  return pack;
}
template <>
__device__ __forceinline__ Pack<float> pack_of<float>(const float (&x)[8]) {
  Pack<float> pack;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    pack.w[i] = make_uint4(__float_as_uint(x[4 * i]), __float_as_uint(x[4 * i + 1]), __float_as_uint(x[4 * i + 2]),
                           __float_as_uint(x[4 * i + 3]));
  }
  return pack;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// The sum of this lane's x and those of the lanes before it.
__device__ __forceinline__ int warp_inclusive_scan(int x) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int other = __shfl_up_sync(0xffffffffu, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

// Sum over `Threads` consecutive threads (a warp, or the whole block), the same in all of them and in a fixed order.
// `scratch` has a float for each warp of the block.
template <int Threads>
__device__ __forceinline__ float team_sum(float x, float *scratch) {
  x = warp_sum(x);
  if constexpr (Threads > 32) {
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int w = 0; w < Threads / 32; w++) x += scratch[w];
  }
  return x;
}

// Calls f with a value of the element type / a compile-time bool; returns what it returns.
template <class F>
fa_status by_dtype(int32_t dtype, F &&f) {
  switch (dtype) {
    case FA_BF16: return f(bf16{});
    case FA_F16: return f(f16{});
    default: return f(float{});
  }
}

template <bool Value>
struct Bool {
  static constexpr bool value = Value;
};
template <class F>
fa_status by_bool(bool condition, F &&f) {
  return condition ? f(Bool<true>{}) : f(Bool<false>{});
}

}  // namespace fa

#endif
