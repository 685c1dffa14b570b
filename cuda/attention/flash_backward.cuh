// FlashAttention-1's backward pass (as implemented at v1.0.9): one block for a head; outer loop over blocks of keys,
// inner loop over 16 queries at a time; eight warps split the keys. dk and dv stay in registers for a block of keys;
// each warp's share of dq is reduced through shared memory and added to a float copy in memory, block after block:
// always the same order, so always the same result.
#ifndef FLASHATTN_FLASH_BACKWARD_CUH
#define FLASHATTN_FLASH_BACKWARD_CUH

#include "flash_forward.cuh"

namespace fa::flash {

template <class T, int columns_>
struct BackwardConfig {
  using Type = T;
  static constexpr int columns = columns_;
  static constexpr int warps = 8, threads = 256;
  static constexpr int slabs = columns <= 64 ? 2 : 1;  // 16-key slabs of a warp
  static constexpr int warp_keys = 16 * slabs;
  static constexpr int block = warps * warp_keys;  // 256 keys, or 128
  static constexpr int k_bytes = block * columns * 2;
  static constexpr int q_bytes = kRows * columns * 2;
  // Values stay in shared memory for a block of keys, or (more columns) in registers, passing through the area of dq.
  static constexpr bool values_shared = columns <= 64;
  static constexpr int part = 32;  // columns of dq reduced at a time
  static constexpr int buffers = values_shared ? 1 : 2;  // two, used by turns, save a barrier
  static constexpr int pitch = part + 4;
  static constexpr int partial_floats = warps * kRows * pitch;
  static constexpr int partial_bytes = buffers * partial_floats * 4;
  static constexpr int v_bytes = values_shared ? k_bytes : 0;
  static constexpr int area_bytes = values_shared || partial_bytes > k_bytes ? partial_bytes : k_bytes;
  static constexpr int shared_bytes = k_bytes + v_bytes + area_bytes + 2 * q_bytes + kRows * 8;
};

template <class C, bool with_dropout>
struct BackwardBlock {
  using T = typename C::Type;
  static constexpr int d_tiles = C::columns / 8, d_steps = C::columns / 16;

  const Problem &p;
  const Sequence s;
  const int head, h, lane, warp, thread;
  char *shared;
  uint32_t v[C::values_shared ? 1 : C::slabs][d_steps][4];
  float dk[C::slabs][d_tiles][4];
  float dv[C::slabs][d_tiles][4];

  __device__ __forceinline__ char *v_tile() const { return shared + C::k_bytes; }
  __device__ __forceinline__ char *area() const { return v_tile() + C::v_bytes; }
  __device__ __forceinline__ float *partial(int part) const {
    return reinterpret_cast<float *>(area()) + part % C::buffers * C::partial_floats;
  }
  __device__ __forceinline__ char *q_tile() const { return area() + C::area_bytes; }
  __device__ __forceinline__ char *dout_tile() const { return q_tile() + C::q_bytes; }
  __device__ __forceinline__ float2 *stats() const { return reinterpret_cast<float2 *>(dout_tile() + C::q_bytes); }
  __device__ __forceinline__ uint32_t warp_offset() const { return warp * C::warp_keys * Tile<C::columns>::pitch; }

