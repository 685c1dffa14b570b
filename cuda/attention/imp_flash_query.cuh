// dq in a fixed order, for the deterministic backward pass where there are several key tiles: a block owns query rows
// and streams the keys past, as the forward pass does. Costs two more matrix products than adding in memory.
#ifndef FLASHATTN_IMP_FLASH_QUERY_CUH
#define FLASHATTN_IMP_FLASH_QUERY_CUH

#include "imp_flash_backward.cuh"
#include "imp_flash_forward.cuh"

namespace fa::imp {

// Rows of q and dout stay in shared memory; keys and values come in blocks, two buffers each.
template <class T, int columns>
__global__ void __launch_bounds__(kThreads, 2)
    query_kernel(const __grid_constant__ Problem p, const float2 *all_stats, int tiles) {
  constexpr int block = 32, rows = 64;
  using C = ForwardConfig<T, columns, 1, block, 2, 2>;
  using Warp = ForwardWarp<C>;
  constexpr int d_tiles = columns / 8;
  extern __shared__ __align__(1024) char shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int head = blockIdx.x / tiles, tile = tiles - 1 - static_cast<int>(blockIdx.x % tiles);
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  const int first_row = tile * rows;
  if (b == p.a.B) {
    for (int row = first_row; row < s.nq; row += tiles * rows) {
      write_zero_rows<T>(p.a.dq, p.a.dq_stride, s.q0, h, p.a.D, row, min(s.nq, row + rows), thread, kThreads);
    }
    return;
  }
  if (first_row >= s.nq) return;
  const int keys_end = visible_keys(p.a, s, min(s.nq, first_row + rows) - 1);
  const uint32_t q_tile = shared_address(shared), dout_tile = q_tile + C::q_bytes;
  const uint32_t kv_tile = dout_tile + C::q_bytes;
  auto load = [&](int n) {
    const uint32_t to = kv_tile + (n & 1) * 2 * C::kv_bytes;
    const int key = n * block;
    load_tile<T, columns, block, kThreads>(to, head_row<T>(p.a.k, s.k0 + key, p.a.k_stride, h, p.a.D), p.a.k_stride,
                                           s.keys - key, p.a.D, thread);
    load_tile<T, columns, block, kThreads>(to + C::kv_bytes, head_row<T>(p.a.v, s.k0 + key, p.a.v_stride, h, p.a.D),
                                           p.a.v_stride, s.keys - key, p.a.D, thread);
  };
  load_tile<T, columns, rows, kThreads>(q_tile, head_row<T>(p.a.q, s.q0 + first_row, p.a.q_stride, h, p.a.D),
                                        p.a.q_stride, s.nq - first_row, p.a.D, thread);
  load_tile<T, columns, rows, kThreads>(dout_tile, head_row<T>(p.a.dout, s.q0 + first_row, p.a.dout_stride, h, p.a.D),
                                        p.a.dout_stride, s.nq - first_row, p.a.D, thread);
  if (keys_end > 0) load(0);
  commit_async();

  const int tile_row = warp * 16, warp_row = first_row + tile_row;
  const int keys = warp_row < s.nq ? s.keys : 0;
  const int diagonal = p.a.causal ? warp_row + s.shift + 1 : INT32_MAX / 2;
  const auto q_lane = LaneTile<columns>::rows_first(q_tile + tile_row * Tile<columns>::pitch, lane);
  const auto dout_lane = LaneTile<columns>::rows_first(dout_tile + tile_row * Tile<columns>::pitch, lane);
  const auto k_lane = LaneTile<columns>::columns_first(kv_tile, lane);
  const auto v_lane = LaneTile<columns>::columns_first(kv_tile + C::kv_bytes, lane);
  const auto k_rows = LaneTile<columns>::rows_first(kv_tile, lane);
  const Dropout dropout(p.dropout);
  float2 stats[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp_row + half * 8 + (lane >> 2);
    stats[half] = row < s.nq ? all_stats[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + row]
                             : make_float2(CUDART_INF_F, 0.0f);
  }
  float dq[1][d_tiles][4] = {};
  for (int n = 0; n * block < keys_end; n++) {
    wait_async<0>();
    __syncthreads();
    if ((n + 1) * block < keys_end) load(n + 1);
    commit_async();
    const uint32_t buffer = (n & 1) * 2 * C::kv_bytes;
    const int limit = keys - n * block, edge = diagonal - n * block;
    if (min(limit, edge + 15) <= 0) continue;
    float scores[1][block / 8][4], dp[1][block / 8][4];
    Warp::template multiply_qk<false>(scores, q_lane, k_lane.shifted(buffer), block);
    Warp::template multiply_qk<false>(dp, dout_lane, v_lane.shifted(buffer), block);
    if (min(limit, edge) < block) Warp::mask(scores, limit, edge, lane);
    if (dropout.active()) {
      for_dropout_16x32(dropout, warp_row, n * block, head, lane, [&](int half, int t, int low, bool keep) {
        float &x = dp[0][t][half * 2 + low];
        x = keep ? x * p.dropout.scale : 0.0f;
      });
    }
#pragma unroll
    for (int t = 0; t < block / 8; t++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float2 row = stats[e >> 1];
        scores[0][t][e] = exp2_fast(fmaf(scores[0][t][e], p.scale_log2, -row.x)) * (dp[0][t][e] - row.y);
      }
    }
#pragma unroll
    for (int step = 0; step < block / 16; step++) {
      uint32_t a[4];
      pack_operand<T>(a, scores[0], step);
#pragma unroll
      for (int d = 0; d < d_tiles / 2; d++) {
        uint32_t right[4];
        ldmatrix_transposed(right, k_rows.shifted(buffer).at(step, d));
        mma<T>(dq[0][2 * d], a, right[0], right[1]);
        mma<T>(dq[0][2 * d + 1], a, right[2], right[3]);
      }
    }
  }
  if (keys_end <= 0) {  // nothing waited for the copies
    wait_async<0>();
    __syncthreads();
  }
  if (warp_row >= s.nq) return;
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int n = 0; n < d_tiles; n++) {
      *reinterpret_cast<uint32_t *>(shared + Tile<columns>::offset(tile_row + half * 8 + (lane >> 2), n) +
                                    (lane & 3) * 4) =
          Half2<T>::pack(dq[0][n][half * 2] * p.a.scale, dq[0][n][half * 2 + 1] * p.a.scale);
    }
  }
  __syncwarp();
  store_tile<T, columns, 16, 32>(head_row<T>(p.a.dq, s.q0 + warp_row, p.a.dq_stride, h, p.a.D), p.a.dq_stride,
                                 shared + tile_row * Tile<columns>::pitch, s.nq - warp_row, p.a.D, lane);
}

template <class T, int columns>
constexpr int query_shared_bytes() {
  return 2 * 64 * columns * 2 + 4 * 32 * columns * 2;
}

}  // namespace fa::imp

#endif
