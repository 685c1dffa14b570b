// dk and dv on Hopper: a block owns keys, 64 to a consumer warpgroup, and walks the queries, which a producer thread
// streams by TMA together with their statistics. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so that
// P^T and dS^T lie in registers as operands of dv += P^T dO and dk += dS^T Q: nothing is written to shared memory.
//
// A step finds its scores made. dP^T starts; P = 2^(S c - lse) while that and dk of the step before are on their way;
// dv
// += P^T dO and the scores of the next step start; dS = P (dP - delta) while those run; dk += dS^T Q starts. P is taken
// back from its packed form, so that the next scores have its registers; not with dropout, where what is packed has
// gaps.
#ifndef FLASHATTN_HOPPER_BACKWARD_KEY_CUH
#define FLASHATTN_HOPPER_BACKWARD_KEY_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

// Rows: queries of a step.
template <class T_, int D_, int Groups_, int Rows_, int Stages_, int Blocks_, bool Dropout_>
struct KeyConfig {
  using T = T_;
  static constexpr int D = D_, Groups = Groups_, Rows = Rows_, Stages = Stages_, Blocks = Blocks_;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Keys = kGroupRows * Groups;
  static constexpr int ProducerThreads = Groups == 1 ? 32 : 128;
  static constexpr int Threads = Groups * 128 + ProducerThreads;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels;
  static constexpr int TilePanelBytes = Rows * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int StatsBytes = Rows * 4;
  static constexpr int VOffset = Groups * GroupBytes, QOffset = 2 * Groups * GroupBytes;
  static constexpr int DoutOffset = QOffset + Stages * TileBytes, StatsOffset = DoutOffset + Stages * TileBytes;
  static constexpr int BarrierOffset = StatsOffset + 2 * Stages * StatsBytes;
  static constexpr int SharedBytes = BarrierOffset + 128 + 1024;  // 1024: room to align
  static_assert(Rows % 16 == 0 && Rows <= kStatsSlack && (3 * Stages + 1) * 8 <= 128);
  static_assert(Stages >= 3, "a step starts the next one's scores before it gives back the one's before");
};

struct KeyMaps {
  CUtensorMap q, dout, k, v;
};

template <class C>
struct KeyBlock {
  using T = typename C::T;
  const Problem &p;
  const KeyMaps &maps;
  const RowStats &stats;
  const uint32_t base;
  Sequence s;
  int b, h, first, active;  // first key of the block in the sequence, warpgroups with keys that count
  int begin, end;           // steps

