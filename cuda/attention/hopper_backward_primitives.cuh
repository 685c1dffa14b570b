// What the backward kernels on Hopper share: the order of their blocks, the statistics of query rows, masks, and the
// way of a gradient from registers to memory.
#ifndef FLASHATTN_HOPPER_BACKWARD_PRIMITIVES_CUH
#define FLASHATTN_HOPPER_BACKWARD_PRIMITIVES_CUH

#include <algorithm>

#include "../dependent.cuh"
#include "hopper_primitives.cuh"
#include "hopper_tensor_map.cuh"
#include "hopper_wgmma.cuh"
#include "problem.cuh"
#include "rows.cuh"

namespace fa::hopper {

constexpr int kGroupRows = 64;                          // rows of a warpgroup
constexpr int kGroupPanelBytes = kGroupRows * kRowBytes;

// ---- tiles: their order, and who takes them ------------------------------------------------------------------------

// Heads in groups of `head_group` (whose streamed operands stay in L2), in a group the first tile of every head first;
// `reversed` counts tiles from the last. Under a causal mask that is the longest first.
struct BackwardSchedule {
  int tiles_per_head, head_group, heads, reversed;
  uint32_t *taken;  // tiles taken beyond each block's first, then blocks that are done: 0 between kernels. Or NULL

  __device__ __forceinline__ int tiles() const { return tiles_per_head * heads; }

  // The tile to take after the first, which is the block's number. One thread.
  __device__ __forceinline__ int take() const { return static_cast<int>(gridDim.x + atomicAdd(taken, 1u)); }

  // After the block's last take. The last block leaves zeros.
  __device__ __forceinline__ void finish() const {
    if (atomicAdd(taken + 1, 1u) == gridDim.x - 1) taken[0] = taken[1] = 0;
  }
};

struct HeadTile {
  int head, tile;  // head: b * H + h
};

__device__ __forceinline__ HeadTile find_head_tile(const BackwardSchedule &s, int index) {
  const int group_tiles = s.head_group * s.tiles_per_head;
  const int group = index / group_tiles, rest = index - group * group_tiles;
  const int group_heads = max(1, min(s.head_group, s.heads - group * s.head_group));
  const int tile = rest / group_heads;
  return {group * s.head_group + rest - tile * group_heads, s.reversed ? s.tiles_per_head - 1 - tile : tile};
}

// What the producer finds out about a tile and the consumers read from shared memory. b < 0: none is left.
struct BackwardTile {
  Sequence s;
  int b, h, first;  // first: row of the tile in the sequence
  int begin, end;   // steps of its walk

  static constexpr int kBytes = 48;

  __device__ __forceinline__ void store(uint32_t address) const {
    store_shared16(address, make_uint4(s.q0, s.nq, s.k0, s.nk));
    store_shared16(address + 16, make_uint4(s.keys, s.shift, b, h));
    store_shared16(address + 32, make_uint4(first, begin, end, 0));
  }
  __device__ __forceinline__ void load(uint32_t address) {
    const uint4 x = load_shared16(address), y = load_shared16(address + 16), z = load_shared16(address + 32);
    s.q0 = x.x, s.nq = x.y, s.k0 = x.z, s.nk = x.w;
    s.keys = y.x, s.shift = y.y, b = y.z, h = y.w;
    first = z.x, begin = z.y, end = z.z;
  }
};

// `streamed`: length of what the blocks of a head read again and again, two matrices of D columns. `taken`: NULL where
// each block has one tile.
inline BackwardSchedule make_backward_schedule(const fa_ctx *ctx, const fa_attention_args &a, int64_t tiles,
                                               int64_t streamed, bool reversed, uint32_t *taken) {
  const int64_t together = a.causal ? std::max<int64_t>(1, ctx->l2_bytes / 2 / (streamed * a.D * 4 + 1)) : 1;
  const int64_t heads = heads_of(a);
  return BackwardSchedule{static_cast<int>(std::max<int64_t>(tiles, 1)),
                          static_cast<int>(std::min(together, heads + 1)), static_cast<int>(heads), reversed ? 1 : 0,
                          taken};
}

// Blocks of a kernel that keeps a multiprocessor to itself.
inline int64_t persistent_blocks(const fa_ctx *ctx, int64_t tiles) {
  return std::max<int64_t>(1, std::min<int64_t>(tiles, ctx->sm_count));
}

// A place in a ring of `Count` slots and the parity of its barriers, in one register.
template <int Count>
struct PackedRing {
  uint32_t place = 0;  // 2 slot + parity

