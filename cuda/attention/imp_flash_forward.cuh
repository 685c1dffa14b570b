// FlashAttention-2's forward pass on mma.sync (Dao 2023): a block of four warps owns 64 or 128 query rows, each warp 16
// or 32 of them; keys and values stream past in blocks, last to first; scores, probabilities and the unnormalised
// output stay in registers.
#ifndef FLASHATTN_IMP_FLASH_FORWARD_CUH
#define FLASHATTN_IMP_FLASH_FORWARD_CUH

#include "rows.cuh"
#include "softmax.cuh"
#include "tensor_core.cuh"

namespace fa::imp {

constexpr int kThreads = 128;

// slabs: 16-row slabs of a warp; block: keys of a step; stages: key and value buffers (2: the next step's load runs
// during this one's work; 1: values load during the first product, the next keys during the second).
template <class T, int columns_, int slabs_, int block_, int stages_, int blocks_per_sm_>
struct ForwardConfig {
  using Type = T;
  static constexpr int columns = columns_, slabs = slabs_, block = block_, stages = stages_;
  static constexpr int blocks_per_sm = blocks_per_sm_;
  static constexpr int rows = 4 * 16 * slabs;
  static constexpr int q_bytes = rows * columns * 2;
  static constexpr int kv_bytes = block * columns * 2;
  static constexpr int shared_bytes = q_bytes + 2 * stages * kv_bytes;
};

template <class C>
struct ForwardWarp {
  using T = typename C::Type;
  static constexpr int score_tiles = C::block / 8;
  static constexpr int out_tiles = C::columns / 8;

  float out[C::slabs][out_tiles][4];
  float row_max[C::slabs][2];
  float row_sum[C::slabs][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < out_tiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[m][n][e] = 0.0f;
      }
      row_max[m][0] = row_max[m][1] = -CUDART_INF_F;
      row_sum[m][0] = row_sum[m][1] = 0.0f;
    }
  }

  // scores = q k^T; in a masked step columns from `limit` up are left at 0.
  template <bool masked>
  static __device__ __forceinline__ void multiply_qk(float (&scores)[C::slabs][score_tiles][4], LaneTile<C::columns> q,
                                                     LaneTile<C::columns> k, int limit) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < score_tiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) scores[m][n][e] = 0.0f;
      }
    }
#pragma unroll
    for (int step = 0; step < C::columns / 16; step++) {
      uint32_t a[C::slabs][4];
#pragma unroll
      for (int m = 0; m < C::slabs; m++) ldmatrix(a[m], q.at(m, step));
#pragma unroll
      for (int n = 0; n < score_tiles / 2; n++) {
        if (masked && n * 16 >= limit) break;
        uint32_t b[4];
        ldmatrix(b, k.at(n, step));
#pragma unroll
        for (int m = 0; m < C::slabs; m++) {
          mma<T>(scores[m][2 * n], a[m], b[0], b[1]);
          mma<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Hides columns from `keys` up, and from `diagonal` + r up for row r of the warp.
  static __device__ __forceinline__ void mask(float (&scores)[C::slabs][score_tiles][4], int keys, int diagonal,
                                              int lane) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int limit = min(keys, diagonal + m * 16 + half * 8 + (lane >> 2)) - (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < score_tiles; n++) {
#pragma unroll
          for (int low = 0; low < 2; low++) {
            if (n * 8 + low >= limit) scores[m][n][half * 2 + low] = -CUDART_INF_F;
          }
        }
      }
    }
  }

  // scores become probabilities relative to the running maximum; output and sum are rescaled to it.
  template <bool masked>
  __device__ __forceinline__ void soften(float (&scores)[C::slabs][score_tiles][4], float scale_log2) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = row_max[m][half];
#pragma unroll
        for (int n = 0; n < score_tiles; n++) {
          top = fmaxf(top, fmaxf(scores[m][n][half * 2], scores[m][n][half * 2 + 1]));
        }
        top = quad_max(top);
        const float finite = masked && top == -CUDART_INF_F ? 0.0f : top;
        const float shift = finite * scale_log2;
        const float rescale = exp2_fast(row_max[m][half] * scale_log2 - shift);
        row_max[m][half] = top;
        float sum = row_sum[m][half] * rescale;
