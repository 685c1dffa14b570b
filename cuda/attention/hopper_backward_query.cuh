// dq on Hopper: a block owns query rows, 64 to a consumer warpgroup, and walks the keys, which a producer thread
// streams by TMA. dS stays in registers as an operand of dq += dS k, so nothing but K and V passes through shared
// memory, and every sum has a fixed order. The kernel also makes the statistics of its rows for the key kernel, which
// runs after it.
//
// A step finds its scores made. dP = dO V^T starts; P = 2^(S c - lse), packed, while that and dq of the step before are
// on their way; the scores of the next step start; dS = P (dP - delta) while those run; dq += dS K starts.
#ifndef FLASHATTN_HOPPER_BACKWARD_QUERY_CUH
#define FLASHATTN_HOPPER_BACKWARD_QUERY_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

template <class T_, int D_, int Groups_, int Keys_, int Stages_, int Blocks_, bool Dropout_>
struct QueryConfig {
  using T = T_;
  static constexpr int D = D_, Groups = Groups_, Keys = Keys_, Stages = Stages_, Blocks = Blocks_;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Rows = kGroupRows * Groups;
  static constexpr int ProducerThreads = Groups == 1 ? 32 : 128;
  static constexpr int Threads = Groups * 128 + ProducerThreads;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels;
  static constexpr int TilePanelBytes = Keys * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int DoutOffset = Groups * GroupBytes, KOffset = 2 * Groups * GroupBytes;
  static constexpr int VOffset = KOffset + Stages * TileBytes, BarrierOffset = VOffset + Stages * TileBytes;
  static constexpr int SharedBytes = BarrierOffset + 128 + 1024;  // 1024: room to align
  static_assert(Keys % 16 == 0 && TilePanelBytes % 1024 == 0 && (3 * Stages + 1) * 8 <= 128);
  static_assert(Stages >= 3, "a step starts the next one's scores before it gives back the one's before");
  static_assert(!Dropout || Keys % 32 == 0, "a dropout call serves 32 keys");
};

struct QueryMaps {
  CUtensorMap q, dout, k, v;
};

template <class C>
struct QueryBlock {
  using T = typename C::T;
  const Problem &p;
  const QueryMaps &maps;
  const RowStats &stats;
  const uint32_t base;
  Sequence s;
  int b, h, first, rows, blocks;  // first query row of the block in the sequence, rows that exist, steps