  __device__ __forceinline__ uint32_t k(int group) const { return base + group * C::GroupBytes; }
  __device__ __forceinline__ uint32_t v(int group) const { return base + C::VOffset + group * C::GroupBytes; }
  __device__ __forceinline__ uint32_t q(int slot) const { return base + C::QOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t dout(int slot) const { return base + C::DoutOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t lse(int slot) const { return base + C::StatsOffset + slot * 2 * C::StatsBytes; }
  __device__ __forceinline__ uint32_t delta(int slot) const { return lse(slot) + C::StatsBytes; }
  __device__ __forceinline__ uint32_t q_full(int slot) const { return base + C::BarrierOffset + slot * 8; }
  __device__ __forceinline__ uint32_t dout_full(int slot) const { return q_full(C::Stages + slot); }
  __device__ __forceinline__ uint32_t empty(int slot) const { return q_full(2 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t k_full() const { return q_full(3 * C::Stages); }

  // Steps before the result have no query that sees keys from `key` on.
  __device__ __forceinline__ int first_step(int key) const { return p.a.causal ? max(0, key - s.shift) / C::Rows : 0; }

  __device__ __forceinline__ void find(const HeadTile &at, const BackwardSchedule &schedule) {
    b = at.head / p.a.H;
    h = at.head - b * p.a.H;
    first = at.tile * C::Keys;
    active = begin = end = 0;
    s = Sequence{0, 0, 0, 0, 0, 0};  // no rows, also where there is no head
    if (at.head >= schedule.heads) return;
    s = find_sequence(p.a, b);
    if (s.nq == 0 || s.keys <= first) return;
    active = min(C::Groups, (s.keys - first + kGroupRows - 1) / kGroupRows);
    begin = first_step(first);
    end = (s.nq + C::Rows - 1) / C::Rows;
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(q_full(i), 1);
      barrier_init(dout_full(i), 1);
      barrier_init(empty(i), 4 * active);
    }
    barrier_init(k_full(), 1);
    barrier_init_fence();
  }

  // One thread.
  __device__ __forceinline__ void produce() const {
    const int column = h * C::D;
    barrier_arrive_expect(k_full(), 2 * active * C::GroupBytes);
    for (int g = 0; g < active; g++) {
      for (int panel = 0; panel < C::Panels; panel++) {
        const int row = s.k0 + first + g * kGroupRows;
        load_box(k(g) + panel * kGroupPanelBytes, &maps.k, column + panel * kPanelColumns, row, k_full(), kEvictFirst);
        load_box(v(g) + panel * kGroupPanelBytes, &maps.v, column + panel * kPanelColumns, row, k_full(), kEvictFirst);
      }
    }
    const int64_t at = row_stats_start(stats, h, s.q0, b);
    wait_for_kernel_before();  // the statistics
    int slot = 0;
    uint32_t parity = 1;
    for (int n = begin; n < end; n++) {
      const int row = s.q0 + n * C::Rows;
      barrier_wait(empty(slot), parity);
      barrier_arrive_expect(q_full(slot), C::TileBytes + C::StatsBytes);
      barrier_arrive_expect(dout_full(slot), C::TileBytes + C::StatsBytes);
      for (int panel = 0; panel < C::Panels; panel++) {
        load_box(q(slot) + panel * C::TilePanelBytes, &maps.q, column + panel * kPanelColumns, row, q_full(slot),
                 kEvictLast);
      }
      load_bulk(lse(slot), stats.lse + at + n * C::Rows, C::StatsBytes, q_full(slot));
      for (int panel = 0; panel < C::Panels; panel++) {
        load_box(dout(slot) + panel * C::TilePanelBytes, &maps.dout, column + panel * kPanelColumns, row,
                 dout_full(slot), kEvictLast);
      }
      load_bulk(delta(slot), stats.delta + at + n * C::Rows, C::StatsBytes, dout_full(slot));
      if (++slot == C::Stages) slot = 0, parity ^= 1;
    }
  }

  // A consumer warpgroup waits for the queries of step n in slot `at`.
  __device__ __forceinline__ void await_queries(int group, int n, int at, uint32_t parity) const {
    barrier_wait(q_full(at), parity);
    const int valid = s.nq - n * C::Rows;
    if (valid < C::Rows) {
      barrier_wait(dout_full(at), parity);
      clear_tile_rows<C::Panels>(q(at), C::TilePanelBytes, valid, C::Rows);
      clear_tile_rows<C::Panels>(dout(at), C::TilePanelBytes, valid, C::Rows);
      fence_async_proxy();
      named_sync(1 + group, 128);
    }
  }

  // Then it starts S^T of its keys.
  __device__ __forceinline__ void start_scores(float (&x)[C::Rows / 2], int group, int n, int at,
                                               uint32_t parity) const {
    await_queries(group, n, at, parity);
    start_scores_product<T, C::D, C::Rows>(x, k(group), q(at));
  }

  // A consumer warp is done with a slot.
  __device__ __forceinline__ void release(int slot) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty(slot));
  }
};

// One consumer warpgroup.
template <class C>
struct KeyConsumer {
  using T = typename C::T;
  const KeyBlock<C> &block;
  const int group, warp, lane;
  int slot = 0;
  uint32_t parity = 0;
  int key;  // first key of the warpgroup in the sequence
  Dropout dropout;

  __device__ __forceinline__ KeyConsumer(const KeyBlock<C> &block, int group)
      : block(block), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32),
        key(block.first + group * kGroupRows), dropout(block.p.dropout) {}

