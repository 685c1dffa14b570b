// FlashAttention-1's forward pass (Dao et al. 2022, as implemented at v1.0.9): one block for a head, or a few that
// share its queries; outer loop over blocks of keys, whose fragments stay in registers; inner loop over 16 queries at a
// time. The four warps split the keys, so row maximum, row sum and output are reduced through shared memory at every
// step, and the output, normalised at every block, goes to memory and back in float.
#ifndef FLASHATTN_FLASH_FORWARD_CUH
#define FLASHATTN_FLASH_FORWARD_CUH

#include "rows.cuh"
#include "softmax.cuh"
#include "tensor_core.cuh"

namespace fa::flash {

constexpr int kRows = 16;  // queries of a step

// Copies a tile through registers, without cp.async: rows from `valid` up and columns from D up become 0.
// `ahead` copies are under way at once.
template <class T, int columns, int rows, int threads, int ahead>
__device__ __forceinline__ void copy_tile(char *tile, const T *source, int64_t stride, int valid, int D, int thread) {
  constexpr int chunks = Tile<columns>::chunks;
#pragma unroll ahead
  for (int i = thread; i < rows * chunks; i += threads) {
    const int row = i / chunks, chunk = i % chunks;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (row < valid && chunk * 8 < D) x = *reinterpret_cast<const uint4 *>(source + row * stride + chunk * 8);
    *reinterpret_cast<uint4 *>(tile + Tile<columns>::offset(row, chunk)) = x;
  }
}

// The 16 rows of the next step, held in registers while this step computes.
template <class T, int columns, int threads>
struct RowPrefetch {
  static constexpr int pieces = (kRows * Tile<columns>::chunks + threads - 1) / threads;
  uint4 data[pieces];

  __device__ __forceinline__ void load(const T *source, int64_t stride, int valid, int D, int thread) {
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int index = i * threads + thread;
      const int row = index / Tile<columns>::chunks, chunk = index % Tile<columns>::chunks;
      data[i] = make_uint4(0, 0, 0, 0);
      if (row < min(valid, kRows) && chunk * 8 < D) {
        data[i] = *reinterpret_cast<const uint4 *>(source + row * stride + chunk * 8);
      }
    }
  }
  __device__ __forceinline__ void store(char *tile, int thread) const {
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int index = i * threads + thread;
      if (index >= kRows * Tile<columns>::chunks) break;
      *reinterpret_cast<uint4 *>(tile + Tile<columns>::offset(index / Tile<columns>::chunks,
                                                              index % Tile<columns>::chunks)) = data[i];
    }
  }
};

template <class T, int columns_>
struct ForwardConfig {
  using Type = T;
  static constexpr int columns = columns_;
  static constexpr int warps = 4, threads = 128;
  static constexpr int block = columns <= 64 ? 256 : 128;  // keys of the outer loop
  static constexpr int warp_keys = block / warps;
  static constexpr int kv_bytes = block * columns * 2;
  static constexpr int pitch = columns + 4;  // floats of a row of a warp's partial output
  static constexpr int partial_bytes = warps * kRows * pitch * 4;
  static constexpr int q_bytes = kRows * columns * 2;
  static constexpr int area_bytes = kv_bytes > partial_bytes ? kv_bytes : partial_bytes;
  static constexpr int shared_bytes = area_bytes + q_bytes + (2 * warps + 1) * kRows * 4;
};

// Per-step state that goes round through memory: a thread's share of a row of output, and the row's lse.
template <class C>
struct RowState {
  static constexpr int width = C::columns / 8;  // floats a thread owns of a row: eight threads to a row
  float out[width];
  float lse;  // natural: nothing may be computed from a prefetched value before it is used

  __device__ __forceinline__ void load(const float *outs, const float *lses, bool any) {
    lse = -CUDART_INF_F;
#pragma unroll
    for (int i = 0; i < width; i++) out[i] = 0.0f;
    if (!any) return;
    lse = *lses;
#pragma unroll
    for (int i = 0; i < width; i += 4) {
      const float4 x = *reinterpret_cast<const float4 *>(outs + i);
      out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
    }
  }
};