  __device__ __forceinline__ int slot() const { return static_cast<int>(place >> 1); }
  __device__ __forceinline__ uint32_t parity() const { return place & 1; }
  __device__ __forceinline__ void next() { place = slot() == Count - 1 ? parity() ^ 1 : place + 2; }
  __device__ __forceinline__ int before() const { return slot() == 0 ? Count - 1 : slot() - 1; }
};

// ---- statistics of query rows --------------------------------------------------------------------------------------

constexpr int kStatsSlack = 128;  // rows after a sequence that give probabilities of 0: no step over queries is longer

// lse * log2(e) and delta = sum over d of dout * out, each [H, stride]; a sequence starts on 16 bytes. A row without a
// key, and one past the sequence, has lse +inf and delta 0.
struct RowStats {
  float *lse, *delta;
  int64_t stride;
};

inline int64_t row_stats_stride(const fa_attention_args &a) {
  return align_up(a.rows_q, 4) + (kStatsSlack + 4) * static_cast<int64_t>(a.B) + 4;
}
inline int64_t row_stats_bytes(const fa_attention_args &a) { return align_up(8 * row_stats_stride(a) * a.H, 256); }
inline RowStats row_stats_at(const fa_attention_args &a, void *workspace) {
  float *lse = static_cast<float *>(workspace);
  return RowStats{lse, lse + row_stats_stride(a) * a.H, row_stats_stride(a)};
}
__device__ __forceinline__ int64_t row_stats_start(const RowStats &stats, int h, int q0, int b) {
  return h * stats.stride + (q0 + 3) / 4 * 4 + static_cast<int64_t>(kStatsSlack + 4) * b;
}

// What a block of a kernel that walks is: its problem, its tile, and its shared memory from `base` on.
template <class C, class Maps>
struct BackwardBlock : BackwardTile {
  using T = typename C::T;
  const Problem &p;
  const Maps &maps;
  const RowStats &stats;
  const uint32_t base;

  __device__ __forceinline__ BackwardBlock(const Problem &p, const Maps &maps, const RowStats &stats, uint32_t base)
      : p(p), maps(maps), stats(stats), base(base) {}

  // A head and its sequence.
  __device__ __forceinline__ void find_head(int head) {
    b = head / p.a.H;
    h = head - b * p.a.H;
    s = read_sequence(p.a, b);
  }
};

// ---- shared memory -------------------------------------------------------------------------------------------------

__device__ __forceinline__ float2 load_shared_float2(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void store_shared_float(uint32_t address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

// Zeros to rows first .. rows of a tile of `Panels` panels, by one warpgroup for itself: another that does the same at
// the same time writes the same. Ends with the warpgroup in step.
template <int Panels>
__device__ __forceinline__ void clear_tile_rows(uint32_t tile, int panel_bytes, int first, int rows) {
#pragma unroll 1
  for (int i = first * 8 + threadIdx.x % 128; i < rows * 8; i += 128) {
#pragma unroll
    for (int panel = 0; panel < Panels; panel++) {
      store_shared16(tile + panel * panel_bytes + i * 16, make_uint4(0, 0, 0, 0));
    }
  }
}

// ---- masks: element [4 j + 2 r + c] is row r of the thread and column 8 j + c --------------------------------------

// Columns at or past limit[r] get -inf.
template <int Columns>
__device__ __forceinline__ void mask_from(float (&s)[Columns / 2], int limit0, int limit1) {
#pragma unroll
  for (int j = 0; j < Columns / 8; j++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      if (8 * j + c >= limit0) s[4 * j + c] = -INFINITY;
      if (8 * j + c >= limit1) s[4 * j + 2 + c] = -INFINITY;
    }
  }
}

// Columns below limit[r] get -inf.
template <int Columns>
__device__ __forceinline__ void mask_until(float (&s)[Columns / 2], int limit0, int limit1) {
#pragma unroll
  for (int j = 0; j < Columns / 8; j++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      if (8 * j + c < limit0) s[4 * j + c] = -INFINITY;
      if (8 * j + c < limit1) s[4 * j + 2 + c] = -INFINITY;
    }
  }
}

// ---- transposed scores: rows are keys of a warpgroup, columns `Rows` queries, element [4 j + 2 r + c] as above -----

// Bit 4 j + 2 r + c is set where dropout keeps that element.
template <int Rows>
struct KeptBits {
  uint32_t words[(Rows / 2 + 31) / 32];
  __device__ __forceinline__ bool at(int i) const { return words[i / 32] >> i % 32 & 1; }
};

// The tile whose first query and key are `query` (a multiple of 16) and `key` (of 64).
template <int Rows>
__device__ __forceinline__ void find_kept_transposed(const Dropout &dropout, int query, int key, int head,
                                                     KeptBits<Rows> &kept) {
  const int lane = threadIdx.x % 32, row = key + threadIdx.x / 32 % 4 * 16 + lane / 4;
  const bool upper = row & 16;
#pragma unroll
  for (uint32_t &word : kept.words) word = 0;
#pragma unroll
  for (int pair = 0; pair < Rows / 16; pair++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const uint4 words = dropout.score_group(query + 16 * pair + lane % 4 * 2 + c, row, head);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t word = half == 0 ? (upper ? words.y : words.x) : (upper ? words.w : words.z);
        const int bit = 4 * (2 * pair + half) + c;
        if ((word & 0xffffu) >= dropout.threshold) kept.words[bit / 32] |= 1u << bit % 32;
        if (word >> 16 >= dropout.threshold) kept.words[bit / 32] |= 4u << bit % 32;
      }
    }
  }
}