  __device__ __forceinline__ void load_keys(int first_key) {
    __syncthreads();
    copy_tile<T, C::columns, C::block, C::threads, 4>(
        shared, head_row<T>(p.a.k, s.k0 + first_key, p.a.k_stride, h, p.a.D), p.a.k_stride, s.keys - first_key, p.a.D,
        thread);
    copy_tile<T, C::columns, C::block, C::threads, 4>(
        v_tile(), head_row<T>(p.a.v, s.k0 + first_key, p.a.v_stride, h, p.a.D), p.a.v_stride, s.keys - first_key, p.a.D,
        thread);
    __syncthreads();
    const auto rows = LaneTile<C::columns>::rows_first(shared_address(v_tile()) + warp_offset(), lane);
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int step = 0; step < d_steps; step++) {
        if constexpr (!C::values_shared) ldmatrix(v[m][step], rows.at(m, step));
      }
#pragma unroll
      for (int n = 0; n < d_tiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) dk[m][n][e] = dv[m][n][e] = 0.0f;
      }
    }
    __syncthreads();
  }

  // Scores k q^T and dP v dout^T, both transposed; dP starts from -delta. p and ds come back packed as operands.
  __device__ __forceinline__ void differentiate(uint32_t (&pt)[C::slabs][4], uint32_t (&dst)[C::slabs][4], int row,
                                                int warp_key, const Dropout &dropout) const {
    uint32_t bits = ~0u;
    if (with_dropout) {
      bits = 0;
      for_dropout_32x16(dropout, row, warp_key & ~31, head, lane, [&](int tile, int half, int low, bool keep) {
        const int m = C::slabs == 2 ? tile >> 1 : 0;
        const bool mine = C::slabs == 2 || (tile >> 1) == ((warp_key >> 4) & 1);
        if (keep && mine) bits |= 1u << ((m * 2 + half) * 4 + (tile & 1) * 2 + low);
      });
    }
    float scores[C::slabs][2][4] = {}, dp[C::slabs][2][4];
    float4 row_stats[2];
#pragma unroll
    for (int n = 0; n < 2; n++) {
      row_stats[n] = reinterpret_cast<const float4 *>(stats())[n * 4 + (lane & 3)];
#pragma unroll
      for (int m = 0; m < C::slabs; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) dp[m][n][e] = with_dropout ? 0.0f : -(e & 1 ? row_stats[n].w : row_stats[n].y);
      }
    }
    const auto k_rows = LaneTile<C::columns>::rows_first(shared_address(shared) + warp_offset(), lane);
    const auto q = LaneTile<C::columns>::columns_first(shared_address(q_tile()), lane);
    const auto dout = LaneTile<C::columns>::columns_first(shared_address(dout_tile()), lane);
