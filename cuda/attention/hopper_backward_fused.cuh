// dq, dk and dv by one walk over the queries on Hopper: five products where the query and key kernels together make
// seven. A block owns 128 keys, as in the key kernel, and each step's dS^T also goes to shared memory, for dq = dS K,
// which is added to a float accumulator in memory. Adds of different blocks come in no fixed order: not for the
// deterministic mode. A kernel before makes the row statistics, one after converts the accumulator.
//
// Here at D 64 the two warpgroups make dq of every second step each, one step late, so that neither waits for the
// other's dS^T; four buffers hold it. At D 128: hopper_backward_fused_wide.cuh.
#ifndef FLASHATTN_HOPPER_BACKWARD_FUSED_CUH
#define FLASHATTN_HOPPER_BACKWARD_FUSED_CUH

#include "hopper_backward_stream.cuh"

namespace fa::hopper {

template <class T_, int D_, int Stages_, bool Dropout_>
struct FusedConfig {
  using T = T_;
  static constexpr int D = D_, Groups = 2, Rows = 64, Stages = Stages_;
  static constexpr int Buffers = D == 64 ? 4 : 2;                          // of dS^T
  static constexpr int DqBytes = Groups * kGroupRows * kPanelColumns * 4;  // of dq on its way to memory
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Keys = kGroupRows * Groups;
  static constexpr int Threads = Groups * 128 + 128;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels;
  static constexpr int TilePanelBytes = Rows * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int StatsBytes = Rows * 4;
  static constexpr int VOffset = Groups * GroupBytes, QOffset = 2 * Groups * GroupBytes;
  static constexpr int DoutOffset = QOffset + Stages * TileBytes, DsOffset = DoutOffset + Stages * TileBytes;
  static constexpr int DqOffset = DsOffset + Buffers * Groups * kGroupPanelBytes, StatsOffset = DqOffset + DqBytes;
  static constexpr int BarrierOffset = StatsOffset + 2 * Stages * StatsBytes;
  static constexpr int InfoOffset = BarrierOffset + 208;
  static constexpr int SharedBytes = InfoOffset + BackwardTile::kBytes + 1024;  // 1024: room to align
};

// ---- the accumulator of dq: [H, tiles, D / 64 panels, 64 x 64 floats in fragment order] ----------------------------
// Each sequence is padded to whole tiles.

inline int64_t accumulator_tiles(const fa_attention_args &a) { return a.rows_q / kGroupRows + a.B + 1; }
inline int64_t fused_accumulator_bytes(const fa_attention_args &a) {
  return accumulator_tiles(a) * a.H * kGroupRows * a.D * 4;
}

struct DqSum {
  float *data;
  int64_t tiles;     // of a head
  int lag;           // heads between the one a block walks and the one for which it writes zeros
  uint32_t *zeroed;  // [B H]: blocks that have written theirs
};

template <int D>
__device__ __forceinline__ float *dq_sum_tile(const DqSum &sum, int h, int q0, int b, int tile) {
  return sum.data + (h * sum.tiles + q0 / kGroupRows + b + tile) * kGroupRows * D;
}

// ---- tiles that several blocks share -------------------------------------------------------------------------------
// Tiles take about the same time where there is no causal mask, so that a few over the multiprocessors' number would
// keep those few busy alone. Each of them is walked in parts, whose dk and dv add up in memory; the part that comes
// last takes the sum.

struct SplitTiles {
  int first, parts;   // tiles before `first` are whole
  float *sums;        // [tiles, warp, dk or dv, 16 x D floats in fragment order]
  uint32_t *arrived;  // [tiles, warp]: parts that have added theirs

