// Matrix products of dotscale: batched over sequences and heads, 16-bit operands by row stride, float accumulation. The
// probability matrix of head bh lies at matrix + bh * max_q * pitch, its rows `pitch` elements apart.
#ifndef FLASHATTN_DOTSCALE_GEMM_CUH
#define FLASHATTN_DOTSCALE_GEMM_CUH

#include "rows.cuh"
#include "tensor_core.cuh"

namespace fa::dotscale {

inline int64_t matrix_pitch(const fa_attention_args &a) { return align_up(a.max_k > 0 ? a.max_k : 1, 8); }
inline int64_t matrix_bytes(const fa_attention_args &a) {
  return align_up(heads_of(a) * a.max_q * matrix_pitch(a) * 2, 256);
}

__device__ __forceinline__ int64_t matrix_offset(const fa_attention_args &a, int head, int row, int pitch) {
  return (static_cast<int64_t>(head) * a.max_q + row) * pitch;
}

// Rows [rows, H, D] by stride, a factor or a product.
struct Rows {
  void *base;
  int64_t stride;
};

// ---- matrix = alpha * a b^T: a has the queries, b the keys ----------------------------------------------------------

template <int columns>
struct OuterConfig {
  static constexpr int threads = 256, tile = 128;
  static constexpr int operand_bytes = tile * columns * 2;
  static constexpr int result_bytes = tile * tile * 2;
  static constexpr int shared_bytes = 2 * operand_bytes > result_bytes ? 2 * operand_bytes : result_bytes;
};

template <class T, int columns>
__global__ void __launch_bounds__(256, columns <= 64 ? 2 : 1)
    outer_kernel(const __grid_constant__ Problem p, Rows left, Rows right, T *matrix, int pitch, float alpha,
                 int row_tiles, int key_tiles) {
  using C = OuterConfig<columns>;
  extern __shared__ __align__(1024) char shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int tiles = row_tiles * key_tiles;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  const int row = tile / key_tiles * C::tile, key = tile % key_tiles * C::tile;
  if (row >= s.nq || key >= visible_keys(p.a, s, min(s.nq, row + C::tile) - 1)) return;

  const uint32_t a_tile = shared_address(shared), b_tile = a_tile + C::operand_bytes;
  load_tile<T, columns, C::tile, C::threads>(a_tile, head_row<T>(left.base, s.q0 + row, left.stride, h, p.a.D),
                                             left.stride, s.nq - row, p.a.D, thread);
  load_tile<T, columns, C::tile, C::threads>(b_tile, head_row<T>(right.base, s.k0 + key, right.stride, h, p.a.D),
                                             right.stride, s.keys - key, p.a.D, thread);
  commit_async();
  wait_async<0>();
  __syncthreads();
  const int warp_row = (warp >> 1) * 32, warp_key = (warp & 1) * 64;
  const auto a_lane = LaneTile<columns>::rows_first(a_tile + warp_row * Tile<columns>::pitch, lane);
  const auto b_lane = LaneTile<columns>::columns_first(b_tile + warp_key * Tile<columns>::pitch, lane);
  float sum[2][8][4] = {};
#pragma unroll
  for (int step = 0; step < columns / 16; step++) {
    uint32_t a[2][4];
    ldmatrix(a[0], a_lane.at(0, step));
    ldmatrix(a[1], a_lane.at(1, step));
#pragma unroll
    for (int n = 0; n < 4; n++) {
      uint32_t x[4];
      ldmatrix(x, b_lane.at(n, step));
#pragma unroll
      for (int m = 0; m < 2; m++) {
        mma<T>(sum[m][2 * n], a[m], x[0], x[1]);
        mma<T>(sum[m][2 * n + 1], a[m], x[2], x[3]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp_row + m * 16 + half * 8 + (lane >> 2);
#pragma unroll
      for (int n = 0; n < 8; n++) {
        *reinterpret_cast<uint32_t *>(shared + Tile<C::tile>::offset(r, warp_key / 8 + n) + (lane & 3) * 4) =
            Half2<T>::pack(sum[m][n][half * 2] * alpha, sum[m][n][half * 2 + 1] * alpha);
      }
    }
  }
  __syncthreads();
  store_tile<T, C::tile, C::tile, C::threads>(matrix + matrix_offset(p.a, head, row, pitch) + key, pitch, shared,
                                              s.nq - row, s.keys - key, thread);
}

// ---- rows = alpha * matrix b, or alpha * matrix^T b -----------------------------------------------------------------

template <int columns>
struct InnerConfig {
  static constexpr int threads = 128, tile = 128, depth = 64, stages = 2;
  static constexpr int matrix_bytes = tile * depth * 2;
  static constexpr int stage_bytes = matrix_bytes + depth * columns * 2;
  static constexpr int result_bytes = tile * columns * 2;
  static constexpr int shared_bytes = stages * stage_bytes > result_bytes ? stages * stage_bytes : result_bytes;
};

// A tile of the matrix: rows from `valid` up and columns from `width` up become 0.
template <class T, int columns, int rows, int threads>
__device__ __forceinline__ void load_matrix(uint32_t tile, const T *source, int pitch, int valid, int width,
    int thread) {
  constexpr int chunks = Tile<columns>::chunks, step = threads / chunks;
  const int chunk = thread % chunks, first = thread / chunks;
  const int bytes = clamp_int((width - chunk * 8) * 2, 0, 16);
  const T *from = source + static_cast<int64_t>(first) * pitch + chunk * 8;
#pragma unroll
  for (int r = 0; r < rows; r += step) {
    copy_async_16(tile + Tile<columns>::offset(first + r, chunk), from, first + r < valid ? bytes : 0);
    from += static_cast<int64_t>(step) * pitch;
  }
}

// transposed: the result's rows are keys and the sum runs over queries; else rows are queries, the sum runs over keys.
template <class T, int columns, bool transposed>
__global__ void __launch_bounds__(128, columns <= 64 ? 3 : 2)
    inner_kernel(const __grid_constant__ Problem p, const T *matrix, int pitch, Rows right, Rows result, float alpha,
                 int tiles) {
  using C = InnerConfig<columns>;
  extern __shared__ __align__(1024) char shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  const int first = tile * C::tile;
  const int result_row0 = transposed ? s.k0 : s.q0, result_rows = transposed ? s.nk : s.nq;
  if (b == p.a.B) {
    for (int row = first; row < result_rows; row += tiles * C::tile) {
      write_zero_rows<T>(result.base, result.stride, result_row0, h, p.a.D, row, min(result_rows, row + C::tile),
                         thread, C::threads);
    }
    return;
  }
  if (first >= result_rows) return;
  // What the sum runs over: queries that see the tile's first key, or keys that the tile's last query sees.
  const int begin = !transposed ? 0 : first >= s.keys ? s.nq : p.a.causal ? max(0, first - s.shift) : 0;
  const int end = transposed ? s.nq : max(0, visible_keys(p.a, s, min(s.nq, first + C::tile) - 1));
  const T *head_matrix = matrix + matrix_offset(p.a, head, 0, pitch);
  const uint32_t stages = shared_address(shared);
  const int other_row0 = transposed ? s.q0 : s.k0;
  auto load = [&](int at, int stage) {
    const uint32_t to = stages + stage * C::stage_bytes;
    if (transposed) {
      load_matrix<T, C::tile, C::depth, C::threads>(to, head_matrix + static_cast<int64_t>(at) * pitch + first, pitch,
                                                    end - at, s.keys - first, thread);
    } else {
      load_matrix<T, C::depth, C::tile, C::threads>(to, head_matrix + static_cast<int64_t>(first) * pitch + at, pitch,
                                                    s.nq - first, end - at, thread);
    }
    load_tile<T, columns, C::depth, C::threads>(
        to + C::matrix_bytes, head_row<T>(right.base, other_row0 + at, right.stride, h, p.a.D), right.stride, end - at,
        p.a.D, thread);
  };
  float sum[2][columns / 8][4] = {};
  if (begin < end) load(begin, 0);
  commit_async();
  int stage = 0;
  for (int at = begin; at < end; at += C::depth) {
    wait_async<0>();
    __syncthreads();
    if (at + C::depth < end) load(at + C::depth, stage ^ 1);
    commit_async();
    const uint32_t a_tile = stages + stage * C::stage_bytes;
    const auto b_lane = LaneTile<columns>::rows_first(a_tile + C::matrix_bytes, lane);
    const auto straight = LaneTile<C::depth>::rows_first(a_tile + warp * 32 * Tile<C::depth>::pitch, lane);
#pragma unroll
    for (int step = 0; step < C::depth / 16; step++) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; m++) {
        if constexpr (transposed) {
          // The column depends on the warp, so the permutation is applied to it here.
          const int chunk = warp * 4 + m * 2 + ((lane >> 3) & 1);
          const int row = step * 16 + (lane & 7) + ((lane >> 4) << 3);
          ldmatrix_transposed(a[m], a_tile + Tile<C::tile>::offset(row, chunk));
        } else {
          ldmatrix(a[m], straight.at(m, step));
        }
      }
#pragma unroll
      for (int n = 0; n < columns / 16; n++) {
        uint32_t x[4];
        ldmatrix_transposed(x, b_lane.at(step, n));
#pragma unroll
        for (int m = 0; m < 2; m++) {
          mma<T>(sum[m][2 * n], a[m], x[0], x[1]);
          mma<T>(sum[m][2 * n + 1], a[m], x[2], x[3]);
        }
      }
    }
    stage ^= 1;
  }
  wait_async<0>();
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp * 32 + m * 16 + half * 8 + (lane >> 2);
#pragma unroll
      for (int n = 0; n < columns / 8; n++) {
        *reinterpret_cast<uint32_t *>(shared + Tile<columns>::offset(r, n) + (lane & 3) * 4) =
            Half2<T>::pack(sum[m][n][half * 2] * alpha, sum[m][n][half * 2 + 1] * alpha);
      }
    }
  }
  __syncwarp();
  const int warp_row = first + warp * 32;
  store_tile<T, columns, 32, 32>(head_row<T>(result.base, result_row0 + warp_row, result.stride, h, p.a.D),
                                 result.stride, shared + warp * 32 * Tile<columns>::pitch, result_rows - warp_row,
                                 p.a.D, lane);
}

}  // namespace fa::dotscale

#endif