#pragma unroll
    for (int step = 0; step < d_steps; step++) {
      uint32_t right[4], left[4];
      ldmatrix(right, q.at(0, step));
#pragma unroll
      for (int m = 0; m < C::slabs; m++) {
        ldmatrix(left, k_rows.at(m, step));
        mma<T>(scores[m][0], left, right[0], right[1]);
        mma<T>(scores[m][1], left, right[2], right[3]);
      }
      ldmatrix(right, dout.at(0, step));
#pragma unroll
      for (int m = 0; m < C::slabs; m++) {
        if constexpr (C::values_shared) {
          ldmatrix(left, k_rows.shifted(C::k_bytes).at(m, step));
        } else {
#pragma unroll
          for (int e = 0; e < 4; e++) left[e] = v[m][step][e];
        }
        mma<T>(dp[m][0], left, right[0], right[1]);
        mma<T>(dp[m][1], left, right[2], right[3]);
      }
    }
    const bool masked = visible_keys(p.a, s, row) < warp_key + C::warp_keys;
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < 2; n++) {
        float ps[4], dss[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float x = exp2_fast(fmaf(scores[m][n][e], p.scale_log2, -(e & 1 ? row_stats[n].z : row_stats[n].x)));
          if (masked && warp_key + m * 16 + (e >> 1) * 8 + (lane >> 2) >=
                            visible_keys(p.a, s, row + n * 8 + (lane & 3) * 2 + (e & 1))) {
            x = 0.0f;
          }
          const bool keep = bits >> ((m * 2 + n) * 4 + e) & 1u;
          ps[e] = with_dropout && !keep ? 0.0f : x;
          if (with_dropout) {
            dss[e] = x * ((keep ? dp[m][n][e] * p.dropout.scale : 0.0f) - (e & 1 ? row_stats[n].w : row_stats[n].y));
          } else {
            dss[e] = x * dp[m][n][e];
          }
        }
        pt[m][n * 2] = Half2<T>::pack(ps[0], ps[1]);
        pt[m][n * 2 + 1] = Half2<T>::pack(ps[2], ps[3]);
        dst[m][n * 2] = Half2<T>::pack(dss[0], dss[1]);
        dst[m][n * 2 + 1] = Half2<T>::pack(dss[2], dss[3]);
      }
    }
  }

  // sum [keys, d] += x [keys, 16 queries] b [16 queries, d]
  __device__ __forceinline__ void accumulate(float (&sum)[C::slabs][d_tiles][4], const uint32_t (&x)[C::slabs][4],
                                             const char *b) const {
    const auto rows = LaneTile<C::columns>::rows_first(shared_address(b), lane);
#pragma unroll
    for (int n = 0; n < d_tiles / 2; n++) {
      uint32_t right[4];
      ldmatrix_transposed(right, rows.at(0, n));
#pragma unroll
      for (int m = 0; m < C::slabs; m++) {
        mma<T>(sum[m][2 * n], x[m], right[0], right[1]);
        mma<T>(sum[m][2 * n + 1], x[m], right[2], right[3]);
      }
    }
  }

  // This warp's share of dq, columns part * 32 and on, to shared memory.
  __device__ __forceinline__ void share_dq(const uint32_t (&dst)[C::slabs][4], int part) const {
    const auto k_rows = LaneTile<C::columns>::rows_first(shared_address(shared) + warp_offset(), lane);
    float dq[C::part / 8][4] = {};
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
      // [keys, queries] turned to [queries, keys], 8 x 8 at a time
      const uint32_t a[4] = {transpose_8x8(dst[m][0]), transpose_8x8(dst[m][2]), transpose_8x8(dst[m][1]),
                             transpose_8x8(dst[m][3])};
#pragma unroll
      for (int n = 0; n < C::part / 16; n++) {
        uint32_t right[4];
        ldmatrix_transposed(right, k_rows.at(m, part * (C::part / 16) + n));
        mma<T>(dq[2 * n], a, right[0], right[1]);
        mma<T>(dq[2 * n + 1], a, right[2], right[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float *row = partial(part) + (warp * kRows + half * 8 + (lane >> 2)) * C::pitch + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < C::part / 8; n++) {
        *reinterpret_cast<float2 *>(row + n * 8) = make_float2(dq[n][half * 2], dq[n][half * 2 + 1]);
      }
    }
  }

  // Sums the shares of the first `active` warps onto `before`, and writes dq: float, or 16 bits from the last block.
  __device__ __forceinline__ void reduce_dq(float2 before, float *sums, int active, int row, int part,
      bool last) const {
    const int r = thread >> 4, column = (thread & 15) * 2;
    const float *share = partial(part) + r * C::pitch + column;
    for (int w = 0; w < active; w++) {
      const float2 x = *reinterpret_cast<const float2 *>(share + w * kRows * C::pitch);
      before.x += x.x, before.y += x.y;
    }
    if (row + r >= s.nq) return;
    if (!last) {
      *reinterpret_cast<float2 *>(sums) = before;
    } else if (part * C::part + column < p.a.D) {
      T *target = head_row<T>(p.a.dq, s.q0 + row + r, p.a.dq_stride, h, p.a.D) + part * C::part + column;
      *reinterpret_cast<uint32_t *>(target) = Half2<T>::pack(before.x * p.a.scale, before.y * p.a.scale);
    }
  }

  __device__ __forceinline__ void write(const float (&sum)[C::slabs][d_tiles][4], float scale, char *tile, void *base,
                                        int64_t stride, int first_key) const {
    const int warp_key = warp * C::warp_keys;
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int n = 0; n < d_tiles; n++) {
          *reinterpret_cast<uint32_t *>(
              tile + Tile<C::columns>::offset(warp_key + m * 16 + half * 8 + (lane >> 2), n) + (lane & 3) * 4) =
              Half2<T>::pack(sum[m][n][half * 2] * scale, sum[m][n][half * 2 + 1] * scale);
        }
      }
    }
    __syncwarp();
    const int first = first_key + warp_key;
    store_tile<T, C::columns, C::warp_keys, 32>(head_row<T>(base, s.k0 + first, stride, h, p.a.D), stride,
                                                tile + warp_offset(), s.nk - first, p.a.D, lane);
  }
};

// The next step's rows of q and dout: half of the threads take each where that is enough of them, to save registers.
template <class T, int columns, int threads>
struct StepPrefetch {
  static constexpr bool halves = kRows * Tile<columns>::chunks * 2 <= threads;
  static constexpr int team = halves ? threads / 2 : threads;
  RowPrefetch<T, columns, team> first, second;  // `second` is unused, and so costs nothing, where halves

  __device__ __forceinline__ void load(const Problem &p, const Sequence &s, int h, int row, int thread) {
    const bool q_first = !halves || thread < team;
    const T *q = head_row<T>(p.a.q, s.q0 + row, p.a.q_stride, h, p.a.D);
    const T *dout = head_row<T>(p.a.dout, s.q0 + row, p.a.dout_stride, h, p.a.D);
    first.load(q_first ? q : dout, q_first ? p.a.q_stride : p.a.dout_stride, s.nq - row, p.a.D, thread % team);
    if (!halves) second.load(dout, p.a.dout_stride, s.nq - row, p.a.D, thread);
  }
  __device__ __forceinline__ void store(char *q_tile, char *dout_tile, int thread) const {
    first.store(!halves || thread < team ? q_tile : dout_tile, thread % team);
    if (!halves) second.store(dout_tile, thread);
  }
};

