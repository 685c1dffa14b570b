// The passes of dotscale over the matrix in memory: softmax, its gradient, dropout. A warp takes a row.
#ifndef FLASHATTN_DOTSCALE_SOFTMAX_CUH
#define FLASHATTN_DOTSCALE_SOFTMAX_CUH

#include "dotscale_gemm.cuh"

namespace fa::dotscale {

constexpr int kRowsPerBlock = 8;  // four warps, two rows each

template <class T>
struct Eight {
  float x[8];

  __device__ __forceinline__ void load(const T *source) {
    const uint4 data = *reinterpret_cast<const uint4 *>(source);
    const uint32_t words[4] = {data.x, data.y, data.z, data.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 pair = Half2<T>::unpack(words[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  __device__ __forceinline__ void store(T *target) const {
    *reinterpret_cast<uint4 *>(target) = make_uint4(Half2<T>::pack(x[0], x[1]), Half2<T>::pack(x[2], x[3]),
                                                    Half2<T>::pack(x[4], x[5]), Half2<T>::pack(x[6], x[7]));
  }
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// Scaled scores become probabilities in place, 0 where a key is hidden; lse is written. The row is read twice: the
// second time it comes from the cache.
template <class T>
__device__ __forceinline__ void soften_row(T *row, int seen, int keys, float *lse, int lane) {
  float top = -CUDART_INF_F, sum = 0.0f;
  for (int j = lane * 8; j < seen; j += 256) {
    Eight<T> part;
    part.load(row + j);
    float part_top = -CUDART_INF_F;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      part.x[i] = j + i < seen ? part.x[i] * kLog2e : -CUDART_INF_F;
      part_top = fmaxf(part_top, part.x[i]);
    }
    if (part_top > top) {
      sum *= exp2_fast(top - part_top);
      top = part_top;
    }
    if (top == -CUDART_INF_F) continue;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += exp2_fast(part.x[i] - top);
  }
  const float row_top = warp_max(top);
  sum = warp_sum(top == -CUDART_INF_F ? 0.0f : sum * exp2_fast(top - row_top));
  if (lane == 0) *lse = sum > 0.0f ? (row_top + __log2f(sum)) * kLn2 : -CUDART_INF_F;
  const float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int j = lane * 8; j < keys; j += 256) {
    Eight<T> part;
    if (j < seen) part.load(row + j);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      part.x[i] = j + i < seen ? exp2_fast(fmaf(part.x[i], kLog2e, -row_top)) * norm : 0.0f;
    }
    part.store(row + j);
  }
}

template <class T>
__global__ void __launch_bounds__(128)
    softmax_kernel(const __grid_constant__ Problem p, T *matrix, int pitch, int tiles) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  float *lse = p.a.lse + static_cast<int64_t>(h) * p.a.rows_q + s.q0;
  if (b == p.a.B) {
    for (int row = tile * 128 + threadIdx.x; row < s.nq; row += tiles * 128) lse[row] = -CUDART_INF_F;
    return;
  }
  for (int i = 0; i < kRowsPerBlock / 4; i++) {
    const int row = tile * kRowsPerBlock + i * 4 + warp;
    if (row >= s.nq) return;
    soften_row(matrix + matrix_offset(p.a, head, row, pitch), max(0, visible_keys(p.a, s, row)), s.keys, lse + row,
        lane);
  }
}

// dP becomes dS = P * (dP - sum of P * dP) in place.
template <class T>
__global__ void __launch_bounds__(128)
    softmax_gradient_kernel(const __grid_constant__ Problem p, const T *probabilities, T *gradient, int pitch,
        int tiles) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const Sequence s = find_sequence(p.a, head / p.a.H);
  for (int i = 0; i < kRowsPerBlock / 4; i++) {
    const int row = tile * kRowsPerBlock + i * 4 + warp;
    if (row >= s.nq) return;
    const int64_t offset = matrix_offset(p.a, head, row, pitch);
    const T *ps = probabilities + offset;
    T *gs = gradient + offset;
    const int seen = max(0, visible_keys(p.a, s, row));
    float sum = 0.0f;
    for (int j = lane * 8; j < seen; j += 256) {
      Eight<T> x, g;
      x.load(ps + j);
      g.load(gs + j);
#pragma unroll
      for (int e = 0; e < 8; e++) sum += j + e < seen ? x.x[e] * g.x[e] : 0.0f;
    }
    sum = warp_sum(sum);
    for (int j = lane * 8; j < s.keys; j += 256) {
      Eight<T> x, g;
      if (j < seen) {
        x.load(ps + j);
        g.load(gs + j);
      }
#pragma unroll
      for (int e = 0; e < 8; e++) g.x[e] = j + e < seen ? x.x[e] * (g.x[e] - sum) : 0.0f;
      g.store(gs + j);
    }
  }
}

// target = source where kept, else 0 (what is hidden stays as it is). A thread takes 32 columns of rows i and i + 8:
// the 64 values of its eight calls of the generator.
template <class T>
__global__ void __launch_bounds__(128)
    drop_kernel(const __grid_constant__ Problem p, const T *source, T *target, int pitch, int row_tiles) {
  const int head = blockIdx.x / row_tiles, tile = blockIdx.x % row_tiles;
  const Sequence s = find_sequence(p.a, head / p.a.H);
  const Dropout dropout(p.dropout);
  const int row = tile * 16 + (threadIdx.x & 7);
  if (row >= s.nq) return;
  for (int column = (threadIdx.x >> 3) * 32; column < s.keys; column += 16 * 32) {
    uint4 words[8];
#pragma unroll
    for (int j = 0; j < 8; j++) words[j] = dropout.score_group(row, column + j, head);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row + half * 8;
      const int64_t offset = matrix_offset(p.a, head, r, pitch);
#pragma unroll
      for (int group = 0; group < 4; group++) {
        const int at = column + group * 8;
        if (r >= s.nq || at >= s.keys) continue;
        Eight<T> x;
        x.load(source + offset + at);
#pragma unroll
        for (int j = 0; j < 8; j++) x.x[j] = dropout.keep(words[j], half * 4 + group) ? x.x[j] : 0.0f;
        x.store(target + offset + at);
      }
    }
  }
}

}  // namespace fa::dotscale

#endif
