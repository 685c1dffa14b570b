// dq on Hopper: a block owns query rows, 64 to a consumer warpgroup, and walks the keys, which a producer thread
// streams by TMA. dS stays in registers as an operand of dq += dS k, so nothing but K and V passes through shared
// memory, and every sum has a fixed order. The kernel also makes the statistics of its rows, for itself and for the key
// kernel, which runs after it.
//
// A block takes one tile of rows after another. While the consumers walk one, the producer fetches the next one's Q, dO
// and out, and the other warps of its warpgroup make the next one's statistics of them.
//
// A step finds its scores made. dP = dO V^T starts; P = 2^(S c - lse), packed, while that and dq of the step before are
// on their way; the scores of the next step start; dS = P (dP - delta) while those run; dq += dS K starts.
#ifndef FLASHATTN_HOPPER_BACKWARD_QUERY_CUH
#define FLASHATTN_HOPPER_BACKWARD_QUERY_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

// Buffers: tiles of rows under way.
template <class T_, int D_, int Groups_, int Keys_, int Stages_, int Buffers_, bool Dropout_>
struct QueryConfig {
  using T = T_;
  static constexpr int D = D_, Groups = Groups_, Keys = Keys_, Stages = Stages_, Buffers = Buffers_;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Rows = kGroupRows * Groups;
  static constexpr int Threads = Groups * 128 + 128;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels, RowsBytes = Groups * GroupBytes;
  static constexpr int TilePanelBytes = Keys * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int KOffset = 3 * Buffers * RowsBytes, VOffset = KOffset + Stages * TileBytes;
  static constexpr int StatsOffset = VOffset + Stages * TileBytes, InfoOffset = StatsOffset + Buffers * Rows * 8;
  static constexpr int BarrierOffset = InfoOffset + Buffers * BackwardTile::kBytes;
  static constexpr int SharedBytes = BarrierOffset + 192 + 1024;  // 1024: room to align
  static_assert(Keys % 16 == 0 && TilePanelBytes % 1024 == 0 && (3 * Stages + 3 * Buffers) * 8 <= 192);
  static_assert(Stages >= 3, "a step starts the next one's scores before it gives back the one's before");
  static_assert(!Dropout || Keys % 32 == 0, "a dropout call serves 32 keys");
};

struct QueryMaps {
  CUtensorMap q, dout, out, k, v;
};

template <class C>
struct QueryBlock : BackwardBlock<C, QueryMaps> {
  using Block = BackwardBlock<C, QueryMaps>;
  using Block::b, Block::h, Block::s, Block::first, Block::begin, Block::end;
  using Block::Block, Block::load, Block::store;
  using Block::p, Block::maps, Block::stats, Block::base;
  using typename Block::T;

