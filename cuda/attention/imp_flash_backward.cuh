// FlashAttention-2's backward pass on mma.sync: a block owns a tile of keys and streams the queries past, 32 at a time.
// Scores are computed transposed (k q^T), so that P^T and dS^T lie in registers as operands of dv += P^T do and dk +=
// dS^T q; only dS goes through shared memory, for dq += dS k. dq is summed over the key tiles in float, in memory.
#ifndef FLASHATTN_IMP_FLASH_BACKWARD_CUH
#define FLASHATTN_IMP_FLASH_BACKWARD_CUH

#include "rows.cuh"
#include "softmax.cuh"
#include "tensor_core.cuh"

namespace fa::imp {

constexpr int kBackwardRows = 32;  // queries of a step

// What becomes of dq in the kernel that makes dk and dv.
enum class Dq {
  kAdd,    // added to the float accumulator, in no fixed order
  kStore,  // written: there is one key tile
  kLeave   // left to query_kernel, which sums in a fixed order
};

// A warp owns 16 * slabs keys.
template <class T, int columns_, int slabs_, int warps_, int stages_, int blocks_per_sm_>
struct BackwardConfig {
  using Type = T;
  static constexpr int columns = columns_, slabs = slabs_, warps = warps_, stages = stages_;
  static constexpr int blocks_per_sm = blocks_per_sm_;
  static constexpr int threads = 32 * warps;
  static constexpr int block = 16 * slabs * warps;
  static constexpr int rows = kBackwardRows;
  static constexpr int k_bytes = block * columns * 2;
  static constexpr int q_bytes = rows * columns * 2;
  static constexpr int ds_bytes = block * rows * 2;
  static constexpr int stats_bytes = rows * 8;
  static constexpr int stage_bytes = 2 * q_bytes;
  static constexpr int shared_bytes = 2 * k_bytes + stages * stage_bytes + ds_bytes + stages * stats_bytes;
  // dq [32, columns] is split among the warps: two slabs of rows, the rest along columns.
  static constexpr int dq_columns = columns / (warps / 2);
  static_assert(dq_columns % 16 == 0, "a warp's columns of dq come in pairs of tiles");
};

// ---- the float accumulator of dq: tiles of 32 rows in fragment order, each sequence padded to whole tiles -----------

__host__ __device__ inline int64_t accumulator_rows(int rows_q, int B) {
  return (static_cast<int64_t>(rows_q) + kBackwardRows * (static_cast<int64_t>(B) + 1)) / kBackwardRows * kBackwardRows;
}

__device__ __forceinline__ int64_t accumulator_start(int q0, int b) {
  return (static_cast<int64_t>(q0) + kBackwardRows * static_cast<int64_t>(b)) / kBackwardRows * kBackwardRows;
}

// Float e (0 to 3) of a lane in fragment `fragment` (16 x 8) of a tile: vectors of four where the device adds such.
__device__ __forceinline__ int accumulator_index(int fragment, int lane, int e) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return fragment * 128 + lane * 4 + e;
#else
  return fragment * 128 + e * 32 + lane;
#endif
}

__device__ __forceinline__ void accumulator_add(float *tile, int fragment, int lane, const float (&x)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(tile + fragment * 128 + lane * 4),
               "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
#pragma unroll
  for (int e = 0; e < 4; e++) atomicAdd(tile + accumulator_index(fragment, lane, e), x[e]);
#endif
}

struct BackwardBuffers {
  float2 *stats;  // [H, rows_q]: {lse * log2(e), sum over d of dout * out}
  float *dq_sum;  // [H, accumulator_rows / 32, 32 * columns]
};

// ---- dk and dv ------------------------------------------------------------------------------------------------------

template <class C>
struct BackwardWarp {
  using T = typename C::Type;
  static constexpr int q_tiles = C::rows / 8;
  static constexpr int d_tiles = C::columns / 8;

  float dk[C::slabs][d_tiles][4];
  float dv[C::slabs][d_tiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < d_tiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) dk[m][n][e] = dv[m][n][e] = 0.0f;
      }
    }
  }

  // x [keys, queries] = a [keys, d] b [queries, d]^T
  static __device__ __forceinline__ void multiply_transposed(float (&x)[C::slabs][q_tiles][4], LaneTile<C::columns> a,
                                                             LaneTile<C::columns> b) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < q_tiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) x[m][n][e] = 0.0f;
      }
    }
