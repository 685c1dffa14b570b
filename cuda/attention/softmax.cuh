// Masks and dropout on a warp's tile of scores, held as mma accumulators.
#ifndef FLASHATTN_SOFTMAX_CUH
#define FLASHATTN_SOFTMAX_CUH

#include "problem.cuh"

namespace fa {

// Calls f(row_half, column_tile, column_low, keep) for the 16 x 32 scores whose first row is `row` and first column
// `column` (multiples of 16 and 32): what this lane holds of them, two calls of the generator for 16 scores.
template <class F>
__device__ __forceinline__ void for_dropout_16x32(const Dropout &dropout, int row, int column, uint32_t bh, int lane,
    F f) {
#pragma unroll
  for (int low = 0; low < 2; low++) {
    const uint4 words = dropout.score_group(row + (lane >> 2), column + (lane & 3) * 2 + low, bh);
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int tile = 0; tile < 4; tile++) f(half, tile, low, dropout.keep(words, half * 4 + tile));
    }
  }
}

// The same for a transposed tile: 32 keys by 16 queries, f(key_tile, query_half, query_low, keep), where accumulator
// rows are keys (tile of 8 rows) and columns are queries.
template <class F>
__device__ __forceinline__ void for_dropout_32x16(const Dropout &dropout, int query, int key, uint32_t bh, int lane,
    F f) {
#pragma unroll
  for (int low = 0; low < 2; low++) {
    const uint4 words = dropout.score_group(query + (lane & 3) * 2 + low, key + (lane >> 2), bh);
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int tile = 0; tile < 4; tile++) f(tile, half, low, dropout.keep(words, half * 4 + tile));
    }
  }
}

}  // namespace fa

#endif