  __device__ __forceinline__ uint32_t rows_of(int kind, int buffer, int group) const {
    return base + (kind * C::Buffers + buffer) * C::RowsBytes + group * C::GroupBytes;
  }
  __device__ __forceinline__ uint32_t q(int buffer, int group) const { return rows_of(0, buffer, group); }
  __device__ __forceinline__ uint32_t dout(int buffer, int group) const { return rows_of(1, buffer, group); }
  __device__ __forceinline__ uint32_t out(int buffer, int group) const { return rows_of(2, buffer, group); }
  __device__ __forceinline__ uint32_t k(int slot) const { return base + C::KOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t v(int slot) const { return base + C::VOffset + slot * C::TileBytes; }
  // lse and delta of a row of the tile.
  __device__ __forceinline__ uint32_t statistics(int buffer, int row) const {
    return base + C::StatsOffset + (buffer * C::Rows + row) * 8;
  }
  __device__ __forceinline__ uint32_t info(int buffer) const {
    return base + C::InfoOffset + buffer * BackwardTile::kBytes;
  }
  __device__ __forceinline__ uint32_t k_full(int slot) const { return base + C::BarrierOffset + slot * 8; }
  __device__ __forceinline__ uint32_t v_full(int slot) const { return k_full(C::Stages + slot); }
  __device__ __forceinline__ uint32_t empty(int slot) const { return k_full(2 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t rows_full(int buffer) const { return k_full(3 * C::Stages + buffer); }
  __device__ __forceinline__ uint32_t rows_empty(int buffer) const { return rows_full(C::Buffers + buffer); }
  __device__ __forceinline__ uint32_t statistics_full(int buffer) const { return rows_full(2 * C::Buffers + buffer); }

  __device__ __forceinline__ int keys_until(int last) const {
    return max(0, p.a.causal ? min(s.keys, last + s.shift + 1) : s.keys);
  }

  __device__ __forceinline__ int rows() const { return min(C::Rows, s.nq - first); }

  // False where the tile has no rows.
  __device__ __forceinline__ bool find(const HeadTile &at) {
    Block::find_head(at.head);
    first = at.tile * C::Rows;
    begin = 0;
    end = (keys_until(first + rows() - 1) + C::Keys - 1) / C::Keys;
    return rows() > 0;
  }

  // The consumers' and the statistics' next tile.
  __device__ __forceinline__ bool next(const PackedRing<C::Buffers> &tile) {
    barrier_wait(rows_full(tile.slot()), tile.parity());
    load(info(tile.slot()));
    return b >= 0;
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(k_full(i), 1);
      barrier_init(v_full(i), 1);
      barrier_init(empty(i), 4 * C::Groups);
    }
    for (int i = 0; i < C::Buffers; i++) {
      barrier_init(rows_full(i), 1);
      barrier_init(rows_empty(i), 128 * C::Groups);
      barrier_init(statistics_full(i), 96);
    }
    barrier_init_fence();
  }

  __device__ __forceinline__ void load_rows(const PackedRing<C::Buffers> &tile) const {
    const int groups = (rows() + kGroupRows - 1) / kGroupRows;
    const uint32_t full = rows_full(tile.slot());
    store(info(tile.slot()));
    barrier_arrive_expect(full, 3 * groups * C::GroupBytes);
    for (int g = 0; g < groups; g++) {
      for (int panel = 0; panel < C::Panels; panel++) {
        const int from = h * C::D + panel * kPanelColumns, row = s.q0 + first + g * kGroupRows;
        const uint32_t inside = panel * kGroupPanelBytes;
        load_box(q(tile.slot(), g) + inside, &maps.q, from, row, full, kEvictFirst);
        load_box(dout(tile.slot(), g) + inside, &maps.dout, from, row, full, kEvictFirst);
        load_box(out(tile.slot(), g) + inside, &maps.out, from, row, full, kEvictFirst);
      }
    }
  }

  __device__ __forceinline__ void load_step(const PackedRing<C::Stages> &ring, int n) const {
    const int slot = ring.slot();
    barrier_wait(empty(slot), ring.parity() ^ 1);
    barrier_arrive_expect(k_full(slot), C::TileBytes);
    barrier_arrive_expect(v_full(slot), C::TileBytes);
    for (int panel = 0; panel < C::Panels; panel++) {
      load_box(k(slot) + panel * C::TilePanelBytes, &maps.k, h * C::D + panel * kPanelColumns, s.k0 + n * C::Keys,
               k_full(slot), kEvictLast);
    }
    for (int panel = 0; panel < C::Panels; panel++) {
      load_box(v(slot) + panel * C::TilePanelBytes, &maps.v, h * C::D + panel * kPanelColumns, s.k0 + n * C::Keys,
               v_full(slot), kEvictLast);
    }
  }

  // One thread.
  __device__ __forceinline__ void produce(const BackwardSchedule &schedule) {
    PackedRing<C::Stages> ring;
    PackedRing<C::Buffers> tile;
    int index = blockIdx.x;
    while (index < schedule.tiles()) {
      barrier_wait(rows_empty(tile.slot()), tile.parity() ^ 1);
      if (find(find_head_tile(schedule, index))) {
        load_rows(tile);
        tile.next();
        for (int n = end - 1; n >= 0; n--, ring.next()) load_step(ring, n);
      }
      index = schedule.take();  // on its way while the consumers have steps to do
    }
    schedule.finish();
    barrier_wait(rows_empty(tile.slot()), tile.parity() ^ 1);
    b = -1;
    store(info(tile.slot()));
    barrier_arrive(rows_full(tile.slot()));
  }

  // lse * log2(e) and delta of a row of a tile; +inf and 0 where it sees no key or does not exist.
  __device__ __forceinline__ float2 find_statistics(int buffer, int row) const {
    if (row >= rows()) return make_float2(INFINITY, 0.0f);
    const float lse = scaled_lse(p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + first + row]);
    const int group = row / kGroupRows, in_group = row % kGroupRows;
    float delta = 0.0f;
#pragma unroll 2
    for (int i = 0; i < C::D / 8; i++) {
      const int at = i / 8 * kGroupPanelBytes + in_group * kRowBytes + ((i ^ in_group) & 7) * 16;
      delta += dot8<T>(load_shared16(out(buffer, group) + at), load_shared16(dout(buffer, group) + at));
    }
    return make_float2(lse, lse == INFINITY ? 0.0f : delta);
  }

  // Three warps.
  __device__ __forceinline__ void make_statistics() {
    const int thread = threadIdx.x % 128 - 32;
    for (PackedRing<C::Buffers> tile; next(tile); tile.next()) {
      const int64_t at = row_stats_start(stats, h, s.q0, b) + first;
#pragma unroll 1
      for (int row = thread; row < C::Rows; row += 96) {
        const float2 found = find_statistics(tile.slot(), row);
        store_shared_float(statistics(tile.slot(), row), found.x);
        store_shared_float(statistics(tile.slot(), row) + 4, found.y);
        if (row < rows()) {
          stats.lse[at + row] = found.x;
          stats.delta[at + row] = found.y;
        }
      }
      barrier_arrive(statistics_full(tile.slot()));
      if (first + C::Rows < s.nq) continue;
      for (int row = thread; row < kStatsSlack; row += 96) {
        stats.lse[at + rows() + row] = INFINITY;
        stats.delta[at + rows() + row] = 0.0f;
      }
    }
  }
};

// One consumer warpgroup.
template <class C>
struct QueryConsumer {
  using T = typename C::T;
  QueryBlock<C> &block;
  const int group, warp, lane;
  PackedRing<C::Stages> ring;
  PackedRing<C::Buffers> tile;
  float lse[2], delta[2];
  int unmasked;  // keys that all rows of the warpgroup see
  int row;       // the thread's first row in the sequence
  Dropout dropout;