// sums: [rows_q, H, columns] float, where there is more than one block of keys.
template <class T, int columns, bool with_dropout>
__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ Problem p, const float2 *all_stats, float *sums) {
  using C = BackwardConfig<T, columns>;
  extern __shared__ __align__(1024) char shared[];
  const int head = blockIdx.x;
  const int b = head / p.a.H, h = head % p.a.H, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const Sequence s = find_sequence(p.a, b);
  if (b == p.a.B) {
    write_zero_rows<T>(p.a.dq, p.a.dq_stride, s.q0, h, p.a.D, 0, s.nq, thread, C::threads);
    write_zero_rows<T>(p.a.dk, p.a.dk_stride, s.k0, h, p.a.D, 0, s.nk, thread, C::threads);
    write_zero_rows<T>(p.a.dv, p.a.dv_stride, s.k0, h, p.a.D, 0, s.nk, thread, C::threads);
    return;
  }
  BackwardBlock<C, with_dropout> block{p, s, head, h, lane, warp, thread, shared};
  const Dropout dropout(p.dropout);
  const int blocks = max(1, (s.keys + C::block - 1) / C::block);
  for (int n = 0; n < blocks; n++) {
    const int first_key = n * C::block, warp_key = first_key + warp * C::warp_keys;
    block.load_keys(first_key);
    StepPrefetch<T, columns, C::threads> next;
    float2 next_stats = make_float2(0.0f, 0.0f);
    auto prefetch = [&](int at) {
      next.load(p, s, h, at, thread);
      if (thread < kRows) {
        next_stats = at + thread < s.nq ? all_stats[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + at + thread]
                                        : make_float2(CUDART_INF_F, 0.0f);
      }
    };
    // The first block takes every row, so that rows without a key are written too.
    int row = n > 0 && p.a.causal ? max(0, first_key - s.shift) / kRows * kRows : 0;
    if (row < s.nq) prefetch(row);
    for (; row < s.nq; row += kRows) {
      next.store(block.q_tile(), block.dout_tile(), thread);
      if (thread < kRows) block.stats()[thread] = next_stats;
      __syncthreads();
      if (row + kRows < s.nq) prefetch(row + kRows);
      const int seen = visible_keys(p.a, s, min(s.nq, row + kRows) - 1) - first_key;
      const bool last = seen <= C::block;
      const int active = clamp_int((seen + C::warp_keys - 1) / C::warp_keys, 0, C::warps);
      uint32_t pt[C::slabs][4], dst[C::slabs][4];
      if (warp < active) {
        block.differentiate(pt, dst, row, warp_key, dropout);
        block.accumulate(block.dv, pt, block.dout_tile());
        block.accumulate(block.dk, dst, block.q_tile());
      }
      const int r = thread >> 4;
#pragma unroll
      for (int part = 0; part < columns / C::part; part++) {
        float *sum = sums + ((static_cast<int64_t>(s.q0) + row + r) * p.a.H + h) * columns + part * C::part +
                     (thread & 15) * 2;
        float2 before = make_float2(0.0f, 0.0f);
        if (n > 0 && row + r < s.nq) before = *reinterpret_cast<const float2 *>(sum);
        if (warp < active) block.share_dq(dst, part);
        __syncthreads();
        block.reduce_dq(before, sum, active, row, part, last);
        if (C::buffers == 1) __syncthreads();
      }
    }
    __syncthreads();
    block.write(block.dk, p.a.scale, shared, p.a.dk, p.a.dk_stride, first_key);
    block.write(block.dv, p.dropout.scale, block.v_tile(), p.a.dv, p.a.dv_stride, first_key);
  }
  const int done = blocks * C::block;  // keys past key_len that no block reached
  write_zero_rows<T>(p.a.dk, p.a.dk_stride, s.k0, h, p.a.D, done, s.nk, thread, C::threads);
  write_zero_rows<T>(p.a.dv, p.a.dv_stride, s.k0, h, p.a.D, done, s.nk, thread, C::threads);
}

}  // namespace fa::flash

#endif
