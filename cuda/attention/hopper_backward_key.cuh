// dk and dv on Hopper: a block owns keys, 64 to a consumer warpgroup, and walks the queries, which a producer thread
// streams by TMA together with their statistics. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so that
// P^T and dS^T lie in registers as operands of dv += P^T dO and dk += dS^T Q: nothing is written to shared memory.
//
// A block takes one tile of keys after another; the producer fetches the next one's while the consumers walk.
//
// A step finds its scores made. dP^T starts; P = 2^(S c - lse) while that and dk of the step before are on their way;
// dv += P^T dO and the scores of the next step start; dS = P (dP - delta) while those run; dk += dS^T Q starts. P is
// taken back from its packed form, so that the next scores have its registers; not with dropout, where what is packed
// has gaps.
#ifndef FLASHATTN_HOPPER_BACKWARD_KEY_CUH
#define FLASHATTN_HOPPER_BACKWARD_KEY_CUH

#include "hopper_backward_stream.cuh"

namespace fa::hopper {

// Rows: queries of a step. Buffers: tiles of keys under way.
template <class T_, int D_, int Groups_, int Rows_, int Stages_, int Buffers_, bool Dropout_>
struct KeyConfig {
  using T = T_;
  static constexpr int D = D_, Groups = Groups_, Rows = Rows_, Stages = Stages_, Buffers = Buffers_;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Keys = kGroupRows * Groups;
  static constexpr int Threads = Groups * 128 + 128;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels, KeysBytes = Groups * GroupBytes;
  static constexpr int TilePanelBytes = Rows * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int StatsBytes = Rows * 4;
  static constexpr int VOffset = Buffers * KeysBytes, QOffset = 2 * Buffers * KeysBytes;
  static constexpr int DoutOffset = QOffset + Stages * TileBytes, StatsOffset = DoutOffset + Stages * TileBytes;
  static constexpr int InfoOffset = StatsOffset + 2 * Stages * StatsBytes;
  static constexpr int BarrierOffset = InfoOffset + Buffers * BackwardTile::kBytes;
  static constexpr int SharedBytes = BarrierOffset + 192 + 1024;  // 1024: room to align
  static_assert(Rows % 16 == 0 && InfoOffset % 16 == 0 && Rows <= kStatsSlack && (3 * Stages + 3 * Buffers) * 8 <= 192);
  static_assert(Stages >= 3, "a step starts the next one's scores before it gives back the one's before");
};

template <class C>
struct KeyBlock : QueryStream<C> {
  using QueryStream<C>::QueryStream;
  using Stream = QueryStream<C>;
  using Stream::b, Stream::begin, Stream::end;

  __device__ __forceinline__ uint32_t k(int buffer, int group) const {
    return Stream::base + buffer * C::KeysBytes + group * C::GroupBytes;
  }
  __device__ __forceinline__ uint32_t v(int buffer, int group) const { return k(buffer, group) + C::VOffset; }
  __device__ __forceinline__ uint32_t info(int buffer) const {
    return Stream::base + C::InfoOffset + buffer * BackwardTile::kBytes;
  }
  __device__ __forceinline__ uint32_t keys_full(int buffer) const { return Stream::barrier_after(buffer); }
  __device__ __forceinline__ uint32_t keys_empty(int buffer) const { return keys_full(C::Buffers + buffer); }
  __device__ __forceinline__ uint32_t info_full(int buffer) const { return keys_full(2 * C::Buffers + buffer); }

  __device__ __forceinline__ void init_barriers() const {
    Stream::init_step_barriers();
    for (int i = 0; i < C::Buffers; i++) {
      barrier_init(keys_full(i), 1);
      barrier_init(keys_empty(i), 128 * C::Groups);
      barrier_init(info_full(i), 1);
    }
    barrier_init_fence();
  }

  // The next tile, by `full`, a barrier that follows the writing of its description.
  __device__ __forceinline__ bool next(uint32_t full, const PackedRing<C::Buffers> &tile) {
    barrier_wait(full, tile.parity());
    Stream::load(info(tile.slot()));
    return b >= 0;
  }