// lse or delta of the thread's two queries of columns 8 j .. 8 j + 7; `values`: address of all queries'.
__device__ __forceinline__ float2 load_query_values(uint32_t values, int j) {
  return load_shared_float2(values + threadIdx.x % 4 * 8 + j * 32);
}

// Columns 8 j .. 8 j + 7: scores to probabilities 2^(x * scale_log2 - lse); pt: those that are kept, packed.
template <class T, int Rows, bool WithDropout>
__device__ __forceinline__ void probabilities_of(int j, float (&x)[Rows / 2], uint32_t (&pt)[Rows / 4], float2 row,
                                                 float scale_log2, const KeptBits<Rows> &kept) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = 4 * j + 2 * r;
    x[i] = exp2_fast(fmaf(x[i], scale_log2, -row.x));
    x[i + 1] = exp2_fast(fmaf(x[i + 1], scale_log2, -row.y));
    if constexpr (WithDropout) {
      pt[2 * j + r] = Half2<T>::pack(kept.at(i) ? x[i] : 0.0f, kept.at(i + 1) ? x[i + 1] : 0.0f);
    } else {
      pt[2 * j + r] = Half2<T>::pack(x[i], x[i + 1]);
    }
  }
}

template <class T, int Rows, bool WithDropout>
__device__ __forceinline__ void probabilities_at(int j, float (&x)[Rows / 2], uint32_t (&pt)[Rows / 4], uint32_t lse,
                                                 float scale_log2, const KeptBits<Rows> &kept) {
  probabilities_of<T, Rows, WithDropout>(j, x, pt, load_query_values(lse, j), scale_log2, kept);
}

// The same columns of ds = p (dp - delta), packed, with the probabilities as they were packed: x is free for other
// scores.
template <class T, int Rows>
__device__ __forceinline__ void differentiate_packed_of(int j, const uint32_t (&pt)[Rows / 4],
                                                        const float (&dp)[Rows / 2], uint32_t (&ds)[Rows / 4],
                                                        float2 row) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = 4 * j + 2 * r;
    const float2 x = Half2<T>::unpack(pt[2 * j + r]);
    ds[2 * j + r] = Half2<T>::pack(x.x * (dp[i] - row.x), x.y * (dp[i + 1] - row.y));
  }
}

template <class T, int Rows>
__device__ __forceinline__ void differentiate_packed_at(int j, const uint32_t (&pt)[Rows / 4],
                                                        const float (&dp)[Rows / 2], uint32_t (&ds)[Rows / 4],
                                                        uint32_t delta) {
  differentiate_packed_of<T, Rows>(j, pt, dp, ds, load_query_values(delta, j));
}

