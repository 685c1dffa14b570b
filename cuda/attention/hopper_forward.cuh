// The forward kernel on Hopper. Blocks stay and take tiles in turn: a producer thread keeps a ring of K and V tiles and the
// next Q full by TMA; each consumer warpgroup owns 64 query rows, holds S, P and O in registers and walks the keys from the
// last to the first, so that only its first steps test masks.
//
// With two score buffers, the products of step t + 1 (S' = Q K'^T) and of step t - 1 (O += P V) are in flight while the
// softmax of step t runs: the softmax never waits for the tensor cores unless they are behind. With one, a warpgroup waits
// for its products and others fill the time.
//
// The row maximum is taken in the first step of a tile and in steps with masked scores alone. Softmax needs no more than a
// reference m per row that keeps 2^(s - m) in range, so a later step goes by the reference it finds and looks at the sum of
// its exponentials: where that has left the range, the step is done again from its scores, which are still there, with
// their maximum. The result is the same; a quarter of the work of nearly every step is gone. Where a maximum is taken, the
// reference moves only if that has grown by more than 8 (base 2), so that O is seldom rescaled.
#ifndef FLASHATTN_HOPPER_FORWARD_CUH
#define FLASHATTN_HOPPER_FORWARD_CUH

#include "hopper_primitives.cuh"
#include "hopper_tensor_map.cuh"
#include "hopper_wgmma.cuh"
#include <algorithm>

#include "problem.cuh"

namespace fa::hopper {

constexpr float kNoMaximum = -1e30f;  // reference of a row that has seen no key
constexpr float kMaximumSlack = 8.0f;

// Largest sum of a thread's exponentials of a step that is taken as it is: well inside the range of P's type.
template <class T>
constexpr float kSumLimit = std::is_same_v<T, __half> ? 32768.0f : 16777216.0f;

constexpr int kSmallBox = 16;  // rows of a box where less than a whole tile exists

// Pairs: teams of a producer warp and its consumers in a block; they share nothing. Groups: consumer warpgroups of a pair,
// 64 query rows each. Keys: keys of a step. Stages, QStages: depth of the K/V ring, Q
// tiles. Blocks: blocks per multiprocessor. PolyShare: of 8 exponentials, how many are polynomials rather than the special
// unit's.
template <class T_, int D_, int Pairs_, int Groups_, int Keys_, int Stages_, int QStages_, int Blocks_, bool TwoScores_,
          int PolyShare_, bool Dropout_>
struct ForwardConfig {
  using T = T_;
  static constexpr int D = D_, Pairs = Pairs_, Groups = Groups_, Keys = Keys_, Stages = Stages_, QStages = QStages_, Blocks = Blocks_;
  static constexpr bool TwoScores = TwoScores_, Dropout = Dropout_;
  static constexpr int PolyShare = PolyShare_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Rows = 64 * Groups;
  static constexpr int Consumers = Pairs * Groups;  // warpgroups of a block
  static constexpr int ProducerThreads = Consumers == 1 ? 32 : 128;
  static constexpr int Threads = Consumers * 128 + ProducerThreads;
  static constexpr int QGroupBytes = 64 * kRowBytes * Panels;
  static constexpr int QBytes = QGroupBytes * Groups;
  static constexpr int TilePanelBytes = Keys * kRowBytes;
  static constexpr int TileBytes = TilePanelBytes * Panels;
  static constexpr int Barriers = 4 * Stages + 2 * QStages;
  static constexpr int KOffset = QStages * QBytes, VOffset = KOffset + Stages * TileBytes;
  static constexpr int BarrierOffset = VOffset + Stages * TileBytes, InfoOffset = BarrierOffset + 256;
  static constexpr int NoteOffset = InfoOffset + QStages * 32;
  static constexpr int PairBytes = (NoteOffset + 32 * 48 + 1023) / 1024 * 1024;
  static constexpr int SharedBytes = Pairs * PairBytes + 1024;  // 1024: room to align
  static_assert(Pairs <= 4, "the producer warpgroup has a warp for each pair");
  static_assert(Barriers * 8 <= 256 && Keys % 16 == 0 && D % kPanelColumns == 0);
  static_assert(!Dropout || Keys % 32 == 0, "a dropout call serves 32 keys");
};

struct ForwardMaps {
  CUtensorMap q, q_small, k, k_small, v, v_small;
};

// Division of 0 .. 2^31 - 1 by a number known to the host: a multiplication and a shift (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t multiplier = 0, shift = 0;
  Divisor() = default;
  explicit Divisor(int64_t d) {
    while ((int64_t{1} << shift) < d) shift++;
    multiplier = static_cast<uint32_t>(((int64_t{1} << 32) * ((int64_t{1} << shift) - d)) / d + 1);
  }
  __device__ __forceinline__ int divide(int n) const {
    return static_cast<int>((__umulhi(multiplier, n) + static_cast<uint32_t>(n)) >> shift);
  }
};