  // One thread: describes one tile after another. Apart from the producer, as both have few registers.
  __device__ __forceinline__ void find_tiles(const BackwardSchedule &schedule) {
    PackedRing<C::Buffers> tile;
    for (int index = blockIdx.x; index < schedule.tiles(); index = schedule.take()) {
      barrier_wait(keys_empty(tile.slot()), tile.parity() ^ 1);
      if (!Stream::find(find_head_tile(schedule, index))) continue;
      Stream::store(info(tile.slot()));
      barrier_arrive(info_full(tile.slot()));
      tile.next();
    }
    schedule.finish();
    barrier_wait(keys_empty(tile.slot()), tile.parity() ^ 1);
    b = -1;
    Stream::store(info(tile.slot()));
    barrier_arrive(info_full(tile.slot()));
  }

  // One thread.
  __device__ __forceinline__ void produce() {
    PackedRing<C::Stages> ring;
    PackedRing<C::Buffers> tile;
    for (; next(info_full(tile.slot()), tile); tile.next()) {
      const uint32_t full = keys_full(tile.slot());
      if (begin >= end) {
        barrier_arrive(full);  // the description may be replaced from here on
        continue;
      }
      Stream::load_keys(k(tile.slot(), 0), C::VOffset, full);
      wait_for_previous();              // the statistics
      Stream::load(info(tile.slot()));  // again: few registers
      ring = Stream::load_steps(ring);
    }
    barrier_arrive(keys_full(tile.slot()));
  }
};

// One consumer warpgroup.
template <class C>
struct KeyConsumer {
  using T = typename C::T;
  KeyBlock<C> &block;
  const int group, warp, lane;
  PackedRing<C::Stages> ring;
  PackedRing<C::Buffers> tile;
  int key = 0;  // first key of the warpgroup in the sequence
  Dropout dropout;

  __device__ __forceinline__ KeyConsumer(KeyBlock<C> &block, int group)
      : block(block), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32), dropout(block.p.dropout) {}

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
      probabilities_at<T, C::Rows, C::Dropout>(j, x, pt, block.lse(ring.slot()), block.p.scale_log2, kept);
    }
  }

  // On entry the scores of step n are in x; in flight, on return too: dk += dS^T Q of a step.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Rows / 2], float (&dp)[C::Rows / 2], uint32_t (&pt)[C::Rows / 4],
                                       uint32_t (&ds)[C::Rows / 4], float (&dk)[C::D / 2], float (&dv)[C::D / 2], int n,
                                       bool first) {
    barrier_wait(block.dout_full(ring.slot()), ring.parity());
    start_scores_product<T, C::D, C::Rows>(dp, block.v(tile.slot(), group), block.dout(ring.slot()));
    KeptBits<C::Rows> kept;
    if constexpr (C::Dropout) {
      find_kept_transposed<C::Rows>(dropout, n * C::Rows, key, block.b * block.p.a.H + block.h, kept);
    }
    probabilities(x, pt, n, kept);
    start_sum_product<T, C::D, C::Rows>(dv, pt, block.dout(ring.slot()));
    const int here = ring.slot(), before = ring.before();
    ring.next();
    if constexpr (HasNext && !C::Dropout) {
      block.start_scores(x, block.k(tile.slot(), group), group, n + 1, ring.slot(), ring.parity());
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
        block.start_scores(x, block.k(tile.slot(), group), group, n + 1, ring.slot(), ring.parity());
        product_wait<0>();
        keep(ds);
      } else {
        product_wait<1>();
      }
      keep(x);
      keep(pt);
    }
  }

  // dk and dv of the warpgroup's keys: the queries from step `begin` on.
  __device__ __forceinline__ void walk_queries(float (&dk)[C::D / 2], float (&dv)[C::D / 2], int begin) {
    float x[C::Rows / 2], dp[C::Rows / 2];
    uint32_t pt[C::Rows / 4] = {}, ds[C::Rows / 4] = {};
    keep(dk);
    keep(dv);
    block.start_scores(x, block.k(tile.slot(), group), group, begin, ring.slot(), ring.parity());
    product_wait<0>();
    keep(x);
    for (int n = begin; n + 1 < block.end; n++) step<true>(x, dp, pt, ds, dk, dv, n, n == begin);
    step<false>(x, dp, pt, ds, dk, dv, block.end - 1, block.end - 1 == begin);
    product_wait<0>();
    keep(dk);
    keep(dv);
    keep(pt);
    keep(ds);
    block.release(ring.before());
  }

  // Gives the tile's places of K and V back.
  __device__ __forceinline__ void release_keys() {
    fence_async_proxy();
    barrier_arrive(block.keys_empty(tile.slot()));
    tile.next();
  }

  __device__ __forceinline__ void run_tile() {
    const int begin = key < block.s.keys ? block.first_step(key) : block.end;
    for (int n = block.begin; n < begin; n++, ring.next()) {  // steps that see other keys of the tile
      barrier_wait(block.q_full(ring.slot()), ring.parity());
      barrier_wait(block.dout_full(ring.slot()), ring.parity());
      block.release(ring.slot());
    }
    if (begin >= block.end) return block.write_zeros(key);
    float dk[C::D / 2], dv[C::D / 2];
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) dk[i] = dv[i] = 0.0f;
    walk_queries(dk, dv, begin);
    named_sync(1 + group, 128);  // every warp is done with K and V
    block.write_keys(dk, dv, block.info(tile.slot()), block.k(tile.slot(), group), block.v(tile.slot(), group), key);
  }

  __device__ __forceinline__ void run() {
    while (block.next(block.keys_full(tile.slot()), tile)) {
      key = block.first + group * kGroupRows;
      run_tile();
      release_keys();
    }
  }
};