  __device__ __forceinline__ QueryConsumer(QueryBlock<C> &block, int group)
      : block(block), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32), dropout(block.p.dropout) {}

  __device__ __forceinline__ void release(int slot) const {
    if (lane == 0) barrier_arrive(block.empty(slot));
  }

  __device__ __forceinline__ void find_rows() {
    const int in_tile = group * kGroupRows + warp * 16 + lane / 4;
    row = block.first + in_tile;
    unmasked = block.keys_until(block.first + group * kGroupRows);
    barrier_wait(block.statistics_full(tile.slot()), tile.parity());
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float2 found = load_shared_float2(block.statistics(tile.slot(), in_tile + 8 * r));
      lse[r] = found.x, delta[r] = found.y;
    }
  }

  // Starts S of step n, whose keys lie at `at`.
  __device__ __forceinline__ void start_scores(float (&x)[C::Keys / 2], int n, const PackedRing<C::Stages> &at) const {
    barrier_wait(block.k_full(at.slot()), at.parity());
    const int valid = block.s.keys - n * C::Keys;
    if (valid < C::Keys) {
      barrier_wait(block.v_full(at.slot()), at.parity());
      clear_tile_rows<C::Panels>(block.k(at.slot()), C::TilePanelBytes, valid, C::Keys);
      clear_tile_rows<C::Panels>(block.v(at.slot()), C::TilePanelBytes, valid, C::Keys);
      fence_async_proxy();
      named_sync(1 + group, 128);
    }
    start_scores_product<T, C::D, C::Keys>(x, block.q(tile.slot(), group), block.k(at.slot()));
  }

  // x: scores; pt: probabilities, packed.
  __device__ __forceinline__ void probabilities(float (&x)[C::Keys / 2], uint32_t (&pt)[C::Keys / 4], int n) const {
    if ((n + 1) * C::Keys > unmasked) {
      const int column = n * C::Keys + lane % 4 * 2;
      mask_from<C::Keys>(x, block.keys_until(row) - column, block.keys_until(row + 8) - column);
    }
#pragma unroll
    for (int i = 0; i < C::Keys / 4; i++) {
      const float low = exp2_fast(fmaf(x[2 * i], block.p.scale_log2, -lse[i & 1]));
      const float high = exp2_fast(fmaf(x[2 * i + 1], block.p.scale_log2, -lse[i & 1]));
      pt[i] = Half2<T>::pack(low, high);
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
        const float2 x = Half2<T>::unpack(pt[2 * j + r]);
        ds[2 * j + r] = Half2<T>::pack(x.x * (g[0] - delta[r]), x.y * (g[1] - delta[r]));
      }
    }
  }

  // On entry the scores of step n are in x; in flight, on return too: dq += dS K of a step.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Keys / 2], float (&dp)[C::Keys / 2], uint32_t (&pt)[C::Keys / 4],
                                       uint32_t (&ds)[C::Keys / 4], float (&dq)[C::D / 2], int n, bool first) {
    barrier_wait(block.v_full(ring.slot()), ring.parity());
    start_scores_product<T, C::D, C::Keys>(dp, block.dout(tile.slot(), group), block.v(ring.slot()));
    probabilities(x, pt, n);
    const int here = ring.slot(), before = ring.before();
    ring.next();
    if constexpr (HasNext) {
      start_scores(x, n - 1, ring);
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

  // dq of the warpgroup's rows: the keys from the last to the first.
  __device__ __forceinline__ void walk_keys(float (&dq)[C::D / 2], int steps) {
    float x[C::Keys / 2], dp[C::Keys / 2];
    uint32_t pt[C::Keys / 4], ds[C::Keys / 4] = {};
    keep(dq);
    start_scores(x, steps - 1, ring);
    find_rows();
    product_wait<0>();
    keep(x);
    for (int n = steps - 1; n > 0; n--) step<true>(x, dp, pt, ds, dq, n, n == steps - 1);
    step<false>(x, dp, pt, ds, dq, 0, steps == 1);
    product_wait<0>();
    keep(dq);
    keep(ds);
    release(ring.before());
  }

  __device__ __forceinline__ void run_tile() {
    const int from = block.first + group * kGroupRows, last = min(kGroupRows, block.s.nq - from) - 1;
    const int steps = last < 0 ? 0 : (block.keys_until(from + last) + C::Keys - 1) / C::Keys;
    for (int n = block.end; n > steps; n--, ring.next()) {  // steps that other rows of the tile see
      barrier_wait(block.k_full(ring.slot()), ring.parity());
      barrier_wait(block.v_full(ring.slot()), ring.parity());
      release(ring.slot());
    }
    if (last >= 0) {
      float dq[C::D / 2];
#pragma unroll
      for (int i = 0; i < C::D / 2; i++) dq[i] = 0.0f;
      if (steps > 0) walk_keys(dq, steps);
      named_sync(1 + group, 128);  // every warp is done with Q
      const fa_attention_args &a = block.p.a;
      write_gradient<T, C::D>(dq, a.scale, block.q(tile.slot(), group),
                              head_row<T>(a.dq, block.s.q0 + from, a.dq_stride, block.h, C::D), a.dq_stride, last + 1,
                              last + 1);
      fence_async_proxy();
    }
    // The statistics of the tile are read by then, or by no one: they take their place when its rows are given back.
    barrier_wait(block.statistics_full(tile.slot()), tile.parity());
    barrier_arrive(block.rows_empty(tile.slot()));
  }

  __device__ __forceinline__ void run() {
    for (; block.next(tile); tile.next()) run_tile();
  }
};

template <class C>
__global__ void __launch_bounds__(C::Threads, 1)
    hopper_backward_query_kernel(const __grid_constant__ Problem p, const __grid_constant__ QueryMaps maps,
                                 const __grid_constant__ BackwardSchedule schedule, const RowStats stats) {
  extern __shared__ char dynamic_shared[];
  QueryBlock<C> block(p, maps, stats, (shared_address(dynamic_shared) + 1023) & ~1023u);
  let_dependent_start();
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  if (role == C::Groups) {
    registers_shrink<56>();
    if (threadIdx.x % 128 >= 32) {
      block.make_statistics();
    } else if (threadIdx.x % 128 == 0) {
      block.produce(schedule);
    }
  } else {
    if constexpr (C::Groups == 2) registers_grow<224>();
    if constexpr (C::Groups == 3) registers_grow<152>();
    QueryConsumer<C>(block, role).run();
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
  FA_TRY(make_tensor_map(ctx, &maps.out, a.out, a.rows_q, columns, a.out_stride, kGroupRows, a.dtype));
  maps.k = maps.v = maps.q;  // never read where there is no key
  if (a.rows_k > 0) {
    FA_TRY(make_tensor_map(ctx, &maps.k, a.k, a.rows_k, columns, a.k_stride, C::Keys, a.dtype));
    FA_TRY(make_tensor_map(ctx, &maps.v, a.v, a.rows_k, columns, a.v_stride, C::Keys, a.dtype));
  }
  const int64_t tiles = ceil_div(a.max_q, C::Rows);
  FA_TRY(check_grid(ctx, tiles * heads_of(a)));
  auto kernel = hopper_backward_query_kernel<C>;
  FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
  kernel<<<static_cast<unsigned>(persistent_blocks(ctx, tiles * heads_of(a))), C::Threads, C::SharedBytes,
           ctx->stream>>>(
      p, maps, make_backward_schedule(ctx, a, tiles, a.max_k, true, tile_counter(ctx, TileCounter::kBackwardQuery)),
      stats);
  return FA_LAUNCHED(ctx, "Hopper attention backward, queries");
}

}  // namespace fa::hopper

#endif
