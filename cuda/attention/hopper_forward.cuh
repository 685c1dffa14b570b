// The forward kernel on Hopper. Blocks stay and take tiles in turn: a producer warp keeps a ring of K and V tiles and
// the next Q full by TMA; each consumer warpgroup owns 64 query rows, holds S, P and O in registers and walks the
// keys from the last to the first, so that only its first steps test masks. hopper_forward_tiles.cuh has the order of
// the tiles and the layout of shared memory, hopper_forward_softmax.cuh the arithmetic of a step; this file the roles
// and the launch.
//
// A warpgroup waits for its products (O += P V of one step and S = Q K^T of the next, in one go) and the others fill
// the time: three or four on a multiprocessor keep the tensor cores and the exponential unit busy without further
// ceremony.
#ifndef FLASHATTN_HOPPER_FORWARD_CUH
#define FLASHATTN_HOPPER_FORWARD_CUH

#include <algorithm>

#include "hopper_forward_softmax.cuh"
#include "hopper_forward_tiles.cuh"
#include "hopper_tensor_map.cuh"
#include "hopper_wgmma.cuh"
#include "rows.cuh"

namespace fa::hopper {

// ---- producer: one warp -------------------------------------------------------------------------------------------

// Finds a tile and notes it in shared memory; false: there is none.
template <class C>
__device__ __forceinline__ bool note_tile(const Problem &p, const ForwardSchedule &schedule, int index, uint32_t note) {
  TileInfo info;
  int k0;
  if (!find_info<C::Rows, C::Keys>(p, schedule, index, info, k0)) return false;
  store_shared16(note, make_uint4(info.row, info.rows, info.h, info.blocks));
  store_shared16(note + 16, make_uint4(info.first, info.keys, info.shift, info.head));
  store_shared16(note + 32, make_uint4(k0, 0, 0, 0));
  return true;
}

template <class C>
struct Producer {
  const Problem &p;
  const ForwardMaps &maps;
  const ForwardShared<C> &shared;
  const int pair;
  Ring<C::QStages> q;
  Ring<C::Stages> kv;

  __device__ __forceinline__ void load_queries(const TileInfo &info) {
    const uint32_t full = shared.q_full(q.slot);
    if (info.blocks == 0) {
      barrier_arrive(full);
      return;
    }
    int bytes = 0;
#pragma unroll 1
    for (int r = 0; r < info.rows; r += 64) bytes += box_bytes<64, C::Panels>(min(64, info.rows - r));
    barrier_arrive_expect(full, bytes);
#pragma unroll 1
    for (int r = 0; r < info.rows; r += 64) {
      load_rows<64, C::Panels>(shared.q(q.slot) + r / 64 * C::QGroupBytes, &maps.q, &maps.q_small, info.h * C::D,
                               info.row + r, min(64, info.rows - r), full);
    }
  }

  __device__ __forceinline__ void load_tile(uint32_t note) {
    const TileInfo info = read_info(note);
    barrier_wait(shared.q_empty(q.slot), q.parity ^ 1);
    store_shared16(shared.info(q.slot), load_shared16(note));
    store_shared16(shared.info(q.slot) + 16, load_shared16(note + 16));
    load_queries(info);
    q.next();
    const int k0 = static_cast<int>(load_shared16(note + 32).x);
#pragma unroll 1
    for (int n = info.blocks - 1; n >= 0; n--) {
      const int rows = min(C::Keys, info.keys - n * C::Keys), row = k0 + n * C::Keys;
      const int bytes = box_bytes<C::Keys, C::Panels>(rows);
      barrier_wait(shared.k_empty(kv.slot), kv.parity ^ 1);
      barrier_arrive_expect(shared.k_full(kv.slot), bytes);
      load_rows<C::Keys, C::Panels>(shared.k(kv.slot), &maps.k, &maps.k_small, info.h * C::D, row, rows,
                                    shared.k_full(kv.slot));
      barrier_wait(shared.v_empty(kv.slot), kv.parity ^ 1);
      barrier_arrive_expect(shared.v_full(kv.slot), bytes);
      load_rows<C::Keys, C::Panels>(shared.v(kv.slot), &maps.v, &maps.v_small, info.h * C::D, row, rows,
                                    shared.v_full(kv.slot));
      kv.next();
    }
  }