template <class C>
__global__ void __launch_bounds__(C::Threads, 1)
    hopper_backward_key_kernel(const __grid_constant__ Problem p, const __grid_constant__ KeyMaps maps,
                               const __grid_constant__ BackwardSchedule schedule, const RowStats stats) {
  extern __shared__ char dynamic_shared[];
  KeyBlock<C> block(p, maps, stats, (shared_address(dynamic_shared) + 1023) & ~1023u);
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  if (role == C::Groups) {
    registers_shrink<24>();
    if (threadIdx.x == C::Groups * 128) block.produce();
    if (threadIdx.x == C::Groups * 128 + 32) block.find_tiles(schedule);
  } else {
    registers_grow<240>();
    KeyConsumer<C>(block, role).run();
    wait_for_previous();  // whatever follows this kernel follows that one too
    const int begin = clamp_int(p.a.cu_k[p.a.B], 0, p.a.rows_k), columns = p.a.H * C::D;
    clear_rows_past<typename C::T>(p.a.dk, p.a.dk_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
    clear_rows_past<typename C::T>(p.a.dv, p.a.dv_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
  }
}

// After the query kernel, or another that has made `stats`.
template <class C>
fa_status launch_backward_key(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  const fa_attention_args &a = p.a;
  if (a.rows_k == 0) return FA_OK;
  KeyMaps maps;
  FA_TRY(make_key_maps<C>(ctx, a, &maps));
  const int64_t tiles = ceil_div(a.max_k, C::Keys);
  FA_TRY(check_grid(ctx, tiles * heads_of(a)));
  auto kernel = hopper_backward_key_kernel<C>;
  FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
  return launch_dependent(
      ctx, kernel, persistent_blocks(ctx, tiles * heads_of(a)), C::Threads, C::SharedBytes, p, maps,
      make_backward_schedule(ctx, a, tiles, a.max_q, false, tile_counter(ctx, TileCounter::kBackwardKey)), stats);
}

}  // namespace fa::hopper

#endif