  // Of a tile with so many steps.
  __host__ __device__ __forceinline__ int parts_of(int steps) const { return max(1, min(parts, steps)); }
};

constexpr int kLeastPart = 4;  // steps: a block needs about as long to start and to end

// Memory of a call beside the row statistics: the accumulator of dq, then words that are zeros before the main kernel.
struct FusedMemory {
  DqSum sum;
  SplitTiles split;
  uint32_t *words;
  int64_t count, bytes;
};

template <class C>
FusedMemory find_fused_memory(const fa_ctx *ctx, const fa_attention_args &a, char *memory) {
  const int64_t tiles_per_head = ceil_div(a.max_k, C::Keys), tiles = tiles_per_head * heads_of(a);
  const int64_t over = tiles % ctx->sm_count, steps = ceil_div(a.max_q, C::Rows);
  const bool even = !a.causal && over > 0;
  const int64_t parts = even ? std::max<int64_t>(1, std::min(ctx->sm_count / over, steps / kLeastPart)) : 1;
  const int64_t split_tiles = parts > 1 ? over : 0, floats = split_tiles * C::Keys * C::D * 2;
  FusedMemory m;
  m.words = reinterpret_cast<uint32_t *>(memory + fused_accumulator_bytes(a));
  uint32_t *const arrived = m.words + floats, *const zeroed = arrived + split_tiles * C::Groups * 4;
  m.count = floats + split_tiles * C::Groups * 4 + heads_of(a);
  m.bytes = fused_accumulator_bytes(a) + m.count * 4;
  m.split = SplitTiles{static_cast<int>(tiles - split_tiles), static_cast<int>(parts),
                       reinterpret_cast<float *>(m.words), arrived};
  const int64_t group = make_backward_schedule(ctx, a, tiles_per_head, a.max_q, false, nullptr).head_group;
  const int64_t groups = 1 + ceil_div(ctx->sm_count + ctx->sm_count / 8, std::max<int64_t>(1, group * tiles_per_head));
  m.sum = DqSum{reinterpret_cast<float *>(memory), accumulator_tiles(a),
                static_cast<int>(std::min<int64_t>(group * groups, heads_of(a))), zeroed};
  return m;
}

// ---- main kernel ---------------------------------------------------------------------------------------------------

// A block has one tile of keys or a part of one.
template <class C>
struct FusedBlock : QueryStream<C> {
  using QueryStream<C>::QueryStream;
  using Stream = QueryStream<C>;

  __device__ __forceinline__ uint32_t k(int group) const { return Stream::base + group * C::GroupBytes; }
  __device__ __forceinline__ uint32_t v(int group) const { return k(group) + C::VOffset; }
  __device__ __forceinline__ uint32_t k_full() const { return Stream::barrier_after(0); }

  // The block's tile, or its part of one, found by one thread; the others read it. b < 0: there is none.
  __device__ __forceinline__ void find(const BackwardSchedule &schedule, const SplitTiles &split) {
    const int rest = static_cast<int>(blockIdx.x) - split.first, of_split = rest / split.parts;
    const int part = rest < 0 ? 0 : rest - of_split * split.parts;
    const HeadTile tile = find_head_tile(schedule, rest < 0 ? blockIdx.x : split.first + of_split);
    if (tile.head >= schedule.heads || !Stream::find(tile)) Stream::b = -1;
    if (rest >= 0) {
      const int steps = Stream::end - Stream::begin, parts = split.parts_of(steps);
      if (part >= parts) Stream::b = -1;
      Stream::end = Stream::begin + steps * (part + 1) / parts;
      Stream::begin += steps * part / parts;
    }
    Stream::store(Stream::base + C::InfoOffset);
  }
  __device__ __forceinline__ bool read() {
    Stream::load(Stream::base + C::InfoOffset);
    return Stream::b >= 0;
  }

  __device__ __forceinline__ void init_barriers() const {
    Stream::init_step_barriers();
    barrier_init(k_full(), 1);
    barrier_init_fence();
  }

  // One thread.
  __device__ __forceinline__ void produce() {
    if (Stream::begin >= Stream::end) return;
    Stream::load_keys(k(0), C::VOffset, k_full());
    read();               // again: few registers
    wait_for_previous();  // the statistics
    Stream::load_steps(PackedRing<C::Stages>());
  }
};

// What the consumer warpgroups of the walk share, whatever their order of work.
template <class C>
struct FusedWarpgroup {
  using T = typename C::T;
  static constexpr int kDqColumns = kPanelColumns;  // of dq that a warpgroup makes at a time: a panel
  const FusedBlock<C> &block;
  const SplitTiles &split;
  const int group, warp, lane;
  int slot = 0;
  uint32_t parity = 0;
  int key;       // first key of the warpgroup in the sequence
  int limit[2];  // the thread's rows see queries from here on
  bool tail;     // some keys of the warpgroup do not count

  __device__ __forceinline__ FusedWarpgroup(const FusedBlock<C> &block, const SplitTiles &split, int group)
      : block(block),
        split(split),
        group(group),
        warp(threadIdx.x / 32 % 4),
        lane(threadIdx.x % 32),
        key(block.first + group * kGroupRows) {
    tail = key + kGroupRows > block.s.keys;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = key + warp * 16 + lane / 4 + 8 * r;
      limit[r] = row >= block.s.keys ? INT32_MAX / 2 : block.p.a.causal ? row - block.s.shift : INT32_MIN / 2;
    }
  }