  // The tiles of 32 rounds at a time: found by all lanes, loaded in order by lane 0. Where tiles are handed out as
  // blocks come for them, lane 0 takes one at a time.
  __device__ __forceinline__ void run(const ForwardSchedule &schedule) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int first = 0;; first += 32) {
      int index = schedule.tiles;
      if (schedule.taken == nullptr) {
        if (first >= schedule.rounds) break;
        index = tile_index<C::Pairs>(pair, first + lane);
      } else {
        if (lane == 0) index = static_cast<int>(atomicAdd(schedule.taken, 1u));
        if (uniform(index) >= schedule.tiles) break;
      }
      uint32_t noted = __ballot_sync(0xffffffffu, note_tile<C>(p, schedule, index, shared.noted(lane)));
      __syncwarp();
      if (lane == 0) {
#pragma unroll 1
        for (; noted != 0; noted &= noted - 1) load_tile(shared.noted(__ffs(noted) - 1));
      }
      __syncwarp();
    }
    if (lane == 0) {
      barrier_wait(shared.q_empty(q.slot), q.parity ^ 1);
      store_shared16(shared.info(q.slot), make_uint4(0, 0, 0, static_cast<uint32_t>(-1)));
      barrier_arrive(shared.q_full(q.slot));
    }
  }
};

// ---- consumer: one warpgroup --------------------------------------------------------------------------------------

template <class C>
struct Consumer {
  using T = typename C::T;
  static constexpr bool kSkipIdle = C::Groups == 1;  // warps without rows leave the issue slots to others

  const Problem &p;
  const ForwardShared<C> &shared;
  const int group, sync_id;  // warpgroup of the pair, its named barrier
  const int warp, lane;      // warp of the warpgroup
  Ring<C::Stages> kv;        // of the step whose scores were started last
  float o[C::D / 2];
  SoftmaxRows rows;
  uint64_t q_descriptor;
  // of the tile at hand
  int keys;  // that count
  uint32_t info_address;
  int unmasked;   // keys that all rows of the warpgroup see
  bool idle;      // the warp's rows do not exist
  int first_row;  // of the thread, in the sequence; `head` with it: for dropout
  int head;
  Dropout dropout;

