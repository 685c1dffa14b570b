// What the kernels that own keys share: the ring of steps over the queries, which a producer thread fills by TMA (Q, dO
// and the statistics of their rows), and the way of dk and dv to memory.
#ifndef FLASHATTN_HOPPER_BACKWARD_STREAM_CUH
#define FLASHATTN_HOPPER_BACKWARD_STREAM_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

struct KeyMaps {
  CUtensorMap q, dout, k, v;
};

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

// C gives the shapes: Rows queries a step, Stages of them under way, and where they lie in shared memory.
template <class C>
struct QueryStream : BackwardBlock<C, KeyMaps> {
  using Block = BackwardBlock<C, KeyMaps>;
  using Block::b, Block::h, Block::s, Block::first, Block::begin, Block::end;
  using Block::Block;
  using Block::p, Block::maps, Block::stats, Block::base;
  using typename Block::T;

  __device__ __forceinline__ uint32_t q(int slot) const { return base + C::QOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t dout(int slot) const { return base + C::DoutOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t lse(int slot) const { return base + C::StatsOffset + slot * 2 * C::StatsBytes; }
  __device__ __forceinline__ uint32_t delta(int slot) const { return lse(slot) + C::StatsBytes; }
  __device__ __forceinline__ uint32_t q_full(int slot) const { return base + C::BarrierOffset + slot * 8; }
  __device__ __forceinline__ uint32_t dout_full(int slot) const { return q_full(C::Stages + slot); }
  __device__ __forceinline__ uint32_t empty(int slot) const { return q_full(2 * C::Stages + slot); }
  // Barriers after those of the steps.
  __device__ __forceinline__ uint32_t barrier_after(int i) const { return q_full(3 * C::Stages + i); }

  // Steps before the result have no query that sees keys from `key` on.
  __device__ __forceinline__ int first_step(int key) const { return p.a.causal ? max(0, key - s.shift) / C::Rows : 0; }

  // A tile of C::Keys keys. False where it has none. It has no steps where none of them counts, or the sequence has no
  // query.
  __device__ __forceinline__ bool find(const HeadTile &at) {
    first = at.tile * C::Keys;
    begin = end = 0;
    Block::find_head(at.head);
    if (s.nk <= first) return false;
    if (s.nq == 0 || s.keys <= first) return true;
    begin = first_step(first);
    end = (s.nq + C::Rows - 1) / C::Rows;
    return true;
  }

  __device__ __forceinline__ void init_step_barriers() const {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(q_full(i), 1);
      barrier_init(dout_full(i), 1);
      barrier_init(empty(i), 128 * C::Groups);
    }
  }

  // K and V of the tile to places `value_offset` apart.
  __device__ __forceinline__ void load_keys(uint32_t place, int value_offset, uint32_t full) const {
    barrier_arrive_expect(full, 2 * C::Groups * C::GroupBytes);
#pragma unroll 1
    for (int g = 0; g < C::Groups; g++) {
      for (int panel = 0; panel < C::Panels; panel++) {
        const int from = h * C::D + panel * kPanelColumns, row = s.k0 + first + g * kGroupRows;
        const uint32_t to = place + g * C::GroupBytes + panel * kGroupPanelBytes;
        load_box(to, &maps.k, from, row, full, kEvictFirst);
        load_box(to + value_offset, &maps.v, from, row, full, kEvictFirst);
      }
    }
  }

  // Steps begin .. end, by one thread.
  __device__ __forceinline__ PackedRing<C::Stages> load_steps(PackedRing<C::Stages> ring) const {
    const int column = h * C::D;
    const int64_t at = row_stats_start(stats, h, s.q0, b);
    for (int n = begin; n < end; n++, ring.next()) {
      const int slot = ring.slot(), row = s.q0 + n * C::Rows;
      barrier_wait(empty(slot), ring.parity() ^ 1);
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
    }
    return ring;
  }

  // A consumer warpgroup waits for the queries of step n at slot `at`; past the sequence's end they become zeros.
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

  // Then it starts S^T of its keys, which lie at address `keys`.
  __device__ __forceinline__ void start_scores(float (&x)[C::Rows / 2], uint32_t keys, int group, int n, int at,
                                               uint32_t parity) const {
    await_queries(group, n, at, parity);
    start_scores_product<T, C::D, C::Rows>(x, keys, q(at));
  }

  // A consumer thread is done with a slot.
  __device__ __forceinline__ void release(int slot) const { barrier_arrive(empty(slot)); }

  // dk and dv of the 64 keys from `key` on of the tile described at `info`, by a warpgroup through the places of their
  // K and V.
  __device__ __forceinline__ void write_keys(const float (&dk)[C::D / 2], const float (&dv)[C::D / 2], uint32_t info,
                                             uint32_t k_place, uint32_t v_place, int key) const {
    const fa_attention_args &a = p.a;
    BackwardTile tile;  // read again: kept through the walk, it would push accumulators out to memory
    tile.load(info);
    const Sequence &s = tile.s;
    const int h = tile.h;
    const int64_t row = static_cast<int64_t>(s.k0) + key;
    const int existing = s.nk - key, valid = s.keys - key;
    write_gradient<T, C::D>(dk, a.scale, k_place, head_row<T>(a.dk, row, a.dk_stride, h, C::D), a.dk_stride, existing,
                            valid);
    write_gradient<T, C::D>(dv, p.dropout.scale, v_place, head_row<T>(a.dv, row, a.dv_stride, h, C::D), a.dv_stride,
                            existing, valid);
  }

  // Keys that do not count, or whose sequence has no query.
  __device__ __forceinline__ void write_zeros(int key) const {
    const fa_attention_args &a = p.a;
    const int rows = min(kGroupRows, s.nk - key);
    for (int i = threadIdx.x % 128; i < rows * (C::D / 8); i += 128) {
      const int64_t row = static_cast<int64_t>(s.k0) + key + i / (C::D / 8);
      const int column = i % (C::D / 8) * 8;
      *reinterpret_cast<uint4 *>(head_row<T>(a.dk, row, a.dk_stride, h, C::D) + column) = make_uint4(0, 0, 0, 0);
      *reinterpret_cast<uint4 *>(head_row<T>(a.dv, row, a.dv_stride, h, C::D) + column) = make_uint4(0, 0, 0, 0);
    }
  }
};

}  // namespace fa::hopper

#endif