  // ---- dS^T: a ring of C::Buffers, from both warpgroups to those that make dq of it ----
  __device__ __forceinline__ uint32_t ds(int buffer, int of_group) const {
    return block.base + C::DsOffset + (buffer * C::Groups + of_group) * kGroupPanelBytes;
  }
  __device__ __forceinline__ static uint32_t ds_full(const FusedBlock<C> &block, int buffer) {
    return block.barrier_after(1 + buffer);
  }
  __device__ __forceinline__ static uint32_t ds_empty(const FusedBlock<C> &block, int buffer) {
    return ds_full(block, C::Buffers + buffer);
  }
  // Buffer of a step's dS^T, and the parity of its barriers: of its first use, 0 and 0.
  __device__ __forceinline__ int buffer(int n) const { return (n - block.begin) % C::Buffers; }
  __device__ __forceinline__ uint32_t use(int n) const { return (n - block.begin) / C::Buffers % 2; }

  // ---- dq: from a warpgroup through shared memory to the accumulator ----
  // Adding from registers would keep them from other use until the last add is issued.
  static constexpr uint32_t kDqBytes = kGroupRows * kDqColumns * 4;
  __device__ __forceinline__ static uint32_t dq_stage(const FusedBlock<C> &block, int group) {
    return block.base + C::DqOffset + group * kDqBytes;
  }
  __device__ __forceinline__ static uint32_t dq_full(const FusedBlock<C> &block, int group) {
    return ds_full(block, 2 * C::Buffers + group);
  }
  __device__ __forceinline__ static uint32_t dq_empty(const FusedBlock<C> &block, int group) {
    return dq_full(block, C::Groups + group);
  }

  static_assert((3 * C::Stages + 1 + 2 * C::Buffers + 2 * C::Groups) * 8 <= 208);
  // `readers`: warpgroups that read a buffer of dS^T.
  __device__ __forceinline__ static void init_barriers(const FusedBlock<C> &block, int readers) {
    for (int i = 0; i < C::Buffers; i++) {
      barrier_init(ds_full(block, i), 128 * C::Groups);
      barrier_init(ds_empty(block, i), 128 * readers);
    }
    for (int g = 0; g < C::Groups; g++) {
      barrier_init(dq_full(block, g), 128);
      barrier_init(dq_empty(block, g), 1);
    }
  }

  // A thread of the producer's warpgroup adds what a consumer warpgroup hands over: dq of every `Every`-th step from
  // `from` on.
  template <int Every>
  __device__ __forceinline__ static void add_steps(const FusedBlock<C> &block, int group, int from, float *target) {
    uint32_t parity = 0;
    for (int n = from; n < block.end; n += Every, parity ^= 1, target += Every * kGroupRows * C::D) {
      barrier_wait(dq_full(block, group), parity);
      reduce_add_bulk(target, dq_stage(block, group), kDqBytes);
      store_commit();
      store_wait_read<0>();
      barrier_arrive(dq_empty(block, group));
    }
  }

  // The `nth` dq of the warpgroup to where add_steps() finds it. Fence after it, then hand over.
  __device__ __forceinline__ void store_dq(const float (&dq)[kDqColumns / 2], int nth) const {
    const uint32_t mine = dq_stage(block, group) + warp * (kDqBytes / 4) + lane * 16;
    barrier_wait(dq_empty(block, group), (nth + 1) % 2);
#pragma unroll
    for (int j = 0; j < kDqColumns / 8; j++) {
      store_shared16(mine + j * 512, make_uint4(__float_as_uint(dq[4 * j]), __float_as_uint(dq[4 * j + 1]),
                                                __float_as_uint(dq[4 * j + 2]), __float_as_uint(dq[4 * j + 3])));
    }
  }

  // -inf to the scores of step n that do not count.
  __device__ __forceinline__ void mask(float (&x)[C::Rows / 2], int n) const {
    if (tail || (block.p.a.causal && key + kGroupRows - 1 - block.s.shift > n * C::Rows)) {
      const int column = n * C::Rows + lane % 4 * 2;
      mask_until<C::Rows>(x, limit[0] - column, limit[1] - column);
    }
  }