  __device__ __forceinline__ Consumer(const Problem &p, const ForwardShared<C> &shared, int group, int sync_id)
      : p(p),
        shared(shared),
        group(group),
        sync_id(sync_id),
        warp(uniform(threadIdx.x / 32 % 4)),
        lane(threadIdx.x % 32),
        dropout(p.dropout) {}

  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane == 0) barrier_arrive(barrier);
  }

  // s = Q K^T of the first Keys rows of the K tile at `kv`, as one group.
  template <int Keys>
  __device__ __forceinline__ void start_scores(float (&s)[Keys / 2]) {
    barrier_wait(shared.k_full(kv.slot), kv.parity);
    const uint64_t b = descriptor_k_major(shared.k(kv.slot));
    float fresh[Keys / 2];  // not s: its old values must not seem to enter the product
    product_begin();
#pragma unroll
    for (int i = 0; i < C::D / 16; i++) {
      const int panel = i / 4, inside = i % 4 * 32;
      product_ss<T, Keys, 0, 0>(fresh, advance(q_descriptor, panel * 64 * kRowBytes + inside),
                                advance(b, panel * C::TilePanelBytes + inside), i > 0);
    }
    product_commit();
#pragma unroll
    for (int i = 0; i < Keys / 2; i++) s[i] = fresh[i];
  }

  // O += P V of the first Keys rows of the V tile at `at`, as one group.
  template <int Keys>
  __device__ __forceinline__ void start_output(const uint32_t (&p)[Keys / 4], const Ring<C::Stages> &at) {
    barrier_wait(shared.v_full(at.slot), at.parity);
    const uint64_t b = descriptor_mn_major(shared.v(at.slot), C::TilePanelBytes);
    product_begin();
#pragma unroll
    for (int i = 0; i < Keys / 16; i++) {
      product_rs<T, C::D, 1>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], advance(b, i * 16 * kRowBytes), 1);
    }
    product_commit();
  }

  // Rows of V past the last key hold what was there before: NaN times a probability of 0 would be NaN.
  __device__ __forceinline__ void clear_rows(uint32_t tile, int valid, int end) const {
    for (int i = valid * 8 + threadIdx.x % 128; i < end * 8; i += 128) {
#pragma unroll
      for (int panel = 0; panel < C::Panels; panel++) {
        store_shared16(tile + panel * C::TilePanelBytes + i * 16, make_uint4(0, 0, 0, 0));
      }
    }
    fence_async_proxy();
    named_sync(sync_id, 128);
  }

  // Step `block` is the first: the `used` rows of its V may be short of some. Called while its scores are on their way.
  __device__ __forceinline__ void complete_values(const Ring<C::Stages> &at, int block, int used) const {
    const int valid = keys - block * C::Keys;
    if (valid >= used) return;
    barrier_wait(shared.v_full(at.slot), at.parity);
    clear_rows(shared.v(at.slot), valid, used);
  }

  template <int Count>
  __device__ __forceinline__ void mask(float (&s)[Count], int column) const {
    const TileInfo info = read_info(info_address);
    const int row = info.first + group * 64 + warp * 16 + lane / 4;
    mask_scores<2 * Count>(s, keys_until(info, row) - column, keys_until(info, row + 8) - column);
  }

  // Scores of step `block` to probabilities. True: O must be rescaled.
  template <int Keys>
  __device__ __forceinline__ bool softmax(float (&s)[Keys / 2], uint32_t (&probability)[Keys / 4], int block,
                                          bool first) {
    if (kSkipIdle && idle) return false;
    const int column = block * C::Keys + lane % 4 * 2;
    const bool masked = block * C::Keys + Keys > unmasked;
    if (masked) mask(s, column);
    bool rescale = false, exact = masked || first;
    float sums[2];
    while (true) {
      if (exact) rescale = update_reference<Keys>(s, rows, p.scale_log2);
      exponentials<C, Keys>(s, probability, sums, rows, p.scale_log2, dropout, first_row, column, head);
      const bool inside = sums[0] <= kSumLimit<T> && sums[1] <= kSumLimit<T>;
      if (exact || __all_sync(0xffffffffu, inside)) break;
      exact = true;
    }
    rows.sum[0] += sums[0];
    rows.sum[1] += sums[1];
    return rescale;
  }

  __device__ __forceinline__ void rescale_output() {
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) o[i] *= rows.rescale[(i >> 1) & 1];
  }

  __device__ __forceinline__ void finish_output() {
    product_wait<0>();
    keep(o);
    release(shared.v_empty(kv.slot_before()));
  }

  // The first step where it sees fewer than C::Keys keys: by products of Keys, the least multiple that holds them.
  template <int Keys>
  __device__ __forceinline__ void short_step(int block) {
    float s[Keys / 2];
    uint32_t probability[Keys / 4] = {};
    start_scores<Keys>(s);
    complete_values(kv, block, Keys);
    product_wait<0>();
    keep(s);
    release(shared.k_empty(kv.slot));
    softmax<Keys>(s, probability, block, true);
    start_output<Keys>(probability, kv);
    kv.next();
    finish_output();
    keep(probability);
  }

  // All steps of a tile. `seen`: keys that the warpgroup's last row sees.
  __device__ __forceinline__ void walk(int blocks, int seen) {
    constexpr int kShort = C::Keys / 4 % 16 == 0 && C::Groups != 3 && !C::Dropout ? C::Keys / 4 : C::Keys;
    keep(o);
    int block = blocks - 1;
    if constexpr (kShort < C::Keys) {
      const int last = seen - block * C::Keys;
      if (last <= C::Keys - kShort) {
        if (last <= kShort) {
          short_step<kShort>(block);
        } else if (last <= 2 * kShort) {
          short_step<2 * kShort>(block);
        } else {
          short_step<3 * kShort>(block);
        }
        block--;
      }
    }
    if (block < 0) return;
    kv.settle();
    float s[C::Keys / 2];
    uint32_t probability[C::Keys / 4] = {};
    start_scores<C::Keys>(s);
    if (block == blocks - 1) complete_values(kv, block, C::Keys);
    product_wait<0>();
    keep(s);
    release(shared.k_empty(kv.slot));
    if (softmax<C::Keys>(s, probability, block, block == blocks - 1)) rescale_output();
    for (block--; block >= 0; block--) {
      const Ring<C::Stages> before = kv;
      kv.next();
      start_scores<C::Keys>(s);
      start_output<C::Keys>(probability, before);
      product_wait<0>();
      keep(s);
      keep(o);
      keep(probability);
      release(shared.k_empty(kv.slot));
      release(shared.v_empty(before.slot));
      if (softmax<C::Keys>(s, probability, block, false)) rescale_output();
    }
    start_output<C::Keys>(probability, kv);
    kv.next();
    finish_output();
    keep(probability);
  }

  // Steps that this warpgroup's rows do not see, but others of the block do.
  __device__ __forceinline__ void pass_over(int blocks) {
    for (; blocks > 0; blocks--) {
      barrier_wait(shared.k_full(kv.slot), kv.parity);
      release(shared.k_empty(kv.slot));
      barrier_wait(shared.v_full(kv.slot), kv.parity);
      release(shared.v_empty(kv.slot));
      kv.next();
    }
  }

  // The copy engine may write the next Q here.
  __device__ __forceinline__ void release_queries(int slot) const {
    fence_async_proxy();
    barrier_arrive(shared.q_empty(slot));
  }

  // Normalises O and writes it, through the warp's rows of the Q tile, in whole 128-byte rows; writes lse.
  __device__ __forceinline__ void write_output(int slot, const TileInfo &info) {
    named_sync(sync_id, 128);  // every warp is done with Q
    if (idle) {
      release_queries(slot);
      return;
    }
    const uint32_t q_tile = shared.q(slot) + group * C::QGroupBytes;
    const int existing = info.rows - group * 64;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = rows.sum[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const bool empty = rows.reference[r] <= kNoMaximum || !(sum != 0.0f);
      factor[r] = empty ? 0.0f : reciprocal_fast(sum);
      if constexpr (C::Dropout) factor[r] *= dropout.scale;
      const int row = warp * 16 + lane / 4 + 8 * r;
      if (lane % 4 == 0 && row < existing) {
        const float lse = empty ? -INFINITY : (rows.reference[r] + log2_fast(sum)) * kLn2;
        p.a.lse[static_cast<int64_t>(info.h) * p.a.rows_q + info.row + group * 64 + row] = lse;
      }
    }
    const uint32_t mine = q_tile + warp * 16 * kRowBytes;
#pragma unroll
    for (int i = 0; i < C::D / 16; i++) {
      const int row = lane % 16, chunk = i % 4 * 2 + lane / 16;
      const uint32_t address = mine + i / 4 * 64 * kRowBytes + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
      const float *x = o + 8 * i;
      store_matrices(address, Half2<T>::pack(x[0] * factor[0], x[1] * factor[0]),
                     Half2<T>::pack(x[2] * factor[1], x[3] * factor[1]),
                     Half2<T>::pack(x[4] * factor[0], x[5] * factor[0]),
                     Half2<T>::pack(x[6] * factor[1], x[7] * factor[1]));
    }
    __syncwarp();
    T *out = head_row<T>(p.a.out, info.row + group * 64 + warp * 16, p.a.out_stride, info.h, C::D);
    uint4 x[C::Panels * 4];
#pragma unroll
    for (int i = 0; i < C::Panels * 4; i++) {
      const int row = i % 4 * 4 + lane / 8, chunk = lane % 8;
      x[i] = load_shared16(mine + i / 4 * 64 * kRowBytes + row * kRowBytes + ((chunk ^ (row & 7)) << 4));
    }
    release_queries(slot);
#pragma unroll
    for (int i = 0; i < C::Panels * 4; i++) {
      const int row = i % 4 * 4 + lane / 8, chunk = lane % 8;
      if (warp * 16 + row < existing) {
        __stcs(reinterpret_cast<uint4 *>(out + row * p.a.out_stride + i / 4 * kPanelColumns + chunk * 8), x[i]);
      }
    }
  }

  __device__ __forceinline__ void tile(int slot, TileInfo info) {
    info.rows = uniform(info.rows);
    info.first = uniform(info.first);
    info.keys = uniform(info.keys);
    info.shift = uniform(info.shift);
    info.blocks = uniform(info.blocks);
    const int existing = info.rows - group * 64;  // rows of this warpgroup that exist
    const int first = info.first + group * 64;
    const int seen = existing <= 0 ? 0 : keys_until(info, first + min(existing, 64) - 1);
    const int blocks = (seen + C::Keys - 1) / C::Keys;
    idle = warp * 16 >= existing;
    keys = info.keys;
    head = info.head;
    first_row = first + warp * 16 + lane / 4;
    info_address = shared.info(slot);
    unmasked = keys_until(info, first);
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) o[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      rows.reference[r] = kNoMaximum;
      rows.sum[r] = 0.0f;
      rows.rescale[r] = 1.0f;
    }
    pass_over(info.blocks - blocks);
    kv.settle();
    const uint32_t q_tile = shared.q(slot) + group * C::QGroupBytes;
    if (blocks > 0) {
      q_descriptor = descriptor_k_major(q_tile);
      walk(blocks, seen);
    }
    if (existing > 0) {
      write_output(slot, read_info(shared.info(slot)));
    } else {
      release_queries(slot);
    }
  }

  __device__ __forceinline__ void run() {
    Ring<C::QStages> q;
    while (true) {
      barrier_wait(shared.q_full(q.slot), q.parity);
      const TileInfo info = read_info(shared.info(q.slot));
      if (uniform(info.blocks) < 0) return;
      tile(q.slot, info);
      q.settle();
      q.next();
    }
  }
};

