// The forward pass of short sequences on Hopper, head dimension 64, by mma.sync: tiles of 16 rows waste less of a short
// sequence than wgmma's 64. A block loads all keys and values of a head and its queries at once, nothing is streamed;
// each warp owns 16 query rows at a time and works only on keys that exist, on the first 64 while the rest arrives.
// Small blocks, five or six on a multiprocessor, hide each other's loads.
#ifndef FLASHATTN_HOPPER_FORWARD_SHORT_CUH
#define FLASHATTN_HOPPER_FORWARD_SHORT_CUH

#include <algorithm>

#include "hopper_primitives.cuh"
#include "rows.cuh"

namespace fa::hopper {

constexpr int kShortD = 64;
constexpr int kShortFirst = 64;       // keys of a row tile's first step
constexpr int kShortBlockRows = 128;  // most queries of a block

// More: tiles of 16 keys of a step after the first, when the output takes registers as well. Blocks: a
// multiprocessor's, the register budget.
template <class T_, int More_, int Blocks_>
struct ShortForwardConfig {
  using T = T_;
  static constexpr int More = More_, Blocks = Blocks_;
  static constexpr int Warps = 4, Threads = Warps * 32;
  static constexpr int Pass = Threads / 8;  // rows that the threads of a block copy at a time
  static_assert(Pass % 16 == 0, "the permutation of a thread's chunk stays the same, and tiles of 16 rows are whole");
  static_assert(More == 2 || More == 3);
};

// Rows of a block's tiles in shared memory: queries, then keys, then values.
struct ShortTiles {
  int q_rows, k_rows;
};

// base + row * stride, the stride in elements of 16 bits: one instruction, as the launch makes sure that 31 bits hold
// it in bytes.
__device__ __forceinline__ const void *row_address(const void *base, int row, int64_t stride) {
  const void *result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(row), "r"(static_cast<int>(stride) * 2), "l"(base));
  return result;
}

// One warp's 16 query rows.
template <class C>
struct ShortForwardWarp {
  using T = typename C::T;
  static constexpr int out_tiles = kShortD / 8;

  const Problem &p;
  const uint32_t q, k, v;  // the row tile, and all keys and values, in shared memory
  // This lane's place for ldmatrix, 16 columns on: xor 32. Operand a, or b from rows of the summed dimension, and
  // operand b from rows of the other.
  const uint32_t rows_first, columns_first;
  const int keys;  // row r of the tile sees keys below min(keys, diagonal + r)
  const int diagonal;
  const int lane;
  float out[out_tiles][4];
  float row_max[2], row_sum[2];

  // Rows that see no key.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < out_tiles; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) asm volatile("mov.b32 %0, 0;" : "=f"(out[n][e]));  // not done beforehand in any case
    }
    row_sum[0] = row_sum[1] = row_max[0] = row_max[1] = 0.0f;
  }

  template <int tiles>
  __device__ __forceinline__ void multiply_qk(float (&scores)[2 * tiles][4], int first_key) const {
#pragma unroll
    for (int n = 0; n < 2 * tiles; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) scores[n][e] = 0.0f;
    }
    const uint32_t rows_first = fresh(this->rows_first), columns_first = fresh(this->columns_first);