  // dq = dS K of a panel's columns, as one group.
  __device__ __forceinline__ void start_dq_product(float (&dq)[kDqColumns / 2], int buffer, int panel) const {
    product_begin();
#pragma unroll
    for (int g = 0; g < C::Groups; g++) {
      const uint64_t a = descriptor_mn_major(ds(buffer, g), kGroupPanelBytes);
      const uint64_t b = descriptor_mn_major(block.k(g) + panel * kGroupPanelBytes, kGroupPanelBytes);
#pragma unroll
      for (int i = 0; i < kGroupRows / 16; i++) {
        product_ss<T, kDqColumns, 1, 1>(dq, advance(a, i * 16 * kRowBytes), advance(b, i * 16 * kRowBytes),
                                        g > 0 || i > 0);
      }
    }
    product_commit();
  }

  // dS^T as it lies: rows keys, columns queries. Fence after it.
  __device__ __forceinline__ void store_ds(const uint32_t (&x)[C::Rows / 4], int buffer) const {
    const int row = lane % 16;
    const uint32_t mine = ds(buffer, group) + (warp * 16 + row) * kRowBytes;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int chunk = i * 2 + lane / 16;
      store_matrices(mine + ((chunk ^ (row & 7)) << 4), x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    }
  }

  // walk(dk, dv) adds the products of all steps; `both`: a named barrier of both warpgroups.
  template <class Walk>
  __device__ __forceinline__ void run_walk(int both, Walk walk) {
    float dk[C::D / 2], dv[C::D / 2];
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) dk[i] = dv[i] = 0.0f;
    barrier_wait(block.k_full(), 0);
    if (tail) {
      const int valid = max(0, block.s.keys - key);
      clear_tile_rows<C::Panels>(block.k(group), kGroupPanelBytes, valid, kGroupRows);
      clear_tile_rows<C::Panels>(block.v(group), kGroupPanelBytes, valid, kGroupRows);
      fence_async_proxy();
    }
    named_sync(both, 256);
    walk(dk, dv);
    named_sync(both, 256);  // both are done with K and V
    if (static_cast<int>(blockIdx.x) < split.first || complete(dk, dv)) {
      block.write_keys(dk, dv, block.base + C::InfoOffset, block.k(group), block.v(group), key);
    }
  }

  // Of a tile in parts: adds the part's dk and dv to the tile's; the warp that comes last gets the sums, and true.
  __device__ __forceinline__ bool complete(float (&dk)[C::D / 2], float (&dv)[C::D / 2]) const {
    const int tile = (blockIdx.x - split.first) / split.parts;
    const int steps = (block.s.nq + C::Rows - 1) / C::Rows;
    float *at = split.sums + static_cast<int64_t>((tile * C::Groups + group) * 4 + warp) * (32 * C::D) + lane * 4;
#pragma unroll
    for (int j = 0; j < C::D / 8; j++) {
      add_float4(at + j * 128, dk[4 * j], dk[4 * j + 1], dk[4 * j + 2], dk[4 * j + 3]);
      add_float4(at + (C::D / 8 + j) * 128, dv[4 * j], dv[4 * j + 1], dv[4 * j + 2], dv[4 * j + 3]);
    }
    __threadfence();
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) before = atomicAdd(split.arrived + (tile * C::Groups + group) * 4 + warp, 1u);
    if (__shfl_sync(0xffffffffu, before, 0) + 1 < static_cast<uint32_t>(split.parts_of(steps))) return false;
    __threadfence();
#pragma unroll
    for (int j = 0; j < C::D / 8; j++) {
      const float4 x = __ldcg(reinterpret_cast<const float4 *>(at + j * 128));
      const float4 y = __ldcg(reinterpret_cast<const float4 *>(at + (C::D / 8 + j) * 128));
      dk[4 * j] = x.x, dk[4 * j + 1] = x.y, dk[4 * j + 2] = x.z, dk[4 * j + 3] = x.w;
      dv[4 * j] = y.x, dv[4 * j + 1] = y.y, dv[4 * j + 2] = y.z, dv[4 * j + 3] = y.w;
    }
    return true;
  }

  __device__ __forceinline__ static void add_float4(float *at, float x, float y, float z, float w) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
  }
};

// What a warpgroup does about dq in a step beside its part of dk and dv: adds that of two steps before to memory, or
// starts that of the step before. In its first step, started of nothing, dq is never added.
enum class DqTurn { kAdd, kStart };