// The same columns of ds = x (dp - delta), packed.
template <class T, int Rows, bool WithDropout>
__device__ __forceinline__ void differentiate_at(int j, const float (&x)[Rows / 2], const float (&dp)[Rows / 2],
                                                 uint32_t (&ds)[Rows / 4], uint32_t delta, const KeptBits<Rows> &kept,
                                                 float dropout_scale) {
  const float2 row = load_query_values(delta, j);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = 4 * j + 2 * r;
    float low = dp[i], high = dp[i + 1];
    if constexpr (WithDropout) {
      low = kept.at(i) ? low * dropout_scale : 0.0f;
      high = kept.at(i + 1) ? high * dropout_scale : 0.0f;
    }
    ds[2 * j + r] = Half2<T>::pack(x[i] * (low - row.x), x[i + 1] * (high - row.y));
  }
}

// ---- products of a warpgroup ---------------------------------------------------------------------------------------

// x [64, N] = a [64, D] b [N, D]^T as one group. `a`: address of a 64-row tile, `b`: of an N-row tile.
template <class T, int D, int N>
__device__ __forceinline__ void start_scores_product(float (&x)[N / 2], uint32_t a, uint32_t b) {
  const uint64_t left = descriptor_k_major(a), right = descriptor_k_major(b);
  product_begin();
#pragma unroll
  for (int i = 0; i < D / 16; i++) {
    const int panel = i / 4, inside = i % 4 * 32;
    product_ss<T, N, 0, 0>(x, advance(left, panel * kGroupPanelBytes + inside),
                           advance(right, panel * N * kRowBytes + inside), i > 0);
  }
  product_commit();
}

// sum [64, D] += x [64, N] b [N, D] as one group; x packed, b an N-row tile.
template <class T, int D, int N>
__device__ __forceinline__ void start_sum_product(float (&sum)[D / 2], const uint32_t (&x)[N / 4], uint32_t b) {
  const uint64_t right = descriptor_mn_major(b, N * kRowBytes);
  product_begin();
#pragma unroll
  for (int i = 0; i < N / 16; i++) {
    product_rs<T, D, 1>(sum, x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3], advance(right, i * 16 * kRowBytes), 1);
  }
  product_commit();
}

// ---- results -------------------------------------------------------------------------------------------------------

// Writes sum [64, D] * factor through the warp's own 16 rows of a 64-row tile: rows below `existing`, zeros from
// `valid` on. `target`: row 0 of the warpgroup.
template <class T, int D>
__device__ __forceinline__ void write_gradient(const float (&sum)[D / 2], float factor, uint32_t tile, T *target,
                                               int64_t stride, int existing, int valid) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const uint32_t mine = tile + warp * 16 * kRowBytes;
  const int row0 = warp * 16 + lane / 4;
  const bool live0 = row0 < valid, live1 = row0 + 8 < valid;
#pragma unroll
  for (int i = 0; i < D / 16; i++) {
    const int row = lane % 16, chunk = i % 4 * 2 + lane / 16;
    const uint32_t address = mine + i / 4 * kGroupPanelBytes + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
    const float *x = sum + 8 * i;
    store_matrices(address, live0 ? Half2<T>::pack(x[0] * factor, x[1] * factor) : 0u,
                   live1 ? Half2<T>::pack(x[2] * factor, x[3] * factor) : 0u,
                   live0 ? Half2<T>::pack(x[4] * factor, x[5] * factor) : 0u,
                   live1 ? Half2<T>::pack(x[6] * factor, x[7] * factor) : 0u);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < D / 16; i++) {
    const int row = i % 4 * 4 + lane / 8, chunk = lane % 8;
    const uint4 x = load_shared16(mine + i / 4 * kGroupPanelBytes + row * kRowBytes + ((chunk ^ (row & 7)) << 4));
    if (warp * 16 + row < existing) {
      __stcs(reinterpret_cast<uint4 *>(target + (warp * 16 + row) * stride + i / 4 * kPanelColumns + chunk * 8), x);
    }
  }
  __syncwarp();
}

// Zeros to all heads of rows begin .. rows of a gradient: those of no sequence. Shared by the `threads` of all blocks.
template <class T>
__device__ __forceinline__ void clear_rows_past(void *base, int64_t stride, int begin, int rows, int columns,
                                                int thread, int threads) {
  const int lane = thread % 32, warps = gridDim.x * (threads / 32);
  for (int row = begin + blockIdx.x * (threads / 32) + thread / 32; row < rows; row += warps) {
    uint4 *target = reinterpret_cast<uint4 *>(static_cast<T *>(base) + row * stride);
    for (int i = lane; i < columns / 8; i += 32) target[i] = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace fa::hopper

#endif