// Tiles in the order they are taken: heads in groups of `head_group` (whose K and V stay in L2), in a group the last rows
// of every head first: under a causal mask the longest tiles.
struct ForwardSchedule {
  int tiles, rounds, tiles_per_head, head_group, heads;
  uint32_t *taken;  // tiles handed out so far; NULL: each pair has its tiles from the start
  Divisor by_group, by_head_group, by_last_group, by_h;  // tiles of a group, heads of one, of the last one, H
};

// What a consumer must know of a tile; the producer leaves it beside Q.
struct alignas(16) TileInfo {
  int row;     // first query row in the tensor
  int rows;    // that exist
  int h;       // head
  int blocks;  // steps over the keys; < 0: no more tiles
  int first;   // first query row in the sequence
  int keys;    // that count
  int shift;   // query i sees keys j <= i + shift; large without a causal mask
  int head;    // b * H + h
};

__device__ __forceinline__ int2 find_tile(const ForwardSchedule &s, int index) {  // {head, tile of the head}
  const int group = s.by_group.divide(index), first_head = group * s.head_group;
  const int rest = index - first_head * s.tiles_per_head;
  const bool last = first_head + s.head_group > s.heads;
  const int heads = last ? s.heads - first_head : s.head_group;
  const int tile = last ? s.by_last_group.divide(rest) : s.by_head_group.divide(rest);
  return make_int2(first_head + rest - tile * heads, s.tiles_per_head - 1 - tile);
}

// Round r of pair `pair`: every second round runs backwards, so that no pair always gets the longer tiles.
template <int Pairs>
__device__ __forceinline__ int tile_index(int pair, int round) {
  const int all = gridDim.x * Pairs, mine = pair * gridDim.x + blockIdx.x;
  return round * all + ((round & 1) ? all - 1 - mine : mine);
}

// Keys that queries first .. last see, of `keys`.
__device__ __forceinline__ int keys_until(const TileInfo &info, int last) {
  return max(min(info.keys, last + info.shift + 1), 0);
}

__device__ __forceinline__ TileInfo read_info(uint32_t address) {
  const uint4 a = load_shared16(address), b = load_shared16(address + 16);
  return TileInfo{static_cast<int>(a.x), static_cast<int>(a.y), static_cast<int>(a.z), static_cast<int>(a.w),
                  static_cast<int>(b.x), static_cast<int>(b.y), static_cast<int>(b.z), static_cast<int>(b.w)};
}

// Tile number `index`; false: it has no rows. k0: first key row in the tensor.
template <int Rows, int Keys>
__device__ __forceinline__ bool find_info(const Problem &p, const ForwardSchedule &schedule, int index, TileInfo &info,
                                          int &k0) {
  if (index >= schedule.tiles) return false;
  const int2 tile = find_tile(schedule, index);
  const int b = schedule.by_h.divide(tile.x);
  const Sequence s = find_sequence(p.a, b);
  info.first = tile.y * Rows;
  if (info.first >= s.nq) return false;
  info.row = s.q0 + info.first;
  info.rows = min(Rows, s.nq - info.first);
  info.h = tile.x - b * p.a.H;
  info.head = tile.x;
  info.keys = s.keys;
  info.shift = p.a.causal ? s.shift : INT32_MAX / 2;
  info.blocks = (keys_until(info, info.first + info.rows - 1) + Keys - 1) / Keys;
  k0 = s.k0;
  return true;
}