template <class C>
struct FusedConsumer : FusedWarpgroup<C> {
  using Base = FusedWarpgroup<C>;
  using Base::block, Base::group, Base::lane, Base::slot, Base::parity, Base::key, Base::kDqColumns;
  using Base::buffer, Base::use, Base::ds_full, Base::ds_empty, Base::dq_full;
  using typename Base::T;
  static constexpr int kBoth = 3;  // named barriers: 1, 2 of a warpgroup, then of both
  static_assert(C::D == kPanelColumns);
  using Base::Base;

  __device__ __forceinline__ static void init_barriers(const FusedBlock<C> &block) { Base::init_barriers(block, 1); }

  __device__ __forceinline__ static void add_dq(const FusedBlock<C> &block, const DqSum &sum, int group) {
    const int from = block.begin + group;
    Base::template add_steps<C::Groups>(block, group, from, dq_sum_tile<C::D>(sum, block.h, block.s.q0, block.b, from));
  }

  // dq of step n; of whatever lies there before the first.
  __device__ __forceinline__ void start_dq(float (&dq)[C::D / 2], int n) const {
    if (n >= block.begin) barrier_wait(ds_full(block, buffer(n)), use(n));
    this->start_dq_product(dq, buffer(n + C::Buffers), 0);
  }

  // dq of step n, which is made: its dS^T is free for the other warpgroup's next but three.
  __device__ __forceinline__ void store_dq(const float (&dq)[kDqColumns / 2], int n) const {
    Base::store_dq(dq, (n - block.begin) / 2);
  }

  // On entry the scores of step n are in x; in flight, on return too: dk += dS^T Q of a step and perhaps dq of the one
  // before.
  template <DqTurn Turn, bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Rows / 2], float (&dp)[C::Rows / 2], uint32_t (&pt)[C::Rows / 4],
                                       uint32_t (&dst)[C::Rows / 4], float (&dk)[C::D / 2], float (&dv)[C::D / 2],
                                       float (&dq)[C::D / 2], int n) {
    barrier_wait(block.dout_full(slot), parity);
    start_scores_product<T, C::D, C::Rows>(dp, block.v(group), block.dout(slot));
    KeptBits<C::Rows> kept;
    if constexpr (C::Dropout) {
      // Made anew in each step: kept, its five values would push accumulators out to memory.
      find_kept_transposed<C::Rows>(Dropout(block.p.dropout), n * C::Rows, key, block.b * block.p.a.H + block.h, kept);
    }
    this->mask(x, n);
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      probabilities_at<T, C::Rows, C::Dropout>(j, x, pt, block.lse(slot), block.p.scale_log2, kept);
    }
    start_sum_product<T, C::D, C::Rows>(dv, pt, block.dout(slot));
    const int here = slot, before = slot == 0 ? C::Stages - 1 : slot - 1;
    if (++slot == C::Stages) slot = 0, parity ^= 1;
    if constexpr (HasNext && !C::Dropout) {
      block.start_scores(x, block.k(group), group, n + 1, slot, parity);
      product_wait<2>();
    } else {
      product_wait<1>();
    }
    keep(dp);
    if constexpr (!C::Dropout) {
      keep(dst);  // of the step before: read by a product until here
      if (n > block.begin) block.release(before);
    }
    if constexpr (Turn == DqTurn::kAdd) {
      keep(dq);
      if (n - 2 >= block.begin) barrier_arrive(ds_empty(block, buffer(n - 2)));
    }
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      if constexpr (C::Dropout) {
        differentiate_at<T, C::Rows, true>(j, x, dp, dst, block.delta(here), kept, block.p.dropout.scale);
      } else {
        differentiate_packed_at<T, C::Rows>(j, pt, dp, dst, block.delta(here));
      }
    }
    start_sum_product<T, C::D, C::Rows>(dk, dst, block.q(here));
    if constexpr (Turn == DqTurn::kAdd) {
      this->store_ds(dst, buffer(n));
      if (n - 2 >= block.begin) store_dq(dq, n - 2);
      fence_async_proxy();
      barrier_arrive(ds_full(block, buffer(n)));
      if (n - 2 >= block.begin) barrier_arrive(dq_full(block, group));
    } else {
      barrier_wait(ds_empty(block, buffer(n)), use(n) ^ 1);
      this->store_ds(dst, buffer(n));
      fence_async_proxy();
      barrier_arrive(ds_full(block, buffer(n)));
      start_dq(dq, n - 1);
    }
    if constexpr (HasNext) {
      if constexpr (C::Dropout) {
        block.start_scores(x, block.k(group), group, n + 1, slot, parity);
        product_wait<0>();
        keep(dst);
        block.release(slot == 0 ? C::Stages - 1 : slot - 1);
      } else {
        product_wait<(Turn == DqTurn::kStart ? 2 : 1)>();
      }
      keep(x);
      keep(pt);
    }
  }

  // After the last step: dq of a step that this warpgroup still owes.
  __device__ __forceinline__ void finish_dq(float (&dq)[C::D / 2], int n) const {
    product_wait<0>();
    keep(dq);
    if (n < block.begin) return;
    store_dq(dq, n);
    fence_async_proxy();
    barrier_arrive(dq_full(block, group));
  }

  template <int Group>
  __device__ __forceinline__ void walk(float (&dk)[C::D / 2], float (&dv)[C::D / 2]) {
    constexpr DqTurn first = Group == 0 ? DqTurn::kAdd : DqTurn::kStart;
    constexpr DqTurn second = Group == 0 ? DqTurn::kStart : DqTurn::kAdd;
    float x[C::Rows / 2], dp[C::Rows / 2], dq[C::D / 2];
    uint32_t pt[C::Rows / 4] = {}, dst[C::Rows / 4] = {};
    keep(dk);
    keep(dv);
    int n = block.begin;
    block.start_scores(x, block.k(group), group, n, slot, parity);
    product_wait<0>();
    keep(x);
    for (; n + 2 < block.end; n += 2) {
      step<first, true>(x, dp, pt, dst, dk, dv, dq, n);
      step<second, true>(x, dp, pt, dst, dk, dv, dq, n + 1);
    }
    if (n + 1 < block.end) {
      step<first, true>(x, dp, pt, dst, dk, dv, dq, n);
      step<second, false>(x, dp, pt, dst, dk, dv, dq, n + 1);
      if constexpr (Group == 1) start_dq(dq, n + 1);
      finish_dq(dq, Group == 1 ? n + 1 : n);
    } else {
      step<first, false>(x, dp, pt, dst, dk, dv, dq, n);
      if constexpr (Group == 0) start_dq(dq, n);
      finish_dq(dq, Group == 0 ? n : n - 1);
    }
    keep(dk);
    keep(dv);
    keep(pt);
    keep(dst);
  }

  __device__ __forceinline__ void run() {
    if (group == 0) {
      this->run_walk(kBoth, [this](auto &dk, auto &dv) { walk<0>(dk, dv); });
    } else {
      this->run_walk(kBoth, [this](auto &dk, auto &dv) { walk<1>(dk, dv); });
    }
  }
};