// Fetches the parameters into the constant cache, a line a warp, so that their first uses do not wait one after
// another.
__device__ __forceinline__ void touch_parameters(const Problem &p, const ForwardSchedule &schedule) {
  constexpr int kLine = 16;  // words
  const int word = threadIdx.x / 32 * kLine;
  if (word < static_cast<int>(sizeof(Problem) / 4)) {
    asm volatile("" ::"r"(reinterpret_cast<const uint32_t *>(&p)[word]));
  }
  asm volatile("" ::"r"(schedule.tiles));
}

template <class C>
__global__ void __launch_bounds__(C::Threads, 1)
    hopper_forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardMaps maps,
                          const __grid_constant__ ForwardSchedule schedule) {
  extern __shared__ char dynamic_shared[];
  if (threadIdx.x == C::Threads - 32) {
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    prefetch_map(&maps.q_small);
    prefetch_map(&maps.k_small);
    prefetch_map(&maps.v_small);
  }
  touch_parameters(p, schedule);
  const int role = uniform(threadIdx.x / 128);
  const uint32_t base = (shared_address(dynamic_shared) + 1023) & ~1023u;
  const int producer_warp = uniform(threadIdx.x / 32 - C::Consumers * 4);
  const int pair = C::Pairs == 1 ? 0 : producer_warp;
  const bool produces = role == C::Consumers && producer_warp < C::Pairs;
  if (threadIdx.x < C::Pairs) ForwardShared<C>{base + threadIdx.x * C::PairBytes}.init_barriers();
  __syncthreads();
  if (role == C::Consumers) {
    if constexpr (C::Consumers == 2) registers_shrink<40>();
    if constexpr (C::Consumers >= 3) registers_shrink<32>();
    if (produces) {
      const ForwardShared<C> shared{base + pair * C::PairBytes};
      Producer<C>{p, maps, shared, pair}.run(schedule);
    }
  } else {
    if constexpr (C::Consumers == 2) registers_grow<232>();
    if constexpr (C::Consumers == 3) registers_grow<160>();
    if constexpr (C::Consumers == 4) registers_grow<112>();
    const int group = C::Pairs == 1 ? role : role % C::Groups;
    const ForwardShared<C> shared{C::Pairs == 1 ? base : base + role / C::Groups * C::PairBytes};
    Consumer<C> consumer(p, shared, group, 1 + role);
    consumer.run();
    constexpr int warps = C::Consumers * 4;
    clear_output_from<typename C::T, C::D>(p.a, clamp_int(p.a.cu_q[p.a.B], 0, p.a.rows_q),
                                           blockIdx.x * warps + threadIdx.x / 32, gridDim.x * warps);
  }
}