template <class C, bool with_dropout>
struct ForwardBlock {
  using T = typename C::Type;
  static constexpr int key_tiles = C::warp_keys / 8, d_tiles = C::columns / 8, d_steps = C::columns / 16;

  const Problem &p;
  const Sequence s;
  const int head, h, lane, warp, thread;
  char *shared;
  uint32_t k[key_tiles / 2][d_steps][4];
  uint32_t v[key_tiles / 2][d_tiles / 2][4];

  __device__ __forceinline__ char *q_tile() const { return shared + C::area_bytes; }
  __device__ __forceinline__ float *warp_max() const {
    return reinterpret_cast<float *>(shared + C::area_bytes + C::q_bytes);
  }
  __device__ __forceinline__ float *warp_sum() const { return warp_max() + C::warps * kRows; }
  __device__ __forceinline__ float *row_lse() const { return warp_sum() + C::warps * kRows; }
  __device__ __forceinline__ float *partial() const { return reinterpret_cast<float *>(shared); }

  // Fragments of this warp's keys and values; both pass through the same shared memory.
  __device__ __forceinline__ void load_keys(int first_key) {
    const uint32_t tile = shared_address(shared) + warp * C::warp_keys * Tile<C::columns>::pitch;
    __syncthreads();
    copy_tile<T, C::columns, C::block, C::threads, 8>(
        shared, head_row<T>(p.a.k, s.k0 + first_key, p.a.k_stride, h, p.a.D), p.a.k_stride, s.keys - first_key, p.a.D,
        thread);
    __syncthreads();
    const auto columns_first = LaneTile<C::columns>::columns_first(tile, lane);
#pragma unroll
    for (int n = 0; n < key_tiles / 2; n++) {
#pragma unroll
      for (int step = 0; step < d_steps; step++) ldmatrix(k[n][step], columns_first.at(n, step));
    }
    __syncthreads();
    copy_tile<T, C::columns, C::block, C::threads, 8>(
        shared, head_row<T>(p.a.v, s.k0 + first_key, p.a.v_stride, h, p.a.D), p.a.v_stride, s.keys - first_key, p.a.D,
        thread);
    __syncthreads();
    const auto rows_first = LaneTile<C::columns>::rows_first(tile, lane);
#pragma unroll
    for (int step = 0; step < key_tiles / 2; step++) {
#pragma unroll
      for (int n = 0; n < d_tiles / 2; n++) ldmatrix_transposed(v[step][n], rows_first.at(step, n));
    }
    __syncthreads();
  }