// `rows` rows (1 to Full) at (column, row) by one whole box or as many small ones as hold them.
template <int Full, int Panels>
__device__ __forceinline__ int box_bytes(int rows) {
  return Panels * kRowBytes * (rows > Full - kSmallBox ? Full : (rows + kSmallBox - 1) / kSmallBox * kSmallBox);
}
template <int Full, int Panels>
__device__ __forceinline__ void load_rows(uint32_t destination, const CUtensorMap *whole, const CUtensorMap *small,
                                          int column, int row, int rows, uint32_t barrier, uint64_t policy) {
#pragma unroll
  for (int panel = 0; panel < Panels; panel++) {
    const uint32_t to = destination + panel * Full * kRowBytes;
    const int from = column + panel * kPanelColumns;
    if (rows > Full - kSmallBox) {
      load_box(to, whole, from, row, barrier, policy);
    } else {
#pragma unroll 1
      for (int r = 0; r < rows; r += kSmallBox) load_box(to + r * kRowBytes, small, from, row + r, barrier, policy);
    }
  }
}

// Position in a ring of `Depth` slots, and the parity of its present use.
template <int Depth>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == Depth) {
      slot = 0;
      parity ^= 1;
    }
  }
  // Tells the compiler that the warp agrees, after a loop or branch of whose condition it cannot know that.
  __device__ __forceinline__ void settle() {
    slot = uniform(slot);
    parity = uniform(parity);
  }
  __device__ __forceinline__ int slot_before() const { return slot == 0 ? Depth - 1 : slot - 1; }
};

// Shared memory of a pair, as addresses.
template <class C>
struct ForwardShared {
  uint32_t base;
  __device__ __forceinline__ uint32_t q(int slot) const { return base + slot * C::QBytes; }
  __device__ __forceinline__ uint32_t k(int slot) const { return base + C::KOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t v(int slot) const { return base + C::VOffset + slot * C::TileBytes; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + C::BarrierOffset + i * 8; }
  __device__ __forceinline__ uint32_t k_full(int slot) const { return barrier(slot); }
  __device__ __forceinline__ uint32_t k_empty(int slot) const { return barrier(C::Stages + slot); }
  __device__ __forceinline__ uint32_t v_full(int slot) const { return barrier(2 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t v_empty(int slot) const { return barrier(3 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t q_full(int slot) const { return barrier(4 * C::Stages + slot); }
  __device__ __forceinline__ uint32_t q_empty(int slot) const { return barrier(4 * C::Stages + C::QStages + slot); }
  __device__ __forceinline__ uint32_t info(int slot) const { return base + C::InfoOffset + slot * 32; }
  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(k_full(i), 1);
      barrier_init(v_full(i), 1);
      barrier_init(k_empty(i), 4 * C::Groups);
      barrier_init(v_empty(i), 4 * C::Groups);
    }
    for (int i = 0; i < C::QStages; i++) {
      barrier_init(q_full(i), 1);
      barrier_init(q_empty(i), 4 * C::Groups);
    }
    barrier_init_fence();
  }
  __device__ __forceinline__ uint32_t noted(int lane) const { return base + C::NoteOffset + lane * 48; }
};

// ---- producer: one warp ----------------------------------------------------------------------------------------------

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
  const bool kv_again;  // K and V are read by several tiles
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
                               info.row + r, min(64, info.rows - r), full, kEvictFirst);
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
    const uint64_t kv_policy = kv_again ? kEvictLast : kEvictFirst;
#pragma unroll 1
    for (int n = info.blocks - 1; n >= 0; n--) {
      const int rows = min(C::Keys, info.keys - n * C::Keys), row = k0 + n * C::Keys;
      const int bytes = box_bytes<C::Keys, C::Panels>(rows);
      barrier_wait(shared.k_empty(kv.slot), kv.parity ^ 1);
      barrier_arrive_expect(shared.k_full(kv.slot), bytes);
      load_rows<C::Keys, C::Panels>(shared.k(kv.slot), &maps.k, &maps.k_small, info.h * C::D, row, rows,
                                    shared.k_full(kv.slot), kv_policy);
      barrier_wait(shared.v_empty(kv.slot), kv.parity ^ 1);
      barrier_arrive_expect(shared.v_full(kv.slot), bytes);
      load_rows<C::Keys, C::Panels>(shared.v(kv.slot), &maps.v, &maps.v_small, info.h * C::D, row, rows,
                                    shared.v_full(kv.slot), kv_policy);
      kv.next();
    }
  }