#pragma unroll
    for (int step = 0; step < C::columns / 16; step++) {
      uint32_t left[C::slabs][4];
#pragma unroll
      for (int m = 0; m < C::slabs; m++) ldmatrix(left[m], a.at(m, step));
#pragma unroll
      for (int n = 0; n < q_tiles / 2; n++) {
        uint32_t right[4];
        ldmatrix(right, b.at(n, step));
#pragma unroll
        for (int m = 0; m < C::slabs; m++) {
          mma<T>(x[m][2 * n], left[m], right[0], right[1]);
          mma<T>(x[m][2 * n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }

  // sum [keys, d] += x [keys, queries] b [queries, d], x packed to operands
  static __device__ __forceinline__ void accumulate(float (&sum)[C::slabs][d_tiles][4],
                                                    const uint32_t (&x)[C::slabs][q_tiles / 2][4],
                                                    LaneTile<C::columns> b) {
#pragma unroll
    for (int step = 0; step < q_tiles / 2; step++) {
#pragma unroll
      for (int n = 0; n < d_tiles / 2; n++) {
        uint32_t right[4];
        ldmatrix_transposed(right, b.at(step, n));
#pragma unroll
        for (int m = 0; m < C::slabs; m++) {
          mma<T>(sum[m][2 * n], x[m][step], right[0], right[1]);
          mma<T>(sum[m][2 * n + 1], x[m][step], right[2], right[3]);
        }
      }
    }
  }

  // Bit (m * q_tiles + n) * 4 + e is set where the score is kept.
  static __device__ __forceinline__ uint32_t kept(const Dropout &dropout, int query, int key, uint32_t bh, int lane) {
    uint32_t bits = 0;
    const int parity = (key >> 4) & 1;
#pragma unroll 1  // one call's temporaries at a time: registers are short here
    for (int group = 0; group < q_tiles / 2; group++) {
      uint32_t part = 0;
      for_dropout_32x16(dropout, query + group * 16, key & ~31, bh, lane, [&](int tile, int half, int low, bool keep) {
        const int e = (tile & 1) * 2 + low;
        if (C::slabs == 2) {
          if (keep) part |= 1u << (((tile >> 1) * q_tiles + half) * 4 + e);
        } else if (keep && (tile >> 1) == parity) {
          part |= 1u << (half * 4 + e);
        }
      });
      bits |= part << (group * 8);
    }
    return bits;
  }

  // From scores and dP: p and ds packed as operands. limit: key rows of the tile that count; diagonal: query n of the
  // step sees the warp's keys below diagonal + n.
  template <bool masked, bool with_dropout>
  static __device__ __forceinline__ void differentiate(const float (&scores)[C::slabs][q_tiles][4],
                                                       const float (&dp)[C::slabs][q_tiles][4],
                                                       uint32_t (&p)[C::slabs][q_tiles / 2][4],
                                                       uint32_t (&ds)[C::slabs][q_tiles / 2][4], const float4 *stats,
                                                       float scale_log2, int limit, int diagonal, uint32_t bits,
                                                       float dropout_scale, int lane) {
#pragma unroll
    for (int n = 0; n < q_tiles; n++) {
      const float4 row = stats[n * 4 + (lane & 3)];  // lse and delta of two queries
#pragma unroll
      for (int m = 0; m < C::slabs; m++) {
        float ps[4], dss[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float lse = e & 1 ? row.z : row.x;
          const float delta = e & 1 ? row.w : row.y;
          float x = exp2_fast(fmaf(scores[m][n][e], scale_log2, -lse));
          if (masked) {
            const int key = m * 16 + (e >> 1) * 8 + (lane >> 2);
            if (key >= min(limit, diagonal + n * 8 + (lane & 3) * 2 + (e & 1))) x = 0.0f;
          }
          if (with_dropout) {
            const bool keep = bits >> ((m * q_tiles + n) * 4 + e) & 1u;
            ps[e] = keep ? x : 0.0f;
            dss[e] = x * ((keep ? dp[m][n][e] * dropout_scale : 0.0f) - delta);
          } else {
            ps[e] = x;
            dss[e] = x * (dp[m][n][e] - delta);
          }
        }
        p[m][n >> 1][(n & 1) * 2] = Half2<T>::pack(ps[0], ps[1]);
        p[m][n >> 1][(n & 1) * 2 + 1] = Half2<T>::pack(ps[2], ps[3]);
        ds[m][n >> 1][(n & 1) * 2] = Half2<T>::pack(dss[0], dss[1]);
        ds[m][n >> 1][(n & 1) * 2 + 1] = Half2<T>::pack(dss[2], dss[3]);
      }
    }
  }

  static __device__ __forceinline__ void store_ds(char *tile, int warp_key,
                                                  const uint32_t (&ds)[C::slabs][q_tiles / 2][4], int lane) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < q_tiles; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int key = warp_key + m * 16 + half * 8 + (lane >> 2);
          *reinterpret_cast<uint32_t *>(tile + Tile<C::rows>::offset(key, n) + (lane & 3) * 4) =
              ds[m][n >> 1][(n & 1) * 2 + half];
        }
      }
    }
  }

  // Writes the warp's rows of a gradient through its rows of a shared tile.
  static __device__ __forceinline__ void write(float (&sum)[C::slabs][d_tiles][4], float scale, char *tile,
                                               int warp_key, T *target, int64_t stride, int valid, int D, int lane) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = warp_key + m * 16 + half * 8 + (lane >> 2);
