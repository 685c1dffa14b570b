// dq, dk and dv by one walk over the queries on Hopper: five products where the query and key kernels together make
// seven. A block owns 128 keys, as in the key kernel, and each step's dS^T also goes to shared memory, for dq = dS K,
// which is added to a float accumulator in memory. Adds of different blocks come in no fixed order: not for the
// deterministic mode. A kernel before makes the row statistics, one after converts the accumulator.
//
// Here at D 64 the two warpgroups make dq of every second step each, one step late, so that neither waits for the
// other's dS^T; four buffers hold it. At D 128: hopper_backward_fused_wide.cuh.
#ifndef FLASHATTN_HOPPER_BACKWARD_FUSED_CUH
#define FLASHATTN_HOPPER_BACKWARD_FUSED_CUH

#include "hopper_backward_accumulator.cuh"
#include "hopper_backward_stream.cuh"

namespace fa::hopper {

template <class T_, int D_, int Stages_, bool Dropout_>
struct FusedConfig {
  using T = T_;
  static constexpr int D = D_, Groups = 2, Rows = 64, Stages = Stages_;
  static constexpr int Buffers = D == 64 ? 4 : 2;                 // of dS^T
  static constexpr int Readers = D == 64 ? 1 : Groups;            // warpgroups that read one of them
  static constexpr int DqBytes = kGroupRows * kPanelColumns * 4;  // a warpgroup's dq on its way to memory
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Keys = kGroupRows * Groups;
  static constexpr int Threads = Groups * 128 + 128;
  static constexpr int GroupBytes = kGroupPanelBytes * Panels;
  static constexpr int TilePanelBytes = Rows * kRowBytes, TileBytes = TilePanelBytes * Panels;
  static constexpr int StatsBytes = Rows * 4;
  static constexpr int VOffset = Groups * GroupBytes, QOffset = 2 * Groups * GroupBytes;
  static constexpr int DoutOffset = QOffset + Stages * TileBytes, DsOffset = DoutOffset + Stages * TileBytes;
  static constexpr int DqOffset = DsOffset + Buffers * Groups * kGroupPanelBytes,
                       StatsOffset = DqOffset + Groups * DqBytes;
  static constexpr int BarrierOffset = StatsOffset + 2 * Stages * StatsBytes;
  static constexpr int Barriers = 3 * Stages + 1 + 2 * Buffers + 2 * Groups;
  static constexpr int InfoOffset = BarrierOffset + (Barriers + 1) / 2 * 16;
  static constexpr int SharedBytes = InfoOffset + BackwardTile::kBytes + 1024;  // 1024: room to align
};

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
  static constexpr int kBoth = 3;                   // named barriers: 1, 2 of a warpgroup, then of both
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
  __device__ __forceinline__ static uint32_t dq_stage(const FusedBlock<C> &block, int group) {
    return block.base + C::DqOffset + group * C::DqBytes;
  }
  __device__ __forceinline__ static uint32_t dq_full(const FusedBlock<C> &block, int group) {
    return ds_full(block, 2 * C::Buffers + group);
  }
  __device__ __forceinline__ static uint32_t dq_empty(const FusedBlock<C> &block, int group) {
    return dq_full(block, C::Groups + group);
  }

  __device__ __forceinline__ static void init_barriers(const FusedBlock<C> &block) {
    for (int i = 0; i < C::Buffers; i++) {
      barrier_init(ds_full(block, i), 128 * C::Groups);
      barrier_init(ds_empty(block, i), 128 * C::Readers);
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
      reduce_add_bulk(target, dq_stage(block, group), C::DqBytes);
      store_commit();
      store_wait_read<0>();
      barrier_arrive(dq_empty(block, group));
    }
  }

  // The `nth` dq of the warpgroup to where add_steps() finds it. Fence after it, then hand over.
  __device__ __forceinline__ void store_dq(const float (&dq)[kDqColumns / 2], int nth) const {
    const uint32_t mine = dq_stage(block, group) + warp * (C::DqBytes / 4) + lane * 16;
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

  // dq = dS K of step n and a panel's columns, as one group; of whatever lies there before the first step.
  __device__ __forceinline__ void start_dq(float (&dq)[kDqColumns / 2], int n, int panel) const {
    if (n >= block.begin) barrier_wait(ds_full(block, buffer(n)), use(n));
    const int from = buffer(n + C::Buffers);
    product_begin();
#pragma unroll
    for (int g = 0; g < C::Groups; g++) {
      const uint64_t a = descriptor_mn_major(ds(from, g), kGroupPanelBytes);
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

  // walk(dk, dv) adds the products of all steps.
  template <class Walk>
  __device__ __forceinline__ void run_walk(Walk walk) {
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
    named_sync(kBoth, 256);
    walk(dk, dv);
    named_sync(kBoth, 256);  // both are done with K and V
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
  static_assert(C::D == kPanelColumns);
  using Base::Base;

  __device__ __forceinline__ static void add_dq(const FusedBlock<C> &block, const DqSum &sum, int group) {
    const int from = block.begin + group;
    Base::template add_steps<C::Groups>(block, group, from, dq_sum_tile<C::D>(sum, block.h, block.s.q0, block.b, from));
  }

  // dq of step n, which is made: its dS^T is free for the other warpgroup's next but three.
  __device__ __forceinline__ void store_dq(const float (&dq)[kDqColumns / 2], int n) const {
    Base::store_dq(dq, (n - block.begin) / 2);
  }

  // On entry the scores of step n are in x; in flight, on return too: dk += dS^T Q of a step and perhaps dq of the one
  // before. In one piece, as the order of its lines is the schedule.
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
      this->start_dq(dq, n - 1, 0);
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
      if constexpr (Group == 1) this->start_dq(dq, n + 1, 0);
      finish_dq(dq, Group == 1 ? n + 1 : n);
    } else {
      step<first, false>(x, dp, pt, dst, dk, dv, dq, n);
      if constexpr (Group == 0) this->start_dq(dq, n, 0);
      finish_dq(dq, Group == 0 ? n : n - 1);
    }
    keep(dk);
    keep(dv);
    keep(pt);
    keep(dst);
  }

  __device__ __forceinline__ void run() {
    if (group == 0) {
      this->run_walk([this](auto &dk, auto &dv) { walk<0>(dk, dv); });
    } else {
      this->run_walk([this](auto &dk, auto &dv) { walk<1>(dk, dv); });
    }
  }
};

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
    wait_for_previous();  // the zeros to which parts of tiles add
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

// ---- launch --------------------------------------------------------------------------------------------------------

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
