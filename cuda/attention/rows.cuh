// What is shared by the passes over rows: rows that get zeros, and the backward pass's statistics of each query row.
#ifndef FLASHATTN_ROWS_CUH
#define FLASHATTN_ROWS_CUH

#include <math_constants.h>

#include "problem.cuh"
#include "tensor_core.cuh"

namespace fa {

// Rows that see no key: out 0, lse -inf. The rows of no sequence may be many: the blocks of a head share them.
template <class T>
__device__ __forceinline__ void write_empty_rows(const Problem &p, const Sequence &s, int h, int first, int end,
                                                 int step, int rows, int thread, int threads) {
  const int chunks = p.a.D / 8;
  for (int base = first; base < end; base += step) {
    const int count = min(rows, end - base);
    for (int i = thread; i < count * chunks; i += threads) {
      const int row = base + i / chunks;
      T *target = head_row<T>(p.a.out, s.q0 + row, p.a.out_stride, h, p.a.D);
      *reinterpret_cast<uint4 *>(target + (i % chunks) * 8) = make_uint4(0, 0, 0, 0);
    }
    for (int i = thread; i < count; i += threads) {
      p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + base + i] = -CUDART_INF_F;
    }
  }
}

// Rows of no sequence, those from `begin` on: out 0, lse -inf. By warps, each of which takes one of every `warps`.
template <class T, int D>
__device__ __forceinline__ void clear_output_from(const fa_attention_args &a, int begin, int warp, int warps) {
  const int lane = threadIdx.x % 32;
  for (int row = begin + warp; row < a.rows_q; row += warps) {
    uint4 *out = reinterpret_cast<uint4 *>(head_row<T>(a.out, row, a.out_stride, 0, D));
    for (int i = lane; i < a.H * D / 8; i += 32) out[i] = make_uint4(0, 0, 0, 0);
    for (int h = lane; h < a.H; h += 32) a.lse[static_cast<int64_t>(h) * a.rows_q + row] = -CUDART_INF_F;
  }
}

// Zeros to rows first .. end of a gradient, by one block.
template <class T>
__device__ __forceinline__ void write_zero_rows(void *base, int64_t stride, int64_t row0, int h, int D, int first,
                                                int end, int thread, int threads) {
  const int chunks = D / 8;
  const int64_t count = static_cast<int64_t>(max(0, end - first)) * chunks;
  for (int64_t i = thread; i < count; i += threads) {
    const int64_t row = row0 + first + i / chunks;
    *reinterpret_cast<uint4 *>(head_row<T>(base, row, stride, h, D) + (i % chunks) * 8) = make_uint4(0, 0, 0, 0);
  }
}

// ---- statistics of each row, and the accumulator's zeros ------------------------------------------------------------

template <class T>
__device__ __forceinline__ float dot8(const uint4 &a, const uint4 &b) {
  const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 u = Half2<T>::unpack(x[i]), v = Half2<T>::unpack(y[i]);
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  return sum;
}

// lse * log2(e). A row without a key has probabilities 0: exp2(x - inf).
__device__ __forceinline__ float scaled_lse(float lse) {
  return lse == -CUDART_INF_F ? CUDART_INF_F : lse * kLog2e;
}

template <class T, int lanes>
__global__ void __launch_bounds__(256)
    stats_kernel(const __grid_constant__ Problem p, float2 *stats, float4 *zeros, int64_t zero_count) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread; i < zero_count; i += threads) zeros[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const int64_t units = static_cast<int64_t>(p.a.rows_q) * p.a.H;
  const int lane = threadIdx.x % lanes;
  const int64_t padded = (units + 31) / 32 * 32;  // whole warps take part in the shuffles
  for (int64_t unit = thread / lanes; unit < padded; unit += threads / lanes) {
    const int64_t row = unit / p.a.H;
    const int h = static_cast<int>(unit % p.a.H);
    float sum = 0.0f;
    if (unit < units && lane * 8 < p.a.D) {
      const uint4 o = *reinterpret_cast<const uint4 *>(head_row<T>(p.a.out, row, p.a.out_stride, h, p.a.D) + lane * 8);
      const uint4 g = *reinterpret_cast<const uint4 *>(head_row<T>(p.a.dout, row, p.a.dout_stride, h,
          p.a.D) + lane * 8);
      sum = dot8<T>(o, g);
    }
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0 && unit < units) {
      const int64_t at = static_cast<int64_t>(h) * p.a.rows_q + row;
      stats[at] = make_float2(scaled_lse(p.a.lse[at]), sum);
    }
  }
}

inline int64_t stats_bytes(const fa_attention_args &a) { return align_up(int64_t{8} * a.rows_q * a.H, 256); }

// `zero_count` float4 from `zeros` on are cleared in passing.
template <class T>
fa_status launch_stats(fa_ctx *ctx, const Problem &p, float2 *stats, float4 *zeros, int64_t zero_count) {
  const int lanes = p.a.D <= 64 ? 8 : 16;
  const int64_t units = static_cast<int64_t>(p.a.rows_q) * p.a.H * lanes;
  const unsigned grid = grid_for(ctx, units > zero_count ? units : zero_count, 256, 16);
  if (lanes == 8) {
    stats_kernel<T, 8><<<grid, 256, 0, ctx->stream>>>(p, stats, zeros, zero_count);
  } else {
    stats_kernel<T, 16><<<grid, 256, 0, ctx->stream>>>(p, stats, zeros, zero_count);
  }
  return FA_LAUNCHED(ctx, "attention row statistics");
}

}  // namespace fa

#endif