#pragma unroll
        for (int n = 0; n < d_tiles; n++) {
          *reinterpret_cast<uint32_t *>(tile + Tile<C::columns>::offset(row, n) + (lane & 3) * 4) =
              Half2<T>::pack(sum[m][n][half * 2] * scale, sum[m][n][half * 2 + 1] * scale);
        }
      }
    }
    __syncwarp();
    store_tile<T, C::columns, C::slabs * 16, 32>(target + warp_key * stride, stride,
                                                 tile + warp_key * Tile<C::columns>::pitch, valid - warp_key, D, lane);
  }
};

// dq of one step: the warp's part of dS [32, keys] k [keys, d], over the first `steps` groups of 16 keys.
template <class C>
__device__ __forceinline__ void multiply_dq(float (&dq)[C::dq_columns / 8][4], LaneTile<C::rows> ds,
                                            LaneTile<C::columns> k, int row_slab, int first_pair, int steps) {
  using T = typename C::Type;
#pragma unroll
  for (int n = 0; n < C::dq_columns / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) dq[n][e] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < C::block / 16; step++) {
    if (step >= steps) break;
    uint32_t a[4];
    ldmatrix_transposed(a, ds.at(step, row_slab));
#pragma unroll
    for (int n = 0; n < C::dq_columns / 16; n++) {
      uint32_t b[4];
      ldmatrix_transposed(b, k.at(step, first_pair + n));
      mma<T>(dq[2 * n], a, b[0], b[1]);
      mma<T>(dq[2 * n + 1], a, b[2], b[3]);
    }
  }
}