  // The tiles of 32 rounds at a time: found by all lanes, loaded in order by lane 0. Where tiles are handed out as blocks
  // come for them, lane 0 takes one at a time.
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

// ---- consumer: one warpgroup ----------------------------------------------------------------------------------------

// 2^x for x <= 8 on the arithmetic units: relative error 1e-4, not below 2^-125.
__device__ __forceinline__ float exp2_polynomial(float x) {
  x = fmaxf(x, -125.0f);
  const float shifted = x + 12582912.0f;  // 1.5 * 2^23: the nearest integer lands in the low bits
  const float f = x - (shifted - 12582912.0f);
  const float y = fmaf(fmaf(fmaf(0.05517157f, f, 0.24261111f), f, 0.69326100f), f, 0.99992807f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}

// State of the two rows of a thread.
struct SoftmaxRows {
  float reference[2];  // in units of log2
  float sum[2];        // this thread's share
  float rescale[2];
};

template <int Keys>
__device__ __forceinline__ void mask_scores(float (&s)[Keys / 2], int limit0, int limit1) {
#pragma unroll
  for (int j = 0; j < Keys / 8; j++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      if (8 * j + c >= limit0) s[4 * j + c] = -INFINITY;
      if (8 * j + c >= limit1) s[4 * j + 2 + c] = -INFINITY;
    }
  }
}

// Moves the references up where a row's maximum asks for it. True (for the whole warp): O must be rescaled.
template <int Keys>
__device__ __forceinline__ bool update_reference(const float (&s)[Keys / 2], SoftmaxRows &rows, float scale_log2) {
  float top[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float chain[4] = {s[2 * r], s[2 * r + 1], s[4 + 2 * r], s[5 + 2 * r]};
#pragma unroll
    for (int j = 2; j < Keys / 8; j++) {
#pragma unroll
      for (int c = 0; c < 2; c++) chain[j % 2 * 2 + c] = fmaxf(chain[j % 2 * 2 + c], s[4 * j + 2 * r + c]);
    }
    top[r] = fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2)) * scale_log2;
  }
  const bool grown = top[0] > rows.reference[0] + kMaximumSlack || top[1] > rows.reference[1] + kMaximumSlack;
  if (!__any_sync(0xffffffffu, grown)) return false;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float reference = fmaxf(rows.reference[r], top[r]);
    rows.rescale[r] = exp2_fast(rows.reference[r] - reference);
    rows.reference[r] = reference;
    rows.sum[r] *= rows.rescale[r];
  }
  return true;
}