// ---- host ---------------------------------------------------------------------------------------------------------

inline fa_status make_forward_maps(fa_ctx *ctx, const fa_attention_args &a, int keys, ForwardMaps *maps) {
  const int64_t columns = static_cast<int64_t>(a.H) * a.D;
  FA_TRY(make_tensor_map(ctx, &maps->q, a.q, a.rows_q, columns, a.q_stride, 64, a.dtype));
  FA_TRY(make_tensor_map(ctx, &maps->q_small, a.q, a.rows_q, columns, a.q_stride, kSmallBox, a.dtype));
  if (a.rows_k == 0) {  // never read
    maps->k = maps->k_small = maps->v = maps->v_small = maps->q;
    return FA_OK;
  }
  FA_TRY(make_tensor_map(ctx, &maps->k, a.k, a.rows_k, columns, a.k_stride, keys, a.dtype));
  FA_TRY(make_tensor_map(ctx, &maps->k_small, a.k, a.rows_k, columns, a.k_stride, kSmallBox, a.dtype));
  FA_TRY(make_tensor_map(ctx, &maps->v, a.v, a.rows_k, columns, a.v_stride, keys, a.dtype));
  return make_tensor_map(ctx, &maps->v_small, a.v, a.rows_k, columns, a.v_stride, kSmallBox, a.dtype);
}