  // x: scores to probabilities; pt: those that are kept, packed.
  __device__ __forceinline__ void probabilities(float (&x)[C::Rows / 2], uint32_t (&pt)[C::Rows / 4], int n,
                                                const KeptBits<C::Rows> &kept) const {
    if (block.p.a.causal) {
      const int diagonal = key - block.s.shift - n * C::Rows;  // key row r is seen from query diagonal + r on
      if (diagonal + kGroupRows - 1 > 0) {
        const int limit = diagonal + warp * 16 + lane / 4 - lane % 4 * 2;
        mask_until<C::Rows>(x, limit, limit + 8);
      }
    }
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      probabilities_at<T, C::Rows, C::Dropout>(j, x, pt, block.lse(slot), block.p.scale_log2, kept);
    }
  }

  // On entry the scores of step n are in x; in flight, on return too: dk += dS^T Q of a step.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Rows / 2], float (&dp)[C::Rows / 2], uint32_t (&pt)[C::Rows / 4],
                                       uint32_t (&ds)[C::Rows / 4], float (&dk)[C::D / 2], float (&dv)[C::D / 2], int n,
                                       bool first) {
    barrier_wait(block.dout_full(slot), parity);
    start_scores_product<T, C::D, C::Rows>(dp, block.v(group), block.dout(slot));
    KeptBits<C::Rows> kept;
    if constexpr (C::Dropout) {
      find_kept_transposed<C::Rows>(dropout, n * C::Rows, key, block.b * block.p.a.H + block.h, kept);
    }
    probabilities(x, pt, n, kept);
    start_sum_product<T, C::D, C::Rows>(dv, pt, block.dout(slot));
    const int here = slot, before = slot == 0 ? C::Stages - 1 : slot - 1;
    if (++slot == C::Stages) slot = 0, parity ^= 1;
    if constexpr (HasNext && !C::Dropout) {
      block.start_scores(x, group, n + 1, slot, parity);
      product_wait<2>();
    } else {
      product_wait<1>();
    }
    keep(dp);
    keep(ds);  // of the step before: read by a product until here
    if (!first) block.release(before);
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      if constexpr (C::Dropout) {
        differentiate_at<T, C::Rows, true>(j, x, dp, ds, block.delta(here), kept, dropout.scale);
      } else {
        differentiate_packed_at<T, C::Rows>(j, pt, dp, ds, block.delta(here));
      }
    }
    start_sum_product<T, C::D, C::Rows>(dk, ds, block.q(here));
    if constexpr (HasNext) {
      if constexpr (C::Dropout) {
        block.start_scores(x, group, n + 1, slot, parity);
        product_wait<0>();
        keep(ds);
      } else {
        product_wait<1>();
      }
      keep(x);
      keep(pt);
    }
  }

  __device__ __forceinline__ void run() {
    float dk[C::D / 2], dv[C::D / 2];
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) dk[i] = dv[i] = 0.0f;
    barrier_wait(block.k_full(), 0);
    const int begin = block.first_step(key);
    for (int n = block.begin; n < begin; n++) {  // steps that see other keys of the block
      barrier_wait(block.q_full(slot), parity);
      barrier_wait(block.dout_full(slot), parity);
      block.release(slot);
      if (++slot == C::Stages) slot = 0, parity ^= 1;
    }
    {
      float x[C::Rows / 2], dp[C::Rows / 2];
      uint32_t pt[C::Rows / 4] = {}, ds[C::Rows / 4] = {};
      keep(dk);
      keep(dv);
      if (begin < block.end) {
        block.start_scores(x, group, begin, slot, parity);
        product_wait<0>();
        keep(x);
        for (int n = begin; n + 1 < block.end; n++) step<true>(x, dp, pt, ds, dk, dv, n, n == begin);
        step<false>(x, dp, pt, ds, dk, dv, block.end - 1, block.end - 1 == begin);
      }
      product_wait<0>();
      keep(dk);
      keep(dv);
      keep(pt);
      keep(ds);
    }
    named_sync(1 + group, 128);  // every warp is done with K and V
    const fa_attention_args &a = block.p.a;
    const int64_t row = static_cast<int64_t>(block.s.k0) + key;
    const int existing = block.s.nk - key, valid = block.s.keys - key;
    write_gradient<T, C::D>(dk, a.scale, block.k(group), head_row<T>(a.dk, row, a.dk_stride, block.h, C::D),
                            a.dk_stride, existing, valid);
    write_gradient<T, C::D>(dv, block.p.dropout.scale, block.v(group),
                            head_row<T>(a.dv, row, a.dv_stride, block.h, C::D), a.dv_stride, existing, valid);
  }

  // Keys that do not count, or whose sequence has no query.
  __device__ __forceinline__ void write_zeros() const {
    const fa_attention_args &a = block.p.a;
    const int rows = min(kGroupRows, block.s.nk - key);
    for (int i = threadIdx.x % 128; i < rows * (C::D / 8); i += 128) {
      const int64_t row = static_cast<int64_t>(block.s.k0) + key + i / (C::D / 8);
      const int column = i % (C::D / 8) * 8;
      *reinterpret_cast<uint4 *>(head_row<T>(a.dk, row, a.dk_stride, block.h, C::D) + column) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4 *>(head_row<T>(a.dv, row, a.dv_stride, block.h, C::D) + column) = make_uint4(0, 0, 0, 0);
    }
  }
};