template <class C, bool with_dropout>
__device__ __forceinline__ void backward_block(const Problem &p, const BackwardBuffers &buffers, Dq mode, int tiles) {
  using T = typename C::Type;
  using Warp = BackwardWarp<C>;
  extern __shared__ __align__(1024) char shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  const int first_key = tile * C::block;
  if (b == p.a.B) {
    for (int key = first_key; key < s.nk; key += tiles * C::block) {
      write_zero_rows<T>(p.a.dk, p.a.dk_stride, s.k0, h, p.a.D, key, min(s.nk, key + C::block), thread, C::threads);
      write_zero_rows<T>(p.a.dv, p.a.dv_stride, s.k0, h, p.a.D, key, min(s.nk, key + C::block), thread, C::threads);
    }
    if (mode == Dq::kStore) write_zero_rows<T>(p.a.dq, p.a.dq_stride, s.q0, h, p.a.D, 0, s.nq, thread, C::threads);
    return;
  }
  // Queries before `start` see no key of this tile.
  int start = first_key < s.keys ? (p.a.causal ? max(0, first_key - s.shift) : 0) : s.nq;
  start = min(start, s.nq) / C::rows * C::rows;
  if (mode == Dq::kStore && tile == 0) {
    write_zero_rows<T>(p.a.dq, p.a.dq_stride, s.q0, h, p.a.D, 0, first_key < s.keys ? min(start, s.nq) : s.nq, thread,
                       C::threads);
  }
  if (first_key >= s.nk) return;

  char *ds_shared = shared + 2 * C::k_bytes + C::stages * C::stage_bytes;
  char *stats_shared = ds_shared + C::ds_bytes;
  const uint32_t k_tile = shared_address(shared), v_tile = k_tile + C::k_bytes;
  const uint32_t q_tile = k_tile + 2 * C::k_bytes;
  const float2 *stats = buffers.stats + static_cast<int64_t>(h) * p.a.rows_q + s.q0;
  auto load_step = [&](int row, int stage) {
    const T *q = head_row<T>(p.a.q, s.q0 + row, p.a.q_stride, h, p.a.D);
    const T *dout = head_row<T>(p.a.dout, s.q0 + row, p.a.dout_stride, h, p.a.D);
    const uint32_t to = q_tile + stage * C::stage_bytes;
    load_tile<T, C::columns, C::rows, C::threads>(to, q, p.a.q_stride,
                                                  s.nq - row, p.a.D, thread);
    load_tile<T, C::columns, C::rows, C::threads>(to + C::q_bytes, dout, p.a.dout_stride, s.nq - row, p.a.D, thread);
    if (thread < C::rows) {
      copy_async_8(shared_address(stats_shared) + stage * C::stats_bytes + thread * 8, stats + row + thread,
                   row + thread < s.nq ? 8 : 0);
    }
  };

  const int warp_key = warp * 16 * C::slabs;  // within the tile
  Warp w;
  w.clear();
  if (start < s.nq) {
    load_tile<T, C::columns, C::block, C::threads>(
        k_tile, head_row<T>(p.a.k, s.k0 + first_key, p.a.k_stride, h, p.a.D), p.a.k_stride, s.keys - first_key, p.a.D,
        thread);
    load_tile<T, C::columns, C::block, C::threads>(
        v_tile, head_row<T>(p.a.v, s.k0 + first_key, p.a.v_stride, h, p.a.D), p.a.v_stride, s.keys - first_key, p.a.D,
        thread);
    load_step(start, 0);
    commit_async();
  }
  const int warp_offset = warp_key * Tile<C::columns>::pitch;
  const auto k_all = LaneTile<C::columns>::rows_first(k_tile, lane);
  const auto k_rows = k_all.shifted(warp_offset), v_rows = k_rows.shifted(C::k_bytes);
  const auto q_columns = LaneTile<C::columns>::columns_first(q_tile, lane);
  const auto q_rows = k_all.shifted(2 * C::k_bytes);
  const auto ds_lane = LaneTile<C::rows>::columns_first(shared_address(ds_shared), lane);
  const int row_slab = warp & 1;
  const int first_pair = (warp >> 1) * (C::dq_columns / 16);

  int stage = 0;
  for (int row = start; row < s.nq; row += C::rows) {
    wait_async<0>();
    __syncthreads();  // the step's rows are here; everyone is done with the other stage and with dS
    if (C::stages == 2) {
      if (row + C::rows < s.nq) load_step(row + C::rows, stage ^ 1);
      commit_async();
    }
    const uint32_t q_shift = stage * C::stage_bytes, dout_shift = q_shift + C::q_bytes;
    const int seen = visible_keys(p.a, s, row + C::rows - 1) - first_key;  // tile rows that some query of the step sees
    if (warp_key < seen) {
      uint32_t pt[C::slabs][C::rows / 16][4], dst[C::slabs][C::rows / 16][4];
      {
        float scores[C::slabs][C::rows / 8][4], dp[C::slabs][C::rows / 8][4];
        w.multiply_transposed(scores, k_rows, q_columns.shifted(q_shift));
        w.multiply_transposed(dp, v_rows, q_columns.shifted(dout_shift));
        const auto *row_stats = reinterpret_cast<const float4 *>(stats_shared + stage * C::stats_bytes);
        const int limit = s.keys - first_key - warp_key;
        const int diagonal = p.a.causal ? row + s.shift + 1 - first_key - warp_key : INT32_MAX / 2;
        const uint32_t bits = with_dropout ? w.kept(Dropout(p.dropout), row, first_key + warp_key, head, lane) : 0;
        if (16 * C::slabs <= min(limit, diagonal)) {
          w.template differentiate<false, with_dropout>(scores, dp, pt, dst, row_stats, p.scale_log2, limit, diagonal,
                                                        bits, p.dropout.scale, lane);
        } else {
          w.template differentiate<true, with_dropout>(scores, dp, pt, dst, row_stats, p.scale_log2, limit, diagonal,
                                                       bits, p.dropout.scale, lane);
        }
      }
      if (mode != Dq::kLeave) w.store_ds(ds_shared, warp_key, dst, lane);
      w.accumulate(w.dv, pt, q_rows.shifted(dout_shift));
      w.accumulate(w.dk, dst, q_rows.shifted(q_shift));
    }
    if (mode != Dq::kLeave || C::stages == 1) __syncthreads();  // dS is whole; a single stage is free
    if (C::stages == 1) {
      if (row + C::rows < s.nq) load_step(row + C::rows, 0);
      commit_async();
    }
    if (mode != Dq::kLeave) {
      float dq[C::dq_columns / 8][4];
      multiply_dq<C>(dq, ds_lane, k_all, row_slab, first_pair, (min(seen, C::block) + 15) / 16);
      if (mode == Dq::kAdd) {
        const int64_t tile_row = accumulator_start(s.q0, b) + row;
        float *sum = buffers.dq_sum + (h * accumulator_rows(p.a.rows_q, p.a.B) + tile_row) * C::columns;
#pragma unroll
        for (int n = 0; n < C::dq_columns / 8; n++) {
          accumulator_add(sum, row_slab * (C::columns / 8) + first_pair * 2 + n, lane, dq[n]);
        }
      } else {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int r = row + row_slab * 16 + half * 8 + (lane >> 2);
          if (r >= s.nq) continue;
          T *target = head_row<T>(p.a.dq, s.q0 + r, p.a.dq_stride, h, p.a.D) + (lane & 3) * 2;
#pragma unroll
          for (int n = 0; n < C::dq_columns / 8; n++) {
            const int column = (first_pair * 2 + n) * 8;
            if (column < p.a.D) {
              *reinterpret_cast<uint32_t *>(target + column) =
                  Half2<T>::pack(dq[n][half * 2] * p.a.scale, dq[n][half * 2 + 1] * p.a.scale);
            }
          }
        }
      }
    }
    if (C::stages == 2) stage ^= 1;
  }
  __syncthreads();  // everyone is done with the key tile: it carries the results out
  // Found again rather than kept in registers through the loop.
  const Sequence again = find_sequence(p.a, b);
  const int64_t key_row = static_cast<int64_t>(again.k0) + first_key;
  T *dk = head_row<T>(p.a.dk, key_row, p.a.dk_stride, h, p.a.D);
  T *dv = head_row<T>(p.a.dv, key_row, p.a.dv_stride, h, p.a.D);
  w.write(w.dk, p.a.scale, shared, warp_key, dk, p.a.dk_stride, again.nk - first_key, p.a.D, lane);
  w.write(w.dv, p.dropout.scale, shared + C::k_bytes, warp_key, dv, p.a.dv_stride, again.nk - first_key, p.a.D, lane);
}