#pragma unroll
    for (int step = 0; step < kShortD / 16; step++) {
      uint32_t a[4];
      ldmatrix(a, (rows_first ^ (step << 5)) + q);
#pragma unroll
      for (int n = 0; n < tiles; n++) {
        uint32_t b[4];
        ldmatrix(b, (columns_first ^ (step << 5)) + (k + first_key * kRowBytes) + n * 16 * kRowBytes);
        mma<T>(scores[2 * n], a, b[0], b[1]);
        mma<T>(scores[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // Only tiles of 16 keys that some row does not see whole are looked at.
  template <int tiles>
  __device__ __forceinline__ void mask(float (&scores)[2 * tiles][4], int first_key) const {
    const int lane = fresh(this->lane);
    const int whole = min(keys, diagonal) - first_key;
    int limit[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      limit[half] = min(keys, diagonal + half * 8 + (lane >> 2)) - first_key - (lane & 3) * 2;
    }
#pragma unroll
    for (int n = 0; n < tiles; n++) {
      if (n * 16 + 16 <= whole) continue;
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int column = n * 16 + (e >> 1) * 8 + (e & 1);
          if (column >= limit[half]) scores[2 * n + (e >> 1)][half * 2 + (e & 1)] = -INFINITY;
        }
      }
    }
  }

  // scores become probabilities relative to the running maximum; output and sum are rescaled to it.
  template <int tiles, bool first>
  __device__ __forceinline__ void soften(float (&scores)[2 * tiles][4]) {
    float top[2], shift[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float chain[2];
#pragma unroll
      for (int n = 0; n < 2 * tiles; n++) {
        const float x = fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]);
        chain[n & 1] = n < 2 ? x : fmaxf(chain[n & 1], x);
      }
      top[half] = fmaxf(chain[0], chain[1]);
      if (!first) top[half] = fmaxf(top[half], row_max[half]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) top[half] = quad_max(top[half]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      shift[half] = (top[half] == -INFINITY ? 0.0f : top[half]) * p.scale_log2;
      if (!first) {
        const float rescale = exp2_fast(fmaf(row_max[half], p.scale_log2, -shift[half]));
        row_sum[half] *= rescale;
#pragma unroll
        for (int n = 0; n < out_tiles; n++) {
          out[n][half * 2] *= rescale;
          out[n][half * 2 + 1] *= rescale;
        }
      }
      row_max[half] = top[half];
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum[2];
#pragma unroll
      for (int n = 0; n < 2 * tiles; n++) {
#pragma unroll
        for (int low = 0; low < 2; low++) {
          float &x = scores[n][half * 2 + low];
          x = exp2_fast(fmaf(x, p.scale_log2, -shift[half]));
          sum[low] = n == 0 ? x : sum[low] + x;
        }
      }
      row_sum[half] = first ? sum[0] + sum[1] : row_sum[half] + (sum[0] + sum[1]);
    }
  }

  template <int tiles, bool first>
  __device__ __forceinline__ void multiply_pv(const float (&scores)[2 * tiles][4], int first_key) {
    const uint32_t rows_first = fresh(this->rows_first);
#pragma unroll
    for (int step = 0; step < tiles; step++) {
      uint32_t a[4];
      pack_operand<T>(a, scores, step);
#pragma unroll
      for (int n = 0; n < out_tiles / 2; n++) {
        uint32_t b[4];
        ldmatrix_transposed(b, (rows_first ^ (n << 5)) + (v + first_key * kRowBytes) + step * 16 * kRowBytes);
        if (first && step == 0) {
#pragma unroll
          for (int e = 0; e < 4; e++) out[2 * n][e] = out[2 * n + 1][e] = 0.0f;
        }
        mma<T>(out[2 * n], a, b[0], b[1]);
        mma<T>(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  template <int tiles, bool first>
  __device__ __forceinline__ void step(int first_key) {
    float scores[2 * tiles][4];
    multiply_qk<tiles>(scores, first_key);
    if (min(keys, diagonal) < first_key + tiles * 16) mask<tiles>(scores, first_key);
    soften<tiles, first>(scores);
    multiply_pv<tiles, first>(scores, first_key);
  }

  // The first `count` keys or so, at most kShortFirst.
  __device__ __forceinline__ void first_step(int count) {
    if (count > 48) {
      step<4, true>(0);
    } else if (count > 32) {
      step<3, true>(0);
    } else if (count > 16) {
      step<2, true>(0);
    } else {
      step<1, true>(0);
    }
  }

  // From first_key on `count` keys or so, at most 16 * More.
  __device__ __forceinline__ void next_step(int first_key, int count) {
    if (C::More == 3 && count > 32) {
      step<C::More, false>(first_key);
    } else if (count > 16) {
      step<2, false>(first_key);
    } else {
      step<1, false>(first_key);
    }
  }

  // Divides by the sums, writes lse, and the rows through the warp's part of the query tile, which it has done with.
  // row0: in the tensor; valid: rows that exist.
  __device__ __forceinline__ void finish(int row0, int valid, int h) const {
    float norm[2];
    float *lse = p.a.lse + static_cast<int64_t>(h) * p.a.rows_q + row0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float sum = quad_sum(row_sum[half]);  // at least about 1 where there is a key
      const int row = half * 8 + (lane >> 2);
      norm[half] = sum > 0.0f ? reciprocal_fast(sum) : 0.0f;
      if ((lane & 3) == 0 && row < valid) {
        lse[row] = sum > 0.0f ? fmaf(row_max[half], p.a.scale, log2_fast(sum) * kLn2) : -INFINITY;
      }
    }
#pragma unroll
    for (int n = 0; n < out_tiles / 2; n++) {
      uint32_t packed[4];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float *pair = &out[2 * n + (e >> 1)][(e & 1) * 2];
        packed[e] = Half2<T>::pack(pair[0] * norm[e & 1], pair[1] * norm[e & 1]);
      }
      store_matrices((q + Tile<kShortD>::offset(lane & 15, lane >> 4)) ^ (n << 5), packed[0], packed[1], packed[2],
                     packed[3]);
    }
    __syncwarp();
    const int row = lane / 8, chunk = lane % 8;
    const uint32_t even = q + Tile<kShortD>::offset(row, chunk), odd = (even ^ 64) + 4 * kRowBytes;
    uint4 lines[4];
#pragma unroll
    for (int i = 0; i < 4; i++) lines[i] = load_shared16((i % 2 == 0 ? even : odd) + i / 2 * 8 * kRowBytes);
    const char *to = static_cast<const char *>(p.a.out) + h * kRowBytes + chunk * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint4 *line = static_cast<uint4 *>(const_cast<void *>(row_address(to, row0 + row + 4 * i, p.a.out_stride)));
      if (row + 4 * i < valid) __stcs(line, lines[i]);
    }
  }
};

template <class C>
struct ShortForwardBlock {
  using T = typename C::T;
  const Problem &p;
  const Sequence s;
  const int h, first_row, rows, keys;  // keys: those that some row sees
  char *shared;
  const ShortTiles tiles;

  __device__ __forceinline__ void load_queries(uint32_t to) const {
    const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const char *q = static_cast<const char *>(p.a.q) + h * kRowBytes + chunk * 16;
    to += Tile<kShortD>::offset(row, chunk);
#pragma unroll 1
    for (int r = row; r - row < rows; r += C::Pass, to += C::Pass * kRowBytes) {
      copy_async_16(to, row_address(q, s.q0 + first_row + r, p.a.q_stride), r < rows ? 16 : 0);
    }
  }

  // Keys and values begin .. end, zeros from `keys` up.
  __device__ __forceinline__ void load_keys(uint32_t k_to, uint32_t v_to, int begin, int end) const {
    const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const char *k = static_cast<const char *>(p.a.k) + h * kRowBytes + chunk * 16;
    const char *v = static_cast<const char *>(p.a.v) + h * kRowBytes + chunk * 16;
    uint32_t to = Tile<kShortD>::offset(begin + row, chunk);
#pragma unroll 1
    for (int r = begin + row; r - row < end; r += C::Pass, to += C::Pass * kRowBytes) {
      const int bytes = r < keys ? 16 : 0;
      copy_async_16(k_to + to, row_address(k, s.k0 + r, p.a.k_stride), bytes);
      copy_async_16(v_to + to, row_address(v, s.k0 + r, p.a.v_stride), bytes);
    }
    commit_async();
  }

  __device__ __forceinline__ uint32_t q_tile() const { return shared_address(shared); }
  __device__ __forceinline__ uint32_t k_tile() const { return q_tile() + tiles.q_rows * kRowBytes; }
  __device__ __forceinline__ uint32_t v_tile() const { return k_tile() + tiles.k_rows * kRowBytes; }

  __device__ __forceinline__ void load() const {
    load_queries(q_tile());
    load_keys(k_tile(), v_tile(), 0, min(keys, kShortFirst));
    if (keys > kShortFirst) load_keys(k_tile(), v_tile(), kShortFirst, keys);
  }

  __device__ __forceinline__ void work() const {
    const int lane = threadIdx.x % 32;
    const uint32_t rows_first = Tile<kShortD>::offset(lane & 15, lane >> 4);
    const uint32_t columns_first = Tile<kShortD>::offset((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    bool arriving = keys > kShortFirst;  // all warps wait together, whether they have rows or not
    if (arriving) {
      wait_async<1>();
    } else {
      wait_async<0>();
    }
    __syncthreads();
#pragma unroll 1
    for (int row = uniform(threadIdx.x / 32) * 16;; row += C::Warps * 16) {
      const int mine = min(16, rows - row);
      if (!arriving && mine <= 0) return;
      const int diagonal = p.a.causal ? first_row + row + s.shift + 1 : INT32_MAX / 2;
      const int visible = mine > 0 ? uniform(min(s.keys, diagonal + mine - 1)) : 0;
      ShortForwardWarp<C> w{
          p, q_tile() + row * kRowBytes, k_tile(), v_tile(), rows_first, columns_first, s.keys, diagonal, lane};
      if (visible > 0) {
        w.first_step(visible);
      } else {
        w.clear();
      }
      if (arriving) {
        wait_async<0>();
        __syncthreads();
        arriving = false;
      }
#pragma unroll 1
      for (int key = kShortFirst; key < visible; key += C::More * 16) w.next_step(key, visible - key);
      if (mine > 0) w.finish(s.q0 + first_row + row, mine, h);
    }
  }
};

// Rows of no sequence, shared by all blocks. Apart, as there seldom are any and registers are few.
template <class T>
__device__ __noinline__ void clear_rows_from(const fa_attention_args &a, int begin) {
  const int warps = blockDim.x / 32, blocks = gridDim.x * gridDim.y * gridDim.z;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  clear_output_from<T, kShortD>(a, begin, block * warps + threadIdx.x / 32, blocks * warps);
}

// Grid: heads, parts of a head's queries, sequences.
template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
    hopper_forward_short_kernel(const __grid_constant__ Problem p, const ShortTiles tiles) {
  extern __shared__ __align__(1024) char short_shared[];
  const fa_attention_args &a = p.a;
  const int h = blockIdx.x, b = blockIdx.z, first_row = blockIdx.y * tiles.q_rows;
  const int q_last = a.cu_q[a.B];
  const Sequence s = read_sequence(a, b);
  const int rows = min(tiles.q_rows, s.nq - first_row);
  const int keys = rows > 0 ? max(0, visible_keys(a, s, first_row + rows - 1)) : 0;
  const ShortForwardBlock<C> block{p, s, h, first_row, rows, keys, short_shared, tiles};
  if (rows > 0) block.load();
  if (q_last < a.rows_q) clear_rows_from<typename C::T>(a, max(q_last, 0));
  if (rows > 0) block.work();
}

// No dropout; a grid holds so many sequences, and a row's place in bytes may be had by one multiplication.
inline bool short_forward_supported(const fa_attention_args &a) {
  const int64_t limit = int64_t{1} << 29;
  return a.D == kShortD && a.dropout == 0.0f && a.B <= 65535 && a.q_stride < limit && a.k_stride < limit &&
         a.v_stride < limit && a.out_stride < limit;
}

template <class C>
fa_status launch_forward_short(fa_ctx *ctx, const fa_attention_args &a) {
  if (a.rows_q == 0) return FA_OK;
  const int64_t slabs = ceil_div(std::max(a.max_q, 1), 16), parts = ceil_div(slabs * 16, kShortBlockRows);
  const ShortTiles tiles{static_cast<int>(align_up(ceil_div(slabs, parts) * 16, C::Pass)),
                         static_cast<int>(align_up(a.max_k, C::Pass))};
  const size_t shared = static_cast<size_t>(tiles.q_rows + 2 * tiles.k_rows) * kRowBytes;
  FA_TRY(check_grid(ctx, heads_of(a) * parts));
  FA_TRY(allow_shared(ctx, hopper_forward_short_kernel<C>, shared));
  const dim3 grid(a.H, static_cast<unsigned>(parts), std::max(a.B, 1));
  hopper_forward_short_kernel<C><<<grid, C::Threads, shared, ctx->stream>>>(make_problem(a), tiles);
  return FA_LAUNCHED(ctx, "Hopper attention forward, short sequences");
}

}  // namespace fa::hopper

#endif