  __device__ __forceinline__ uint32_t q(int group) const { return base + group * C::GroupBytes; }
  __device__ __forceinline__ uint32_t dout(int group) const { return base + C::DoutOffset + group * C::GroupBytes; }
  __device__ __forceinline__ uint32_t k(int slot) const { return base + C::KOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t v(int slot) const { return base + C::VOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t k_full(int slot) const { return base + C::BarrierOffset + slot * 8; }
  __device__ __forceinline__ uint32_t v_full(int slot) const { return k_full(C::Stages + slot); }
  __device__ __forceinline__ uint32_t empty(int slot) const { return k_full(2 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t q_full() const { return k_full(3 * C::Stages); }

  __device__ __forceinline__ int active_groups() const { return min(C::Groups, (rows + kGroupRows - 1) / kGroupRows); }
  __device__ __forceinline__ int keys_until(int last) const {
    return max(0, p.a.causal ? min(s.keys, last + s.shift + 1) : s.keys);
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(k_full(i), 1);
      barrier_init(v_full(i), 1);
      barrier_init(empty(i), 4 * active_groups());
    }
    barrier_init(q_full(), 1);
    barrier_init_fence();
  }

  // One thread.
  __device__ __forceinline__ void produce() const {
    const int column = h * C::D, active = active_groups();
    barrier_arrive_expect(q_full(), 2 * active * C::GroupBytes);
    for (int g = 0; g < active; g++) {
      for (int panel = 0; panel < C::Panels; panel++) {
        const int from = column + panel * kPanelColumns, row = s.q0 + first + g * kGroupRows;
        load_box(q(g) + panel * kGroupPanelBytes, &maps.q, from, row, q_full(), kEvictFirst);
        load_box(dout(g) + panel * kGroupPanelBytes, &maps.dout, from, row, q_full(), kEvictFirst);
      }
    }
    int slot = 0;
    uint32_t parity = 1;
    for (int n = blocks - 1; n >= 0; n--) {
      barrier_wait(empty(slot), parity);
      barrier_arrive_expect(k_full(slot), C::TileBytes);
      barrier_arrive_expect(v_full(slot), C::TileBytes);
      for (int panel = 0; panel < C::Panels; panel++) {
        load_box(k(slot) + panel * C::TilePanelBytes, &maps.k, column + panel * kPanelColumns, s.k0 + n * C::Keys,
                 k_full(slot), kEvictLast);
      }
      for (int panel = 0; panel < C::Panels; panel++) {
        load_box(v(slot) + panel * C::TilePanelBytes, &maps.v, column + panel * kPanelColumns, s.k0 + n * C::Keys,
                 v_full(slot), kEvictLast);
      }
      if (++slot == C::Stages) slot = 0, parity ^= 1;
    }
  }
};

// One consumer warpgroup.
template <class C>
struct QueryConsumer {
  using T = typename C::T;
  const QueryBlock<C> &block;
  const int group, warp, lane;
  int slot = 0;
  uint32_t parity = 0;
  float lse[2], delta[2];
  int limit[2];  // keys the thread's rows see
  int unmasked;  // keys that all rows of the warpgroup see
  int row;       // the thread's first row in the sequence
  Dropout dropout;

  __device__ __forceinline__ QueryConsumer(const QueryBlock<C> &block, int group)
      : block(block), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32), dropout(block.p.dropout) {
    row = block.first + group * kGroupRows + warp * 16 + lane / 4;
    limit[0] = block.keys_until(row);
    limit[1] = block.keys_until(row + 8);
    unmasked = block.keys_until(block.first + group * kGroupRows);
  }

  __device__ __forceinline__ void release(int slot) const {
    if (lane == 0) barrier_arrive(block.empty(slot));
  }

  // lse and delta of the thread's two rows; four threads share a row.
  __device__ __forceinline__ void find_statistics() {
    const fa_attention_args &a = block.p.a;
    const int64_t at = row_stats_start(block.stats, block.h, block.s.q0, block.b);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int i = row + 8 * r;
      float sum = 0.0f;
      lse[r] = INFINITY;
      if (i < block.s.nq) {
        const T *o = head_row<T>(a.out, block.s.q0 + i, a.out_stride, block.h, C::D) + lane % 4 * 8;
        const T *g = head_row<T>(a.dout, block.s.q0 + i, a.dout_stride, block.h, C::D) + lane % 4 * 8;
#pragma unroll
        for (int c = 0; c < C::D; c += 32) {
          sum += dot8<T>(*reinterpret_cast<const uint4 *>(o + c), *reinterpret_cast<const uint4 *>(g + c));
        }
        lse[r] = scaled_lse(a.lse[static_cast<int64_t>(block.h) * a.rows_q + block.s.q0 + i]);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      delta[r] = lse[r] == INFINITY ? 0.0f : sum;
      if (lane % 4 == 0 && i < block.s.nq) {
        block.stats.lse[at + i] = lse[r];
        block.stats.delta[at + i] = delta[r];
      }
    }
    if (group == 0 && block.first + C::Rows >= block.s.nq) {
      block.stats.lse[at + block.s.nq + threadIdx.x] = INFINITY;
      block.stats.delta[at + block.s.nq + threadIdx.x] = 0.0f;
    }
  }

  // Starts S of step n, whose keys lie in slot `at`.
  __device__ __forceinline__ void start_scores(float (&x)[C::Keys / 2], int n, int at, uint32_t at_parity) const {
    barrier_wait(block.k_full(at), at_parity);
    const int valid = block.s.keys - n * C::Keys;
    if (valid < C::Keys) {
      barrier_wait(block.v_full(at), at_parity);
      clear_tile_rows<C::Panels>(block.k(at), C::TilePanelBytes, valid, C::Keys);
      clear_tile_rows<C::Panels>(block.v(at), C::TilePanelBytes, valid, C::Keys);
      fence_async_proxy();
      named_sync(1 + group, 128);
    }
    start_scores_product<T, C::D, C::Keys>(x, block.q(group), block.k(at));
  }

  // x: scores; pt: probabilities, packed.
  __device__ __forceinline__ void probabilities(float (&x)[C::Keys / 2], uint32_t (&pt)[C::Keys / 4], int n) const {
    if ((n + 1) * C::Keys > unmasked) {
      const int column = n * C::Keys + lane % 4 * 2;
      mask_from<C::Keys>(x, limit[0] - column, limit[1] - column);
    }
#pragma unroll
    for (int i = 0; i < C::Keys / 4; i++) {
      const float low = exp2_fast(fmaf(x[2 * i], block.p.scale_log2, -lse[i & 1]));
      const float high = exp2_fast(fmaf(x[2 * i + 1], block.p.scale_log2, -lse[i & 1]));
      pt[i] = pack2<T>(low, high);
    }
  }

  __device__ __forceinline__ void differentiate(const uint32_t (&pt)[C::Keys / 4], const float (&dp)[C::Keys / 2],
                                                uint32_t (&ds)[C::Keys / 4], int n) const {
    uint4 words[2];
#pragma unroll
    for (int j = 0; j < C::Keys / 8; j++) {
      if constexpr (C::Dropout) {
        if (j % 4 == 0) {
          const uint32_t key = n * C::Keys + 8 * j + lane % 4 * 2, head = block.b * block.p.a.H + block.h;
          words[0] = dropout.score_group(row, key, head);
          words[1] = dropout.score_group(row, key + 1, head);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float g[2] = {dp[4 * j + 2 * r], dp[4 * j + 2 * r + 1]};
        if constexpr (C::Dropout) {
#pragma unroll
          for (int c = 0; c < 2; c++) g[c] = dropout.keep(words[c], 4 * r + j % 4) ? g[c] * dropout.scale : 0.0f;
        }
        const float2 x = unpack2<T>(pt[2 * j + r]);
        ds[2 * j + r] = pack2<T>(x.x * (g[0] - delta[r]), x.y * (g[1] - delta[r]));
      }
    }
  }

  // On entry the scores of step n are in x; in flight, on return too: dq += dS K of a step.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Keys / 2], float (&dp)[C::Keys / 2], uint32_t (&pt)[C::Keys / 4],
                                       uint32_t (&ds)[C::Keys / 4], float (&dq)[C::D / 2], int n, bool first) {
    barrier_wait(block.v_full(slot), parity);
    start_scores_product<T, C::D, C::Keys>(dp, block.dout(group), block.v(slot));
    probabilities(x, pt, n);
    const int here = slot, before = slot == 0 ? C::Stages - 1 : slot - 1;
    if (++slot == C::Stages) slot = 0, parity ^= 1;
    if constexpr (HasNext) {
      start_scores(x, n - 1, slot, parity);
      product_wait<1>();
    } else {
      product_wait<0>();
    }
    keep(dp);
    keep(dq);
    keep(ds);  // of the step before: read by a product until here
    if (!first) release(before);
    differentiate(pt, dp, ds, n);
    start_sum_product<T, C::D, C::Keys>(dq, ds, block.k(here));
    if constexpr (HasNext) {
      product_wait<1>();
      keep(x);
    }
  }

  __device__ __forceinline__ void run() {
    const int last = min(kGroupRows, block.rows - group * kGroupRows) - 1;
    const int steps = (block.keys_until(block.first + group * kGroupRows + last) + C::Keys - 1) / C::Keys;
    float dq[C::D / 2];
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) dq[i] = 0.0f;
    find_statistics();
    for (int n = block.blocks; n > steps; n--) {  // steps that other rows of the block see
      barrier_wait(block.k_full(slot), parity);
      barrier_wait(block.v_full(slot), parity);
      release(slot);
      if (++slot == C::Stages) slot = 0, parity ^= 1;
    }
    barrier_wait(block.q_full(), 0);
    if (steps > 0) {
      float x[C::Keys / 2], dp[C::Keys / 2];
      uint32_t pt[C::Keys / 4], ds[C::Keys / 4] = {};
      keep(dq);
      start_scores(x, steps - 1, slot, parity);
      product_wait<0>();
      keep(x);
      for (int n = steps - 1; n > 0; n--) step<true>(x, dp, pt, ds, dq, n, n == steps - 1);
      step<false>(x, dp, pt, ds, dq, 0, steps == 1);
      product_wait<0>();
      keep(dq);
      keep(ds);
    }
    named_sync(1 + group, 128);  // every warp is done with Q
    const fa_attention_args &a = block.p.a;
    const int from = block.first + group * kGroupRows;
    T *target = head_row<T>(a.dq, block.s.q0 + from, a.dq_stride, block.h, C::D);
    write_gradient<T, C::D>(dq, a.scale, block.q(group), target, a.dq_stride, block.s.nq - from, block.s.nq - from);
  }
};

template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
    hopper_backward_query_kernel(const __grid_constant__ Problem p, const __grid_constant__ QueryMaps maps,
                                 const BackwardSchedule schedule, const RowStats stats) {
  extern __shared__ char dynamic_shared[];
  const HeadTile at = find_head_tile(schedule, blockIdx.x);
  QueryBlock<C> block{p, maps, stats, (shared_address(dynamic_shared) + 1023) & ~1023u};
  block.b = at.head / p.a.H;
  block.h = at.head - block.b * p.a.H;
  block.rows = 0;
  if (at.head < schedule.heads) {
    block.s = find_sequence(p.a, block.b);
    block.first = at.tile * C::Rows;
    block.rows = min(C::Rows, block.s.nq - block.first);
    block.blocks = (block.keys_until(block.first + block.rows - 1) + C::Keys - 1) / C::Keys;
  }
  allow_next_kernel();
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0 && block.rows > 0) block.init_barriers();
  __syncthreads();
  if (role == C::Groups) {
    if constexpr (C::Groups == 2) registers_shrink<40>();
    if constexpr (C::Groups == 3) registers_shrink<32>();
    if (threadIdx.x == C::Groups * 128 && block.rows > 0) block.produce();
  } else {
    if constexpr (C::Groups == 2) registers_grow<232>();
    if constexpr (C::Groups == 3) registers_grow<160>();
    if (block.rows > role * kGroupRows) QueryConsumer<C>(block, role).run();
    clear_rows_past<typename C::T>(p.a.dq, p.a.dq_stride, clamp_int(p.a.cu_q[p.a.B], 0, p.a.rows_q), p.a.rows_q,
                                   p.a.H * C::D, threadIdx.x, C::Groups * 128);
  }
}