// p = 2^(s * scale - reference), packed; sums: those of the exponentials per row. `dropout` zeros what it drops of p, not
// of the sums; the scale of what is kept is applied to O at the end. `row`: the thread's first row in the sequence,
// `column`: its first key of this step, with dropout a multiple of 32 plus 0 to 6.
template <class C, int Keys>
__device__ __forceinline__ void exponentials(const float (&s)[Keys / 2], uint32_t (&p)[Keys / 4], float (&sums)[2],
                                             const SoftmaxRows &rows, float scale_log2, const Dropout &dropout, int row,
                                             int column, int head) {
  float partial[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  uint4 words[2];
#pragma unroll
  for (int j = 0; j < Keys / 8; j++) {
    if constexpr (C::Dropout) {
      if (j % 4 == 0) {
        words[0] = dropout.score_group(row, column + 8 * j, head);
        words[1] = dropout.score_group(row, column + 8 * j + 1, head);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float e[2];
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const float x = fmaf(s[4 * j + 2 * r + c], scale_log2, -rows.reference[r]);
        const bool polynomial = C::PolyShare > 0 && (j * 2 + c) % 8 >= 8 - C::PolyShare;
        e[c] = polynomial ? exp2_polynomial(x) : exp2_fast(x);
        partial[r][c] += e[c];
        if constexpr (C::Dropout) {
          if (!dropout.keep(words[c], 4 * r + j % 4)) e[c] = 0.0f;
        }
      }
      p[2 * j + r] = pack2<typename C::T>(e[0], e[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) sums[r] = partial[r][0] + partial[r][1];
}

template <class C>
struct Consumer {
  using T = typename C::T;
  static constexpr bool kSkipIdle = C::Groups == 1;  // warps without rows leave the issue slots to others

  const Problem &p;
  const ForwardShared<C> &shared;
  const int group, sync_id;  // warpgroup of the pair, its named barrier
  const int warp, lane;      // warp of the warpgroup
  Ring<C::Stages> kv;  // of the step whose scores were started last
  float o[C::D / 2];
  SoftmaxRows rows;
  uint64_t q_descriptor;
  // of the tile at hand
  int keys;       // that count
  uint32_t info_address;
  int unmasked;   // keys that all rows of the warpgroup see
  bool idle;      // the warp's rows do not exist
  int first_row;  // of the thread, in the sequence; `head` with it: for dropout
  int head;
  Dropout dropout;

  __device__ __forceinline__ Consumer(const Problem &p, const ForwardShared<C> &shared, int group, int sync_id)
      : p(p), shared(shared), group(group), sync_id(sync_id), warp(uniform(threadIdx.x / 32 % 4)), lane(threadIdx.x % 32), dropout(p.dropout) {}

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
  __device__ __forceinline__ bool softmax(float (&s)[Keys / 2], uint32_t (&probability)[Keys / 4], int block, bool first) {
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

  // Step `block`, whose scores are on their way to `s`: starts the next scores, does the softmax, starts O += P V.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&s)[C::Keys / 2], float (&next)[C::Keys / 2],
                                       uint32_t (&probability)[C::Keys / 4], int block, bool first) {
    const Ring<C::Stages> here = kv;
    kv.next();
    if constexpr (HasNext) {
      start_scores<C::Keys>(next);
      product_wait<2>();
    } else {
      product_wait<1>();
    }
    keep(s);
    keep(probability);  // of two steps before: read by a product until here
    release(shared.k_empty(here.slot));
    const bool rescale = softmax<C::Keys>(s, probability, block, first);
    product_wait<HasNext ? 1 : 0>();
    keep(o);
    if (!first) release(shared.v_empty(here.slot_before()));
    if (rescale) rescale_output();
    start_output<C::Keys>(probability, here);
  }

  __device__ __forceinline__ void finish_output() {
    product_wait<0>();
    keep(o);
    release(shared.v_empty(kv.slot_before()));
  }

  // All steps of a tile, blocks - 1 down to 0, with two score buffers.
  __device__ __forceinline__ void walk_two(int blocks) {
    float s0[C::Keys / 2], s1[C::Keys / 2];
    uint32_t p0[C::Keys / 4] = {}, p1[C::Keys / 4] = {};
    keep(o);  // zeroed before the first product is on its way
    start_scores<C::Keys>(s0);
    product_commit();  // stands for the output of a step before the first
    complete_values(kv, blocks - 1, C::Keys);
    int block = blocks - 1;
    for (; block >= 2; block -= 2) {
      step<true>(s0, s1, p0, block, block == blocks - 1);
      step<true>(s1, s0, p1, block - 1, false);
    }
    if (block == 1) {
      step<true>(s0, s1, p0, 1, blocks == 2);
      step<false>(s1, s0, p1, 0, false);
    } else {
      step<false>(s0, s1, p0, 0, blocks == 1);
    }
    finish_output();
    keep(p0);
    keep(p1);
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

  // All steps of a tile with one score buffer: the products of a warpgroup do not overlap its softmax. `seen`: keys that
  // the warpgroup's last row sees.
  __device__ __forceinline__ void walk_one(int blocks, int seen) {
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
    __syncwarp();
    release(shared.q_empty(slot));
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
      store_matrices(address, pack2<T>(x[0] * factor[0], x[1] * factor[0]), pack2<T>(x[2] * factor[1], x[3] * factor[1]),
                     pack2<T>(x[4] * factor[0], x[5] * factor[0]), pack2<T>(x[6] * factor[1], x[7] * factor[1]));
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
        *reinterpret_cast<uint4 *>(out + row * p.a.out_stride + i / 4 * kPanelColumns + chunk * 8) = x[i];
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
      if constexpr (C::TwoScores) {
        walk_two(blocks);
      } else {
        walk_one(blocks, seen);
      }
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

// Rows of no sequence: out 0, lse -inf. All consumer threads of all blocks.
template <class T, int D>
__device__ __forceinline__ void clear_rows_of_no_sequence(const fa_attention_args &a, int thread, int threads) {
  const int begin = clamp_int(a.cu_q[a.B], 0, a.rows_q), lane = thread % 32;
  const int warp = blockIdx.x * (threads / 32) + thread / 32, warps = gridDim.x * (threads / 32);
  for (int row = begin + warp; row < a.rows_q; row += warps) {
    T *out = head_row<T>(a.out, row, a.out_stride, 0, D);
    for (int i = lane; i < a.H * D / 8; i += 32) reinterpret_cast<uint4 *>(out)[i] = make_uint4(0, 0, 0, 0);
    for (int h = lane; h < a.H; h += 32) a.lse[static_cast<int64_t>(h) * a.rows_q + row] = -INFINITY;
  }
}

// Fetches the parameters into the constant cache, a line a warp, so that their first uses do not wait one after another.
__device__ __forceinline__ void touch_parameters(const Problem &p, const ForwardSchedule &schedule) {
  constexpr int kLine = 16;  // words
  const int word = threadIdx.x / 32 * kLine;
  if (word < static_cast<int>(sizeof(Problem) / 4)) {
    asm volatile("" ::"r"(reinterpret_cast<const uint32_t *>(&p)[word]));
  }
  asm volatile("" ::"r"(schedule.tiles));
}

template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
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
      Producer<C>{p, maps, shared, pair, schedule.tiles_per_head > 1}.run(schedule);
    }
  } else {
    if constexpr (C::Consumers == 2) registers_grow<232>();
    if constexpr (C::Consumers == 3) registers_grow<160>();
    if constexpr (C::Consumers == 4) registers_grow<112>();
    const int group = C::Pairs == 1 ? role : role % C::Groups;
    const ForwardShared<C> shared{C::Pairs == 1 ? base : base + role / C::Groups * C::PairBytes};
    Consumer<C> consumer(p, shared, group, 1 + role);
    consumer.run();
    clear_rows_of_no_sequence<typename C::T, C::D>(p.a, threadIdx.x, C::Consumers * 128);
  }
}

// ---- host ------------------------------------------------------------------------------------------------------------

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

inline Order choose_order(const fa_ctx *ctx, const fa_attention_args &a, int64_t heads, int64_t tiles_per_head, int pairs) {
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
  const int64_t most = static_cast<int64_t>(ctx->sm_count) * C::Blocks;
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