// Tiles under a causal mask differ in length. In what order, and whether blocks take them as they come (which costs the
// clearing of a counter) or by a fixed share.
struct Order {
  int64_t head_group;
  bool by_turns;
};

constexpr int64_t kForwardWorkspaceBytes = 256;  // the counter
inline bool may_take_turns(const fa_attention_args &a) { return a.causal && a.max_k >= 1536; }

inline Order choose_order(const fa_ctx *ctx, const fa_attention_args &a, int64_t heads, int64_t tiles_per_head,
                          int pairs) {
  if (!a.causal) return {1, false};
  const int64_t head_bytes = static_cast<int64_t>(a.max_k) * a.D * 4 + 1;  // K and V
  const int64_t fitting = std::max<int64_t>(1, ctx->l2_bytes / 2 / head_bytes);
  if (heads <= fitting) return {heads, false};
  // A forward and a backward round over whole heads even out.
  if (tiles_per_head % 2 == 0 && 2 * tiles_per_head <= ctx->sm_count) return {1, false};
  if (pairs > 1 || !may_take_turns(a)) return {fitting, false};
  return {std::min<int64_t>(4, std::max<int64_t>(1, fitting / 2)), true};
}

template <class C>
fa_status launch_forward(fa_ctx *ctx, const fa_attention_args &a) {
  if (a.rows_q == 0) return FA_OK;
  ForwardMaps maps;
  FA_TRY(make_forward_maps(ctx, a, C::Keys, &maps));
  const int64_t tiles_per_head = ceil_div(a.max_q, C::Rows), tiles = heads_of(a) * tiles_per_head;
  FA_TRY(check_grid(ctx, tiles));
  const int64_t most = ctx->sm_count;
  const unsigned grid = static_cast<unsigned>(std::max<int64_t>(1, std::min(most, ceil_div(tiles, C::Pairs))));
  const int64_t heads = std::max<int64_t>(heads_of(a), 1);
  const Order order = choose_order(ctx, a, heads, tiles_per_head, C::Pairs);
  const int64_t head_group = std::min(order.head_group, heads);
  ForwardSchedule schedule;
  schedule.tiles = static_cast<int>(tiles);
  schedule.rounds = static_cast<int>(ceil_div(tiles, static_cast<int64_t>(grid) * C::Pairs));
  schedule.tiles_per_head = static_cast<int>(std::max<int64_t>(tiles_per_head, 1));
  schedule.head_group = static_cast<int>(head_group);
  schedule.heads = static_cast<int>(heads);
  schedule.taken = nullptr;
  if (order.by_turns && a.workspace != nullptr && a.workspace_bytes >= kForwardWorkspaceBytes) {
    schedule.taken = static_cast<uint32_t *>(a.workspace);
    FA_TRY(FA_CUDA(ctx, cudaMemsetAsync(schedule.taken, 0, sizeof(uint32_t), ctx->stream)));
  }
  schedule.by_group = Divisor(head_group * schedule.tiles_per_head);
  schedule.by_head_group = Divisor(head_group);
  schedule.by_last_group = Divisor(std::max<int64_t>(heads % head_group, 1));
  schedule.by_h = Divisor(a.H);
  FA_TRY(allow_shared(ctx, hopper_forward_kernel<C>, C::SharedBytes));
  hopper_forward_kernel<C><<<grid, C::Threads, C::SharedBytes, ctx->stream>>>(make_problem(a), maps, schedule);
  return FA_LAUNCHED(ctx, "hopper_forward_kernel");
}

}  // namespace fa::hopper

#endif