template <class C>
fa_status launch_backward_query(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  const fa_attention_args &a = p.a;
  if (a.rows_q == 0) return FA_OK;
  const int64_t columns = static_cast<int64_t>(a.H) * a.D;
  QueryMaps maps;
  FA_TRY(make_tensor_map(ctx, &maps.q, a.q, a.rows_q, columns, a.q_stride, kGroupRows, a.dtype));
  FA_TRY(make_tensor_map(ctx, &maps.dout, a.dout, a.rows_q, columns, a.dout_stride, kGroupRows, a.dtype));
  maps.k = maps.v = maps.q;  // never read where there is no key
  if (a.rows_k > 0) {
    FA_TRY(make_tensor_map(ctx, &maps.k, a.k, a.rows_k, columns, a.k_stride, C::Keys, a.dtype));
    FA_TRY(make_tensor_map(ctx, &maps.v, a.v, a.rows_k, columns, a.v_stride, C::Keys, a.dtype));
  }
  const int64_t tiles = ceil_div(a.max_q, C::Rows);
  const int64_t blocks = std::max<int64_t>(1, tiles * heads_of(a));
  FA_TRY(check_grid(ctx, blocks));
  auto kernel = hopper_backward_query_kernel<C>;
  FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
  kernel<<<static_cast<unsigned>(blocks), C::Threads, C::SharedBytes, ctx->stream>>>(
      p, maps, make_backward_schedule(ctx, a, tiles, a.max_k, true), stats);
  return FA_LAUNCHED(ctx, "Hopper attention backward, queries");
}

}  // namespace fa::hopper

#endif