template <class C, bool with_dropout>
__global__ void __launch_bounds__(C::threads, C::blocks_per_sm)
    backward_kernel(const __grid_constant__ Problem p, const BackwardBuffers buffers, Dq mode, int tiles) {
  backward_block<C, with_dropout>(p, buffers, mode, tiles);
}

// dq = scale * its accumulator, in 16 bits; rows of no sequence become 0.
template <class T, int columns>
__global__ void __launch_bounds__(128) convert_dq_kernel(const __grid_constant__ Problem p, const float *sums,
    int tiles) {
  __shared__ __align__(1024) char shared[kBackwardRows * columns * 2];
  const int thread = threadIdx.x, lane = thread & 31;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  int row = tile * kBackwardRows;
  if (b == p.a.B) {
    for (; row < s.nq; row += tiles * kBackwardRows) {
      write_zero_rows<T>(p.a.dq, p.a.dq_stride, s.q0, h, p.a.D, row, min(s.nq, row + kBackwardRows), thread, 128);
    }
    return;
  }
  if (row >= s.nq) return;
  const float *sum = sums + (h * accumulator_rows(p.a.rows_q, p.a.B) + accumulator_start(s.q0, b) + row) * columns;
#pragma unroll
  for (int i = 0; i < 2 * columns / 8; i += 4) {
    const int fragment = i + (thread >> 5);
    const int slab = fragment / (columns / 8), n = fragment % (columns / 8);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float low = sum[accumulator_index(fragment, lane, half * 2)];
      const float high = sum[accumulator_index(fragment, lane, half * 2 + 1)];
      const int r = slab * 16 + half * 8 + (lane >> 2);
      *reinterpret_cast<uint32_t *>(shared + Tile<columns>::offset(r, n) + (lane & 3) * 4) =
          Half2<T>::pack(low * p.a.scale, high * p.a.scale);
    }
  }
  __syncthreads();
  store_tile<T, columns, kBackwardRows, 128>(head_row<T>(p.a.dq, s.q0 + row, p.a.dq_stride, h, p.a.D), p.a.dq_stride,
                                             shared, s.nq - row, p.a.D, thread);
}

}  // namespace fa::imp

#endif