  __device__ __forceinline__ void multiply_qk(float (&scores)[key_tiles][4]) const {
    const auto q = LaneTile<C::columns>::rows_first(shared_address(q_tile()), lane);
#pragma unroll
    for (int n = 0; n < key_tiles; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) scores[n][e] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < d_steps; step++) {
      uint32_t a[4];
      ldmatrix(a, q.at(0, step));
#pragma unroll
      for (int n = 0; n < key_tiles / 2; n++) {
        mma<T>(scores[2 * n], a, k[n][step][0], k[n][step][1]);
        mma<T>(scores[2 * n + 1], a, k[n][step][2], k[n][step][3]);
      }
    }
  }

  __device__ __forceinline__ void mask(float (&scores)[key_tiles][4], int row, int warp_key) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int limit = visible_keys(p.a, s, row + half * 8 + (lane >> 2)) - warp_key - (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < key_tiles; n++) {
#pragma unroll
        for (int low = 0; low < 2; low++) {
          if (n * 8 + low >= limit) scores[n][half * 2 + low] = -CUDART_INF_F;
        }
      }
    }
  }

  // Row maxima of this warp's keys to shared memory.
  __device__ __forceinline__ void share_max(const float (&scores)[key_tiles][4]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = -CUDART_INF_F;
#pragma unroll
      for (int n = 0; n < key_tiles; n++) top = fmaxf(top, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
      top = quad_max(top);
      if ((lane & 3) == 0) warp_max()[warp * kRows + half * 8 + (lane >> 2)] = top;
    }
  }

  // Maximum of a row over all warps and, by its lse, all blocks before: base 2.
  __device__ __forceinline__ float row_max(int r, float lse) const {
    float top = warp_max()[r];
#pragma unroll
    for (int w = 1; w < C::warps; w++) top = fmaxf(top, warp_max()[w * kRows + r]);
    return fmaxf(top * p.scale_log2, lse);
  }

  // Probabilities in place of scores, their row sums to shared memory.
  __device__ __forceinline__ void soften(float (&scores)[key_tiles][4], const float (&lse)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = half * 8 + (lane >> 2);
      const float top = row_max(r, lse[half]);
      const float shift = top == -CUDART_INF_F ? 0.0f : top;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < key_tiles; n++) {
#pragma unroll
        for (int low = 0; low < 2; low++) {
          float &x = scores[n][half * 2 + low];
          x = exp2_fast(fmaf(x, p.scale_log2, -shift));
          sum += x;
        }
      }
      sum = quad_sum(sum);
      if ((lane & 3) == 0) warp_sum()[warp * kRows + r] = sum;
    }
  }

  __device__ __forceinline__ void drop(float (&scores)[key_tiles][4], const Dropout &dropout, int row,
      int warp_key) const {
#pragma unroll
    for (int n = 0; n < key_tiles; n += 4) {
      for_dropout_16x32(dropout, row, warp_key + n * 8, head, lane, [&](int half, int tile, int low, bool keep) {
        if (!keep) scores[n + tile][half * 2 + low] = 0.0f;
      });
    }
  }

  // This warp's share of the output of the step, to shared memory.
  __device__ __forceinline__ void multiply_pv(const float (&scores)[key_tiles][4]) const {
    float out[d_tiles][4] = {};
#pragma unroll
    for (int step = 0; step < key_tiles / 2; step++) {
      uint32_t a[4];
      pack_operand<T>(a, scores, step);
#pragma unroll
      for (int n = 0; n < d_tiles / 2; n++) {
        mma<T>(out[2 * n], a, v[step][n][0], v[step][n][1]);
        mma<T>(out[2 * n + 1], a, v[step][n][2], v[step][n][3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float *row = partial() + (warp * kRows + half * 8 + (lane >> 2)) * C::pitch + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < d_tiles; n++) {
        *reinterpret_cast<float2 *>(row + n * 8) = make_float2(out[n][half * 2], out[n][half * 2 + 1]);
      }
    }
  }

  // Sums the warps' shares, joins the blocks before, normalises, and writes: float, or 16 bits from a row's last block.
  __device__ __forceinline__ void finish(RowState<C> &state, int row, bool last, float *outs) const {
    constexpr int width = RowState<C>::width;
    const int r = thread >> 3;
    if (row + r >= s.nq) return;
    const float top = row_max(r, state.lse);
    const float before = top == -CUDART_INF_F ? 0.0f : exp2_fast(state.lse - top);
    float sum = before;
#pragma unroll
    for (int w = 0; w < C::warps; w++) sum += warp_sum()[w * kRows + r];
    const float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < width; i++) state.out[i] *= before;
    const float *share = partial() + r * C::pitch + (thread & 7) * width;
#pragma unroll
    for (int w = 0; w < C::warps; w++) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        const float4 x = *reinterpret_cast<const float4 *>(share + w * kRows * C::pitch + i);
        state.out[i] += x.x, state.out[i + 1] += x.y, state.out[i + 2] += x.z, state.out[i + 3] += x.w;
      }
    }
    const float factor = last ? norm * p.dropout.scale : norm;
#pragma unroll
    for (int i = 0; i < width; i++) state.out[i] *= factor;
    if ((thread & 7) == 0) {
      p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + row + r] =
          sum > 0.0f ? (top + __log2f(sum)) * kLn2 : -CUDART_INF_F;
    }
    if (!last) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        *reinterpret_cast<float4 *>(outs + i) =
            make_float4(state.out[i], state.out[i + 1], state.out[i + 2], state.out[i + 3]);
      }
      return;
    }
    T *target = head_row<T>(p.a.out, s.q0 + row + r, p.a.out_stride, h, p.a.D);
