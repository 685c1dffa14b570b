// The shape of kernels over [rows, n] in which a thread keeps its eight columns and walks down rows, and the two-stage
// column sums built on it: each block writes one partial row, a second kernel adds the partial rows in their order.
#ifndef FLASHATTN_OPS_COLUMNS_CUH
#define FLASHATTN_OPS_COLUMNS_CUH

#include "../philox.cuh"
#include "../types.cuh"

namespace fa {

constexpr int row_batch = 4;  // rows of a thread whose loads are in flight at once, at most

// Block (width, 256 / width): threadIdx.x is a group of eight columns, threadIdx.y a row. Block (x, y) of the grid
// takes groups from x * width on and rows y * chunk .. (y + 1) * chunk, where a chunk is a whole number of batches.
struct ColumnGrid {
  dim3 grid, block;
  int chunk;   // rows of a block
  int chunks;  // partial rows, grid.y
};

// `most_blocks` bounds the grid where partial rows cost traffic; 0: as many as there is work for. `most_width` bounds
// the width of a block.
ColumnGrid column_grid(int64_t rows, int64_t n, int64_t most_blocks, int most_width = 256);

// The grid of kernels that write partial sums: a block is one warp wide, as its rows of threads are added up within it
// and each block row costs a partial row.
ColumnGrid partial_grid(const fa_ctx *ctx, int64_t rows, int64_t n);

// Workspace of `vectors` column sums of n columns from `chunks` partial rows; one row needs none.
inline int64_t partial_bytes(int64_t chunks, int64_t n, int vectors) {
  return chunks <= 1 ? 0 : align_up(chunks * vectors * n * static_cast<int64_t>(sizeof(float)), 256);
}

// Adds up `count` partial rows of `vectors` times n columns in a fixed order: the first n into out, the next n, where
// vectors is 2, into second. An output that is NULL is left out.
fa_status add_partials(fa_ctx *ctx, float *out, float *second, int vectors, const float *partial, int64_t count,
                       int64_t n, bool accumulate);

// fa_column_sum after its checks; `workspace` has column_sum_bytes.
int64_t column_sum_bytes(const fa_ctx *ctx, int64_t rows, int64_t n);
fa_status column_sum(fa_ctx *ctx, float *out, const void *x, int64_t rows, int64_t n, int64_t stride, int32_t dtype,
                     bool accumulate, void *workspace);

// Calls load(r, u) for a batch of rows of this thread, then use(r, u), until its chunk is done. Rows past the end are
// left out, so that a last batch costs no more than a whole one.
template <int Batch = row_batch, class Load, class Use>
__device__ __forceinline__ void for_row_batches(int64_t rows, int chunk, Load &&load, Use &&use) {
  const int64_t last = min((static_cast<int64_t>(blockIdx.y) + 1) * chunk, rows);
  const int64_t step = blockDim.y;
  for (int64_t r = static_cast<int64_t>(blockIdx.y) * chunk + threadIdx.y; r < last; r += Batch * step) {
#pragma unroll
    for (int u = 0; u < Batch; u++) {
      if (r + u * step < last) load(r + u * step, u);
    }
#pragma unroll
    for (int u = 0; u < Batch; u++) {
      if (r + u * step < last) use(r + u * step, u);
    }
  }
}

// The random words of the eight elements of row r of [rows, n] from column `column` on, to be drawn while the elements
// are under way: drop_drawn() applies them. Without dropout any words do.
template <bool Vector>
__device__ __forceinline__ uint4 draw_row_group(const Dropout &dropout, int64_t r, int64_t n, int64_t column) {
  if (!Vector || !dropout.active()) return make_uint4(0, 0, 0, 0);
  return dropout.element_group((static_cast<uint64_t>(r) * n + column) >> 3);
}

// Where n is no multiple of eight the elements cross Philox groups, and each looks up its own.
template <bool Vector>
__device__ __forceinline__ void drop_drawn(const Dropout &dropout, const uint4 &words, int64_t r, int64_t n,
                                           int64_t column, float (&x)[8]) {
  if constexpr (Vector) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = dropout.apply(words, i, x[i]);
  } else if (dropout.active()) {
    const uint64_t first = static_cast<uint64_t>(r) * n + column;
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = dropout.keep_element(first + i) ? x[i] * dropout.scale : 0.0f;
  }
}

template <bool Vector>
__device__ __forceinline__ void drop_row_group(const Dropout &dropout, int64_t r, int64_t n, int64_t column,
                                               float (&x)[8]) {
  if (dropout.active()) drop_drawn<Vector>(dropout, draw_row_group<Vector>(dropout, r, n, column), r, n, column, x);
}

// Adds what the block's rows of threads hold for the same columns; the sum is in threadIdx.y == 0. `shared`: a float
// for each thread and each of the eight columns. All threads must call.
__device__ __forceinline__ void add_block_rows(float (&x)[8], float *shared) {
  if (blockDim.y == 1) return;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++) shared[i * threads + thread] = x[i];
  __syncthreads();
  if (threadIdx.y == 0) {
    for (unsigned y = 1; y < blockDim.y; y++) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] += shared[i * threads + y * blockDim.x + threadIdx.x];
    }
  }
}

// Writes eight column sums of a block to its partial row, first column `column` of n. Where there is one block row, the
// partial row is the result itself, which `accumulate` adds to.
__device__ __forceinline__ void store_partial(float *partial, int64_t n, int64_t column, bool accumulate,
                                              const float (&x)[8]) {
  float *row = partial + blockIdx.y * n + column;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (column + i < n) row[i] = accumulate ? row[i] + x[i] : x[i];
  }
}

}  // namespace fa

#endif