// The accumulator's zeros: for the first heads by the kernel before; for each other by the blocks of a head that all
// come before any of its own, so that zeros and sums meet in L2.
template <int D>
__device__ __forceinline__ void zero_ahead(const Problem &p, const BackwardSchedule &schedule, const SplitTiles &split,
                                           const DqSum &sum) {
  const HeadTile at = find_head_tile(schedule, blockIdx.x);
  const int head = at.head + sum.lag, lane = threadIdx.x % 32;
  if (static_cast<int>(blockIdx.x) >= split.first || head >= schedule.heads) return;
  wait_for_previous();
  const int b = head / p.a.H, h = head - b * p.a.H;
  const Sequence s = read_sequence(p.a, b);
  for (int tile = at.tile; tile * kGroupRows < s.nq; tile += schedule.tiles_per_head) {
    float4 *to = reinterpret_cast<float4 *>(dq_sum_tile<D>(sum, h, s.q0, b, tile)) + lane;
#pragma unroll 4
    for (int i = 0; i < kGroupRows * D / 128; i++) to[i * 32] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __threadfence();
  __syncwarp();
  if (lane == 0) atomicAdd(sum.zeroed + head, 1u);
}

// One thread, before it adds to the head.
__device__ __forceinline__ void await_zeros(const DqSum &sum, int head, int blocks) {
  wait_for_previous();
  if (head < sum.lag) return;
  uint32_t zeroed;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(zeroed) : "l"(sum.zeroed + head) : "memory");
  } while (zeroed < static_cast<uint32_t>(blocks));
  asm volatile("fence.proxy.async;" ::: "memory");
}