#pragma unroll
    for (int i = 0; i < width; i += 8) {
      const int column = (thread & 7) * width + i;
      if (column >= p.a.D) break;
      *reinterpret_cast<uint4 *>(target + column) =
          make_uint4(Half2<T>::pack(state.out[i], state.out[i + 1]), Half2<T>::pack(state.out[i + 2], state.out[i + 3]),
                     Half2<T>::pack(state.out[i + 4], state.out[i + 5]),
                     Half2<T>::pack(state.out[i + 6], state.out[i + 7]));
    }
  }
};

// sums: [rows_q, H, columns] float, where a row has more than one block.
template <class T, int columns, bool with_dropout>
__global__ void __launch_bounds__(128, 2) forward_kernel(const __grid_constant__ Problem p, float *sums, int splits) {
  using C = ForwardConfig<T, columns>;
  extern __shared__ __align__(1024) char shared[];
  const int head = blockIdx.x / splits, split = blockIdx.x % splits;
  const int b = head / p.a.H, h = head % p.a.H, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const Sequence s = find_sequence(p.a, b);
  if (b == p.a.B) {
    write_empty_rows<T>(p, s, h, split * 64, s.nq, splits * 64, 64, thread, C::threads);
    return;
  }
  if (split * kRows >= s.nq) return;
  ForwardBlock<C, with_dropout> block{p, s, head, h, lane, warp, thread, shared};
  const Dropout dropout(p.dropout);
  const int blocks = max(1, (s.keys + C::block - 1) / C::block);
  const int r = thread >> 3;
  for (int n = 0; n < blocks; n++) {
    const int first_key = n * C::block, warp_key = first_key + warp * C::warp_keys;
    // The first block takes every row, so that rows without a key are written too.
    int row = n > 0 && p.a.causal ? max(0, first_key - s.shift) / kRows * kRows : 0;
    row += (split + splits - row / kRows % splits) % splits * kRows;
    if (row >= s.nq) continue;
    block.load_keys(first_key);
    RowPrefetch<T, columns, C::threads> next;
    RowState<C> state, next_state;
    auto prefetch = [&](int at) {
      next.load(head_row<T>(p.a.q, s.q0 + at, p.a.q_stride, h, p.a.D), p.a.q_stride, s.nq - at, p.a.D, thread);
      const int64_t my_row = s.q0 + at + r;
      next_state.load(sums + (my_row * p.a.H + h) * columns + (thread & 7) * RowState<C>::width,
                      p.a.lse + h * static_cast<int64_t>(p.a.rows_q) + my_row, n > 0 && at + r < s.nq);
    };
    prefetch(row);
    for (; row < s.nq; row += kRows * splits) {
      next.store(block.q_tile(), thread);
      state = next_state;
      state.lse *= kLog2e;
      if ((thread & 7) == 0) block.row_lse()[r] = state.lse;
      __syncthreads();
      float lse[2];  // of this lane's rows in the scores
#pragma unroll
      for (int half = 0; half < 2; half++) lse[half] = block.row_lse()[half * 8 + (lane >> 2)];
      if (row + kRows * splits < s.nq) prefetch(row + kRows * splits);
      float scores[C::warp_keys / 8][4];
      block.multiply_qk(scores);
      if (visible_keys(p.a, s, row) < warp_key + C::warp_keys) block.mask(scores, row, warp_key);
      block.share_max(scores);
      __syncthreads();
      block.soften(scores, lse);
      if (with_dropout) block.drop(scores, dropout, row, warp_key);
      block.multiply_pv(scores);
      __syncthreads();
      const bool last = visible_keys(p.a, s, min(s.nq, row + kRows) - 1) <= first_key + C::block;
      block.finish(state, row, last,
                   sums + ((static_cast<int64_t>(s.q0) + row + r) * p.a.H + h) * columns +
                       (thread & 7) * RowState<C>::width);
    }
  }
}

}  // namespace fa::flash

#endif