#pragma unroll
        for (int n = 0; n < out_tiles; n++) {
          out[m][n][half * 2] *= rescale;
          out[m][n][half * 2 + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < score_tiles; n++) {
#pragma unroll
          for (int low = 0; low < 2; low++) {
            float &x = scores[m][n][half * 2 + low];
            x = exp2_fast(fmaf(x, scale_log2, -shift));
            sum += x;
          }
        }
        row_sum[m][half] = sum;
      }
    }
  }

  static __device__ __forceinline__ void drop(float (&scores)[C::slabs][score_tiles][4], const Dropout &dropout,
                                              int warp_row, int first_key, uint32_t bh, int lane) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int n = 0; n < score_tiles; n += 4) {
        for_dropout_16x32(dropout, warp_row + m * 16, first_key + n * 8, bh, lane,
                          [&](int half, int tile, int low, bool keep) {
                            if (!keep) scores[m][n + tile][half * 2 + low] = 0.0f;
                          });
      }
    }
  }

  // out += probabilities v
  template <bool masked>
  __device__ __forceinline__ void multiply_pv(const float (&scores)[C::slabs][score_tiles][4], LaneTile<C::columns> v,
                                              int limit) {
#pragma unroll
    for (int step = 0; step < score_tiles / 2; step++) {
      if (masked && step * 16 >= limit) break;
      uint32_t a[C::slabs][4];
#pragma unroll
      for (int m = 0; m < C::slabs; m++) pack_operand<T>(a[m], scores[m], step);
#pragma unroll
      for (int n = 0; n < out_tiles / 2; n++) {
        uint32_t b[4];
        ldmatrix_transposed(b, v.at(step, n));
#pragma unroll
        for (int m = 0; m < C::slabs; m++) {
          mma<T>(out[m][2 * n], a[m], b[0], b[1]);
          mma<T>(out[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Divides by the sums, writes lse, and leaves the rows in the warp's part of the query tile for the copy out.
  __device__ __forceinline__ void finish(const Problem &p, const Sequence &s, int h, int warp_row, char *tile,
                                         int tile_row, int lane) {
#pragma unroll
    for (int m = 0; m < C::slabs; m++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float sum = quad_sum(row_sum[m][half]);
        const int row = warp_row + m * 16 + half * 8 + (lane >> 2);
        const float norm = sum > 0.0f ? p.dropout.scale / sum : 0.0f;
        if ((lane & 3) == 0 && row < s.nq) {
          const float lse = sum > 0.0f ? row_max[m][half] * p.a.scale + __logf(sum) : -CUDART_INF_F;
          p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + row] = lse;
        }
        const int r = tile_row + m * 16 + half * 8 + (lane >> 2);
#pragma unroll
        for (int n = 0; n < out_tiles; n++) {
          *reinterpret_cast<uint32_t *>(tile + Tile<C::columns>::offset(r, n) + (lane & 3) * 4) =
              Half2<T>::pack(out[m][n][half * 2] * norm, out[m][n][half * 2 + 1] * norm);
        }
      }
    }
    __syncwarp();
    constexpr int rows = C::slabs * 16;
    T *target = head_row<T>(p.a.out, s.q0 + warp_row, p.a.out_stride, h, p.a.D);
    store_tile<T, C::columns, rows, 32>(target, p.a.out_stride, tile + tile_row * Tile<C::columns>::pitch,
                                        s.nq - warp_row, p.a.D, lane);
  }
};

template <class C, bool with_dropout>
__device__ __forceinline__ void forward_block(const Problem &p, int tiles) {
  using T = typename C::Type;
  extern __shared__ __align__(1024) char shared[];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int head = blockIdx.x / tiles;
  const int tile = tiles - 1 - static_cast<int>(blockIdx.x % tiles);  // causal: the longest first
  const int b = head / p.a.H, h = head % p.a.H;
  const Sequence s = find_sequence(p.a, b);
  const int first_row = tile * C::rows;
  if (first_row >= s.nq) return;
  const int rows_end = min(s.nq, first_row + C::rows);
  const int keys_end = visible_keys(p.a, s, rows_end - 1);
  if (keys_end <= 0) {
    const bool loose = b == p.a.B;
    write_empty_rows<T>(p, s, h, first_row, loose ? s.nq : rows_end, loose ? tiles * C::rows : C::rows, C::rows, thread,
                        kThreads);
    return;
  }

  const uint32_t q_tile = shared_address(shared);
  const uint32_t k_tile = q_tile + C::q_bytes;
  const uint32_t v_tile = k_tile + C::stages * C::kv_bytes;
  const T *k = head_row<T>(p.a.k, s.k0, p.a.k_stride, h, p.a.D);
  const T *v = head_row<T>(p.a.v, s.k0, p.a.v_stride, h, p.a.D);
  auto load_k = [&](int n) {
    load_tile<T, C::columns, C::block, kThreads>(k_tile + (n % C::stages) * C::kv_bytes,
                                                 k + static_cast<int64_t>(n) * C::block * p.a.k_stride, p.a.k_stride,
                                                 s.keys - n * C::block, p.a.D, thread);
  };
  auto load_v = [&](int n) {
    load_tile<T, C::columns, C::block, kThreads>(v_tile + (n % C::stages) * C::kv_bytes,
                                                 v + static_cast<int64_t>(n) * C::block * p.a.v_stride, p.a.v_stride,
                                                 s.keys - n * C::block, p.a.D, thread);
  };

  int n = (keys_end - 1) / C::block;
  load_tile<T, C::columns, C::rows, kThreads>(q_tile, head_row<T>(p.a.q, s.q0 + first_row, p.a.q_stride, h, p.a.D),
                                              p.a.q_stride, s.nq - first_row, p.a.D, thread);
  load_k(n);
  if (C::stages == 2) load_v(n);
  commit_async();

  const int tile_row = warp * 16 * C::slabs;
  const int warp_row = first_row + tile_row;
  // Row r of the warp sees keys below min(keys, diagonal + r); a warp without rows sees none.
  const int keys = warp_row < s.nq ? s.keys : 0;
  const int diagonal = p.a.causal ? warp_row + s.shift + 1 : INT32_MAX / 2;
  const auto q_lane = LaneTile<C::columns>::rows_first(q_tile + tile_row * Tile<C::columns>::pitch, lane);
  const auto k_lane = LaneTile<C::columns>::columns_first(k_tile, lane);
  const auto v_lane = LaneTile<C::columns>::rows_first(v_tile, lane);
  const Dropout dropout(p.dropout);
  ForwardWarp<C> w;
  w.clear();

  auto step = [&](auto masked_tag) {
    constexpr bool masked = decltype(masked_tag)::value;
    const int first_key = n * C::block;
    const uint32_t buffer = (n % C::stages) * C::kv_bytes;
    const int any = min(keys, diagonal + C::slabs * 16 - 1) - first_key;
    float scores[C::slabs][C::block / 8][4];
    w.template multiply_qk<masked>(scores, q_lane, k_lane.shifted(buffer), any);
    if (masked) w.mask(scores, keys - first_key, diagonal - first_key, lane);
    if (C::stages == 1) {
      wait_async<0>();
      __syncthreads();  // values are here, and every warp is done with the keys
      if (n > 0) load_k(n - 1);
      commit_async();
    }
    w.template soften<masked>(scores, p.scale_log2);
    if (with_dropout) w.drop(scores, dropout, warp_row, first_key, head, lane);
    w.template multiply_pv<masked>(scores, v_lane.shifted(buffer), any);
  };

  for (; n >= 0; n--) {
    wait_async<0>();
    __syncthreads();
    if (C::stages == 2) {
      if (n > 0) {
        load_k(n - 1);
        load_v(n - 1);
      }
      commit_async();
    } else {
      load_v(n);
      commit_async();
    }
    if ((n + 1) * C::block <= min(keys, diagonal)) {
      step(std::false_type{});
    } else if (n * C::block < min(keys, diagonal + C::slabs * 16 - 1)) {
      step(std::true_type{});
    } else if (C::stages == 1) {
      wait_async<0>();
      __syncthreads();
      if (n > 0) load_k(n - 1);
      commit_async();
    }
  }
  // Found again rather than kept in registers through the loop.
  const Sequence again = find_sequence(p.a, b);
  if (warp_row < again.nq) w.finish(p, again, h, warp_row, shared, tile_row, lane);
}

template <class C, bool with_dropout>
__global__ void __launch_bounds__(kThreads, C::blocks_per_sm)
    forward_kernel(const __grid_constant__ Problem p, int tiles) {
  forward_block<C, with_dropout>(p, tiles);
}

template <class C>
fa_status launch_forward(fa_ctx *ctx, const fa_attention_args &args) {
  const int64_t tiles = args.max_q > 0 ? ceil_div(args.max_q, C::rows) : 1;
  const int64_t blocks = tiles * args.H * (static_cast<int64_t>(args.B) + 1);
  FA_TRY(check_grid(ctx, blocks));
  const bool drop = args.dropout > 0.0f;
  auto kernel = drop ? forward_kernel<C, true> : forward_kernel<C, false>;
  FA_TRY(allow_shared(ctx, kernel, C::shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), kThreads, C::shared_bytes, ctx->stream>>>(make_problem(args),
                                                                                    static_cast<int>(tiles));
  return FA_LAUNCHED(ctx, "imp_flash forward");
}

// One per .cu file, so that they build side by side.
fa_status forward_bf16_64(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_bf16_128(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_fp16_64(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_fp16_128(fa_ctx *ctx, const fa_attention_args &args);

}  // namespace fa::imp

#endif