template <class C, class Consumer>
__global__ void __launch_bounds__(C::Threads, 1)
    hopper_backward_fused_kernel(const __grid_constant__ Problem p, const __grid_constant__ KeyMaps maps,
                                 const BackwardSchedule schedule, const RowStats stats, const DqSum sum,
                                 const SplitTiles split) {
  extern __shared__ char dynamic_shared[];
  FusedBlock<C> block(p, maps, stats, (shared_address(dynamic_shared) + 1023) & ~1023u);
  let_dependent_start();
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    Consumer::init_barriers(block);
    block.init_barriers();
  }
  if (threadIdx.x == C::Groups * 128) block.find(schedule, split);
  __syncthreads();
  if (role == C::Groups) {
    registers_shrink<24>();
    const bool exists = block.read();
    if (threadIdx.x == C::Groups * 128 && exists) block.produce();
    const int helper = threadIdx.x / 32 - C::Groups * 4 - 1;
    if (helper >= 0 && helper < C::Groups && threadIdx.x % 32 == 0 && exists && block.begin < block.end) {
      await_zeros(sum, block.b * p.a.H + block.h, schedule.tiles_per_head);
      Consumer::add_dq(block, sum, helper);
    }
    if (helper == C::Groups) zero_ahead<C::D>(p, schedule, split, sum);
  } else {
    registers_grow<240>();
    const bool exists = block.read();
    wait_for_previous();  // the accumulator's zeros
    if (exists && block.begin < block.end) {
      Consumer(block, split, role).run();
    } else if (exists) {
      block.write_zeros(block.first + role * kGroupRows);
    }
    const int begin = clamp_int(p.a.cu_k[p.a.B], 0, p.a.rows_k), columns = p.a.H * C::D;
    clear_rows_past<typename C::T>(p.a.dk, p.a.dk_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
    clear_rows_past<typename C::T>(p.a.dv, p.a.dv_stride, begin, p.a.rows_k, columns, threadIdx.x, C::Groups * 128);
  }
}

// ---- before and after ----------------------------------------------------------------------------------------------

constexpr int kPrepareRows = 128;

// Row statistics, and zeros where the walk adds; a block takes 128 rows of a head.
template <class T, int D>
__global__ void __launch_bounds__(256)
    hopper_backward_prepare_kernel(const __grid_constant__ Problem p, const RowStats stats, const FusedMemory m,
                                   int tiles) {
  constexpr int lanes = D / 8, rows_at_once = 256 / lanes;
  let_dependent_start();
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < m.count; i += gridDim.x * 256) m.words[i] = 0;
  const int head = blockIdx.x / tiles, tile = blockIdx.x - head * tiles;
  const int b = head / p.a.H, h = head - b * p.a.H;
  if (b >= p.a.B) return;
  const Sequence s = read_sequence(p.a, b);
  const int first = tile * kPrepareRows;
  if (first >= s.nq) return;
  const int64_t at = row_stats_start(stats, h, s.q0, b);
  const int lane = threadIdx.x % lanes;