template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
    hopper_backward_key_kernel(const __grid_constant__ Problem p, const __grid_constant__ KeyMaps maps,
                               const BackwardSchedule schedule, const RowStats stats) {
  extern __shared__ char dynamic_shared[];
  KeyBlock<C> block{p, maps, stats, (shared_address(dynamic_shared) + 1023) & ~1023u};
  block.find(find_head_tile(schedule, blockIdx.x), schedule);
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0 && block.active > 0) block.init_barriers();
  __syncthreads();
  if (role == C::Groups) {
    if constexpr (C::Groups == 2) registers_shrink<24>();
    if constexpr (C::Groups == 3) registers_shrink<32>();
    if (threadIdx.x == C::Groups * 128 && block.active > 0) block.produce();
  } else {
    if constexpr (C::Groups == 2) registers_grow<240>();
    if constexpr (C::Groups == 3) registers_grow<160>();
    KeyConsumer<C> consumer(block, role);
    if (role < block.active) {
      consumer.run();
    } else {
      consumer.write_zeros();
    }
    wait_for_kernel_before();  // whatever follows this kernel follows that one too
    const int begin = clamp_int(p.a.cu_k[p.a.B], 0, p.a.rows_k), columns = p.a.H * C::D;
    clear_rows_past<typename C::T>(p.a.dk, p.a.dk_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
    clear_rows_past<typename C::T>(p.a.dv, p.a.dv_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
  }
}

template <class C>
fa_status make_key_maps(fa_ctx *ctx, const fa_attention_args &a, KeyMaps *maps) {
  const int64_t columns = static_cast<int64_t>(a.H) * a.D;
  FA_TRY(make_tensor_map(ctx, &maps->k, a.k, a.rows_k, columns, a.k_stride, kGroupRows, a.dtype));
  FA_TRY(make_tensor_map(ctx, &maps->v, a.v, a.rows_k, columns, a.v_stride, kGroupRows, a.dtype));
  maps->q = maps->dout = maps->k;  // never read where there is no query
  if (a.rows_q == 0) return FA_OK;
  FA_TRY(make_tensor_map(ctx, &maps->q, a.q, a.rows_q, columns, a.q_stride, C::Rows, a.dtype));
  return make_tensor_map(ctx, &maps->dout, a.dout, a.rows_q, columns, a.dout_stride, C::Rows, a.dtype);
}

// After the query kernel, or another that has made `stats`.
template <class C>
fa_status launch_backward_key(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  const fa_attention_args &a = p.a;
  if (a.rows_k == 0) return FA_OK;
  KeyMaps maps;
  FA_TRY(make_key_maps<C>(ctx, a, &maps));
  const int64_t tiles = ceil_div(a.max_k, C::Keys);
  const int64_t blocks = std::max<int64_t>(1, tiles * heads_of(a));
  FA_TRY(check_grid(ctx, blocks));
  auto kernel = hopper_backward_key_kernel<C>;
  FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
  return launch_overlapping(ctx, kernel, blocks, C::Threads, C::SharedBytes, p, maps,
                            make_backward_schedule(ctx, a, tiles, a.max_q, false), stats);
}

}  // namespace fa::hopper

#endif