#pragma unroll
  for (int i = 0; i < kPrepareRows / rows_at_once; i++) {
    const int row = first + i * rows_at_once + threadIdx.x / lanes;
    float x = 0.0f;
    if (row < s.nq) {
      const T *o = head_row<T>(p.a.out, s.q0 + row, p.a.out_stride, h, D);
      const T *g = head_row<T>(p.a.dout, s.q0 + row, p.a.dout_stride, h, D);
      x = dot8<T>(reinterpret_cast<const uint4 *>(o)[lane], reinterpret_cast<const uint4 *>(g)[lane]);
    }
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (lane == 0 && row < s.nq) {
      const float lse = scaled_lse(p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + row]);
      stats.lse[at + row] = lse;
      stats.delta[at + row] = lse == INFINITY ? 0.0f : x;
    }
  }
  if (first + kPrepareRows >= s.nq && threadIdx.x < kStatsSlack) {
    stats.lse[at + s.nq + threadIdx.x] = INFINITY;
    stats.delta[at + s.nq + threadIdx.x] = 0.0f;
  }
  if (head >= m.sum.lag) return;
  float4 *zeros = reinterpret_cast<float4 *>(dq_sum_tile<D>(m.sum, h, s.q0, b, first / kGroupRows));
  const int rows = min(kPrepareRows, (s.nq - first + kGroupRows - 1) / kGroupRows * kGroupRows);
  for (int i = threadIdx.x; i < rows * D / 4; i += 256) zeros[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// dq = scale * its sum, in 16 bits; a block takes 64 rows of a head. Rows of no sequence become 0.
template <class T, int D>
__global__ void __launch_bounds__(128)
    hopper_backward_convert_kernel(const __grid_constant__ Problem p, const DqSum sum, int tiles) {
  __shared__ __align__(1024) char shared[kGroupPanelBytes * (D / kPanelColumns)];
  const int from_last = blockIdx.x / tiles, tile = blockIdx.x - from_last * tiles;
  const int head = p.a.B * p.a.H - 1 - from_last;  // what was added last is still in L2
  const int b = head / p.a.H, h = head - b * p.a.H;
  wait_for_previous();
  clear_rows_past<T>(p.a.dq, p.a.dq_stride, clamp_int(p.a.cu_q[p.a.B], 0, p.a.rows_q), p.a.rows_q, p.a.H * D,
                     threadIdx.x, 128);
  if (head < 0) return;
  const Sequence s = read_sequence(p.a, b);
  const int first = tile * kGroupRows;
  if (first >= s.nq) return;
  const float4 *from = reinterpret_cast<const float4 *>(dq_sum_tile<D>(sum, h, s.q0, b, tile)) +
                       threadIdx.x / 32 * (kPanelColumns / 8) * 32 + threadIdx.x % 32;
  float dq[D / 2];
#pragma unroll
  for (int j = 0; j < D / 8; j++) {
    constexpr int per_panel = kPanelColumns / 8;
    const float4 x = from[j / per_panel * (kGroupRows * kPanelColumns / 4) + j % per_panel * 32];
    dq[4 * j] = x.x, dq[4 * j + 1] = x.y, dq[4 * j + 2] = x.z, dq[4 * j + 3] = x.w;
  }
  write_gradient<T, D>(dq, p.a.scale, shared_address(shared), head_row<T>(p.a.dq, s.q0 + first, p.a.dq_stride, h, D),
                       p.a.dq_stride, s.nq - first, s.nq - first);
}

template <class C>
int64_t fused_workspace_bytes(const fa_ctx *ctx, const fa_attention_args &a) {
  return row_stats_bytes(a) + find_fused_memory<C>(ctx, a, nullptr).bytes;
}

template <class C, class Consumer = FusedConsumer<C>>
fa_status launch_backward_fused(fa_ctx *ctx, const Problem &p, const RowStats &stats) {
  using T = typename C::T;
  const fa_attention_args &a = p.a;
  char *const workspace = reinterpret_cast<char *>(stats.lse);
  const int64_t prepare_tiles = ceil_div(a.max_q, kPrepareRows), convert_tiles = ceil_div(a.max_q, kGroupRows);
  const int64_t tiles = ceil_div(a.max_k, C::Keys);
  FA_TRY(check_grid(ctx, std::max(tiles, convert_tiles) * heads_of(a)));
  const FusedMemory m = find_fused_memory<C>(ctx, a, workspace + row_stats_bytes(a));
  if (prepare_tiles * heads_of(a) > 0) {
    const unsigned blocks = static_cast<unsigned>(prepare_tiles * heads_of(a));
    hopper_backward_prepare_kernel<T, C::D>
        <<<blocks, 256, 0, ctx->stream>>>(p, stats, m, static_cast<int>(prepare_tiles));
    FA_TRY(FA_LAUNCHED(ctx, "Hopper attention backward, preparation"));
  }
  if (a.rows_k > 0) {
    KeyMaps maps;
    FA_TRY(make_key_maps<C>(ctx, a, &maps));
    auto kernel = hopper_backward_fused_kernel<C, Consumer>;
    FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
    const int64_t blocks = m.split.first + (tiles * heads_of(a) - m.split.first) * m.split.parts;
    FA_TRY(launch_dependent(ctx, kernel, std::max<int64_t>(1, blocks), C::Threads, C::SharedBytes, p, maps,
                            make_backward_schedule(ctx, a, tiles, a.max_q, false, nullptr), stats, m.sum, m.split));
  }
  if (a.rows_q == 0) return FA_OK;
  const int64_t convert = std::max<int64_t>(1, convert_tiles * heads_of(a));
  return launch_dependent(ctx, hopper_backward_convert_kernel<T, C::D>, convert, 128, 0, p, m.sum,
                          static_cast<int>(std::max<int64_t>(1, convert_tiles)));
}

}  // namespace fa::hopper

#endif
