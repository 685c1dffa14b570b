// The forward kernel on Hopper. Blocks stay and take tiles in turn: a producer thread keeps a ring of K and V tiles and the
// next Q full by TMA; each consumer warpgroup owns 64 query rows, holds S, P and O in registers and walks the keys from the
// last to the first, so that only its first steps test masks.
//
// Within a warpgroup the products of step t + 1 (S' = Q K'^T) and of step t - 1 (O += P V) are in flight while the softmax of
// step t runs: the softmax never waits for the tensor cores unless they are behind.
//
// The running maximum is lazy: a row's reference m follows the true maximum only where that has grown by more than 8 (base
// 2). P is at most 2^8 then, the result is the same, and the rescaling of O is left out of nearly every step.
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
constexpr int kSmallBox = 16;  // rows of a box where less than a whole tile exists

// Groups: consumer warpgroups, 64 query rows each. Keys: keys of a step. Stages, QStages: depth of the K/V ring, Q tiles.
// Blocks: blocks per multiprocessor. PolyShare: of 8 exponentials, how many are polynomials rather than the special unit's.
template <class T_, int D_, int Groups_, int Keys_, int Stages_, int QStages_, int Blocks_, bool TwoScores_,
          int PolyShare_, bool Dropout_>
struct ForwardConfig {
  using T = T_;
  static constexpr int D = D_, Groups = Groups_, Keys = Keys_, Stages = Stages_, QStages = QStages_, Blocks = Blocks_;
  static constexpr bool TwoScores = TwoScores_, Dropout = Dropout_;
  static constexpr int PolyShare = PolyShare_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Rows = 64 * Groups;
  static constexpr int ProducerThreads = Groups == 1 ? 32 : 128;
  static constexpr int Threads = Groups * 128 + ProducerThreads;
  static constexpr int QGroupBytes = 64 * kRowBytes * Panels;
  static constexpr int QBytes = QGroupBytes * Groups;
  static constexpr int TilePanelBytes = Keys * kRowBytes;
  static constexpr int TileBytes = TilePanelBytes * Panels;
  static constexpr int Barriers = 4 * Stages + 2 * QStages;
  static constexpr int KOffset = QStages * QBytes, VOffset = KOffset + Stages * TileBytes;
  static constexpr int BarrierOffset = VOffset + Stages * TileBytes, InfoOffset = BarrierOffset + 256;
  static constexpr int NoteOffset = InfoOffset + QStages * 32, SharedBytes = NoteOffset + 32 * 48 + 1024;  // 1024: room to align
  static_assert(Barriers * 8 <= 256 && Keys % 16 == 0 && D % kPanelColumns == 0);
  static_assert(!Dropout || Keys % 32 == 0, "a dropout call serves 32 keys");
};

struct ForwardMaps {
  CUtensorMap q, q_small, k, k_small, v, v_small;
};

// Tiles in the order they are taken: heads in groups of `head_group` (whose K and V stay in L2), in a group the tile of
// the last rows of every head first: under a causal mask the longest first.
struct ForwardSchedule {
  int tiles, tiles_per_head, head_group, heads;
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
  const int group_tiles = s.head_group * s.tiles_per_head;
  const int group = index / group_tiles, rest = index - group * group_tiles;
  const int group_heads = min(s.head_group, s.heads - group * s.head_group);
  const int tile = rest / group_heads;
  return make_int2(group * s.head_group + rest - tile * group_heads, s.tiles_per_head - 1 - tile);
}

// Round r of a block: every second round runs backwards, so that no block always gets the longer tiles.
__device__ __forceinline__ int tile_index(int round) {
  const int grid = gridDim.x, block = blockIdx.x;
  return round * grid + ((round & 1) ? grid - 1 - block : block);
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

// The tile of a round; false: it has no rows. k0: first key row in the tensor.
template <int Rows, int Keys>
__device__ __forceinline__ bool find_info(const Problem &p, const ForwardSchedule &schedule, int round, TileInfo &info,
                                          int &k0) {
  const int index = tile_index(round);
  if (index >= schedule.tiles) return false;
  const int2 tile = find_tile(schedule, index);
  const int b = tile.x / p.a.H;
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
  __device__ __forceinline__ int slot_before() const { return slot == 0 ? Depth - 1 : slot - 1; }
};

// Shared memory of a block, as addresses.
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
  __device__ __forceinline__ uint32_t noted(int lane) const { return base + C::NoteOffset + lane * 48; }
};

// ---- producer: one warp ----------------------------------------------------------------------------------------------

template <class C>
struct Producer {
  const Problem &p;
  const ForwardMaps &maps;
  const ForwardShared<C> &shared;
  const uint64_t kv_policy;
  Ring<C::QStages> q;
  Ring<C::Stages> kv;

  __device__ __forceinline__ void load_queries(const TileInfo &info) {
    const uint32_t full = shared.q_full(q.slot);
    if (info.blocks == 0) {
      barrier_arrive(full);
      return;
    }
    int bytes = 0;
    for (int r = 0; r < info.rows; r += 64) bytes += box_bytes<64, C::Panels>(min(64, info.rows - r));
    barrier_arrive_expect(full, bytes);
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

  // Each lane finds the tile of one of the next 32 rounds; lane 0 loads them in order.
  __device__ __forceinline__ void run(const ForwardSchedule &schedule) {
    const int lane = threadIdx.x % 32, rounds = (schedule.tiles + gridDim.x - 1) / gridDim.x;
    for (int first = 0; first < rounds; first += 32) {
      const bool exists = first + lane < rounds && note_tile(schedule, first + lane, shared.noted(lane));
      uint32_t left = __ballot_sync(0xffffffffu, exists);
      if (lane == 0) {
        for (; left != 0; left &= left - 1) load_tile(shared.noted(__ffs(left) - 1));
      }
      __syncwarp();
    }
    if (lane == 0) {
      barrier_wait(shared.q_empty(q.slot), q.parity ^ 1);
      store_shared16(shared.info(q.slot), make_uint4(0, 0, 0, static_cast<uint32_t>(-1)));
      barrier_arrive(shared.q_full(q.slot));
    }
  }

  __device__ __forceinline__ bool note_tile(const ForwardSchedule &schedule, int round, uint32_t note) const {
    TileInfo info;
    int k0;
    if (!find_info<C::Rows, C::Keys>(p, schedule, round, info, k0)) return false;
    store_shared16(note, make_uint4(info.row, info.rows, info.h, info.blocks));
    store_shared16(note + 16, make_uint4(info.first, info.keys, info.shift, info.head));
    store_shared16(note + 32, make_uint4(k0, 0, 0, 0));
    return true;
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
    float a = fmaxf(s[2 * r], s[2 * r + 1]), b = fmaxf(s[4 + 2 * r], s[5 + 2 * r]);
#pragma unroll
    for (int j = 2; j < Keys / 8; j += 2) {
      a = fmaxf(a, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
      b = fmaxf(b, fmaxf(s[4 * j + 4 + 2 * r], s[4 * j + 5 + 2 * r]));
    }
    top[r] = fmaxf(a, b);
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

// s = 2^(s * scale - reference); adds to the sums.
template <int Keys, int PolyShare>
__device__ __forceinline__ void exponentials(float (&s)[Keys / 2], SoftmaxRows &rows, float scale_log2) {
  float sums[2][2] = {{rows.sum[0], 0.0f}, {rows.sum[1], 0.0f}};
#pragma unroll
  for (int i = 0; i < Keys / 2; i++) {
    const int r = (i >> 1) & 1;
    const float x = fmaf(s[i], scale_log2, -rows.reference[r]);
    const bool polynomial = PolyShare > 0 && ((i / 4 * 2 + (i & 1)) % 8) >= 8 - PolyShare;
    s[i] = polynomial ? exp2_polynomial(x) : exp2_fast(x);
    sums[r][i & 1] += s[i];
  }
  rows.sum[0] = sums[0][0] + sums[0][1];
  rows.sum[1] = sums[1][0] + sums[1][1];
}

// Zeros what is dropped; the scale of what is kept is applied to O at the end. `row`: the thread's first row in the
// sequence, `column`: its first key of this step, a multiple of 32 plus 0 to 6.
template <int Keys>
__device__ __forceinline__ void drop_scores(float (&s)[Keys / 2], const Dropout &dropout, int row, int column,
                                            int head) {
#pragma unroll
  for (int block = 0; block < Keys / 32; block++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const uint4 words = dropout.score_group(row, column + 32 * block + c, head);
#pragma unroll
      for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float &x = s[4 * (4 * block + j) + 2 * r + c];
          if (!dropout.keep(words, 4 * r + j)) x = 0.0f;
        }
      }
    }
  }
}

template <class C>
struct Consumer {
  using T = typename C::T;
  const Problem &p;
  const ForwardShared<C> &shared;
  const int group, warp, lane;  // warp of the warpgroup
  Ring<C::Stages> kv;  // of the step whose scores were started last
  float o[C::D / 2];
  uint32_t probabilities[C::Keys / 4];
  SoftmaxRows rows;
  uint64_t q_descriptor;
  // of the tile at hand
  int keys;       // that count
  int limit[2];   // keys the thread's rows see
  int unmasked;   // keys that all rows of the warpgroup see
  int first_row;  // of the thread, in the sequence; `head` with it: for dropout
  int head;
  Dropout dropout;

  __device__ __forceinline__ Consumer(const Problem &p, const ForwardShared<C> &shared, int group)
      : p(p), shared(shared), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32), dropout(p.dropout) {}

  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane == 0) barrier_arrive(barrier);
  }

  // s = Q K^T of the K tile at `kv`, as one group.
  __device__ __forceinline__ void start_scores(float (&s)[C::Keys / 2]) {
    barrier_wait(shared.k_full(kv.slot), kv.parity);
    const uint64_t b = descriptor_k_major(shared.k(kv.slot));
    float fresh[C::Keys / 2];  // not s: its old values must not seem to enter the product
    product_begin();
#pragma unroll
    for (int i = 0; i < C::D / 16; i++) {
      const int panel = i / 4, inside = i % 4 * 32;
      product_ss<T, C::Keys, 0, 0>(fresh, advance(q_descriptor, panel * 64 * kRowBytes + inside),
                                   advance(b, panel * C::TilePanelBytes + inside), i > 0);
    }
    product_commit();
#pragma unroll
    for (int i = 0; i < C::Keys / 2; i++) s[i] = fresh[i];
  }

  // O += P V, as one group.
  __device__ __forceinline__ void start_output(const Ring<C::Stages> &at) {
    barrier_wait(shared.v_full(at.slot), at.parity);
    const uint64_t b = descriptor_mn_major(shared.v(at.slot), C::TilePanelBytes);
    product_begin();
#pragma unroll
    for (int i = 0; i < C::Keys / 16; i++) {
      product_rs<T, C::D, 1>(o, probabilities[4 * i], probabilities[4 * i + 1], probabilities[4 * i + 2],
                             probabilities[4 * i + 3], advance(b, i * 16 * kRowBytes), 1);
    }
    product_commit();
  }

  // Rows of V past the last key hold what was there before: NaN times a probability of 0 would be NaN.
  __device__ __forceinline__ void clear_rows(uint32_t tile, int valid) const {
    for (int i = valid * 8 + threadIdx.x % 128; i < C::Keys * 8; i += 128) {
#pragma unroll
      for (int panel = 0; panel < C::Panels; panel++) {
        store_shared16(tile + panel * C::TilePanelBytes + i * 16, make_uint4(0, 0, 0, 0));
      }
    }
    fence_async_proxy();
    named_sync(1 + group, 128);
  }

  // Step `block` is the first: its V may be short of rows. Called while its scores are on their way.
  __device__ __forceinline__ void complete_values(const Ring<C::Stages> &at, int block) const {
    const int valid = keys - block * C::Keys;
    if (valid >= C::Keys) return;
    barrier_wait(shared.v_full(at.slot), at.parity);
    clear_rows(shared.v(at.slot), valid);
  }

  // Scores of step `block` to exponentials. True: O must be rescaled.
  __device__ __forceinline__ bool softmax(float (&s)[C::Keys / 2], int block) {
    const int column = block * C::Keys + lane % 4 * 2;
    if ((block + 1) * C::Keys > unmasked) mask_scores<C::Keys>(s, limit[0] - column, limit[1] - column);
    const bool rescale = update_reference<C::Keys>(s, rows, p.scale_log2);
    exponentials<C::Keys, C::PolyShare>(s, rows, p.scale_log2);
    if constexpr (C::Dropout) drop_scores<C::Keys>(s, dropout, first_row, column, head);
    return rescale;
  }

  __device__ __forceinline__ void rescale_output() {
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) o[i] *= rows.rescale[(i >> 1) & 1];
  }

  __device__ __forceinline__ void pack_probabilities(const float (&s)[C::Keys / 2]) {
#pragma unroll
    for (int i = 0; i < C::Keys / 4; i++) probabilities[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
  }

  // Step `block`, whose scores are on their way to `s`: starts the next scores, does the softmax, starts O += P V.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&s)[C::Keys / 2], float (&next)[C::Keys / 2], int block, bool first) {
    const Ring<C::Stages> here = kv;
    kv.next();
    if constexpr (HasNext) {
      start_scores(next);
      product_wait<2>();
    } else {
      product_wait<1>();
    }
    keep(s);
    release(shared.k_empty(here.slot));
    const bool rescale = softmax(s, block);
    product_wait<HasNext ? 1 : 0>();
    keep(o);
    keep(s);
    if (!first) release(shared.v_empty(here.slot_before()));
    if (rescale) rescale_output();
    pack_probabilities(s);
    start_output(here);
  }

  __device__ __forceinline__ void finish_output() {
    product_wait<0>();
    keep(o);
    release(shared.v_empty(kv.slot_before()));
  }

  // All steps of a tile, blocks - 1 down to 0, with two score buffers.
  __device__ __forceinline__ void walk_two(int blocks) {
    float s0[C::Keys / 2], s1[C::Keys / 2];
    keep(o);  // zeroed before the first product is on its way
    start_scores(s0);
    product_commit();  // stands for the output of a step before the first
    complete_values(kv, blocks - 1);
    int block = blocks - 1;
    for (; block >= 2; block -= 2) {
      step<true>(s0, s1, block, block == blocks - 1);
      step<true>(s1, s0, block - 1, false);
    }
    if (block == 1) {
      step<true>(s0, s1, 1, blocks == 2);
      step<false>(s1, s0, 0, false);
    } else {
      step<false>(s0, s1, 0, blocks == 1);
    }
    finish_output();
  }

  // The same with one score buffer: O += P V of the step before is behind the softmax, the scores are not.
  __device__ __forceinline__ void walk_one(int blocks) {
    float s[C::Keys / 2];
    keep(o);
    start_scores(s);
    complete_values(kv, blocks - 1);
    product_wait<0>();
    keep(s);
    release(shared.k_empty(kv.slot));
    softmax(s, blocks - 1);
    pack_probabilities(s);
    for (int block = blocks - 2; block >= 0; block--) {
      const Ring<C::Stages> before = kv;
      kv.next();
      start_scores(s);
      start_output(before);
      product_wait<1>();
      keep(s);
      release(shared.k_empty(kv.slot));
      const bool rescale = softmax(s, block);
      product_wait<0>();
      keep(o);
      keep(s);
      release(shared.v_empty(before.slot));
      if (rescale) rescale_output();
      pack_probabilities(s);
    }
    start_output(kv);
    kv.next();
    finish_output();
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
    const uint32_t q_tile = shared.q(slot) + group * C::QGroupBytes;
    const int existing = info.rows - group * 64;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = rows.sum[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const bool empty = rows.reference[r] <= kNoMaximum || !(sum != 0.0f);
      factor[r] = empty ? 0.0f : __frcp_rn(sum);
      if constexpr (C::Dropout) factor[r] *= dropout.scale;
      const int row = warp * 16 + lane / 4 + 8 * r;
      if (lane % 4 == 0 && row < existing) {
        const float lse = empty ? -INFINITY : (rows.reference[r] + log2f(sum)) * kLn2;
        p.a.lse[static_cast<int64_t>(info.h) * p.a.rows_q + info.row + group * 64 + row] = lse;
      }
    }
    named_sync(1 + group, 128);  // every warp is done with Q
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

  __device__ __forceinline__ void tile(int slot, const TileInfo &info) {
    const int existing = info.rows - group * 64;  // rows of this warpgroup that exist
    const int first = info.first + group * 64;
    const int blocks = existing <= 0 ? 0 : (keys_until(info, first + min(existing, 64) - 1) + C::Keys - 1) / C::Keys;
    keys = info.keys;
    head = info.head;
    first_row = first + warp * 16 + lane / 4;
    limit[0] = keys_until(info, first_row);
    limit[1] = keys_until(info, first_row + 8);
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
    const uint32_t q_tile = shared.q(slot) + group * C::QGroupBytes;
    if (blocks > 0) {
      q_descriptor = descriptor_k_major(q_tile);
      if constexpr (C::TwoScores) {
        walk_two(blocks);
      } else {
        walk_one(blocks);
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
      if (info.blocks < 0) return;
      tile(q.slot, info);
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

template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
    hopper_forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardMaps maps,
                          const ForwardSchedule schedule) {
  extern __shared__ char dynamic_shared[];
  const ForwardShared<C> shared{(shared_address(dynamic_shared) + 1023) & ~1023u};
  if (threadIdx.x == C::Threads - 32) {
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    prefetch_map(&maps.q_small);
    prefetch_map(&maps.k_small);
    prefetch_map(&maps.v_small);
  }
  const int role = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::Stages; i++) {
      barrier_init(shared.k_full(i), 1);
      barrier_init(shared.v_full(i), 1);
      barrier_init(shared.k_empty(i), 4 * C::Groups);
      barrier_init(shared.v_empty(i), 4 * C::Groups);
    }
    for (int i = 0; i < C::QStages; i++) {
      barrier_init(shared.q_full(i), 1);
      barrier_init(shared.q_empty(i), 4 * C::Groups);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (role == C::Groups) {
    if constexpr (C::Groups == 2) registers_shrink<40>();
    if constexpr (C::Groups == 3) registers_shrink<32>();
    if (threadIdx.x < C::Groups * 128 + 32) {
      Producer<C>{p, maps, shared, schedule.tiles_per_head > 1 ? kEvictLast : kEvictFirst}.run(schedule);
    }
  } else {
    if constexpr (C::Groups == 2) registers_grow<232>();
    if constexpr (C::Groups == 3) registers_grow<160>();
    Consumer<C> consumer(p, shared, role);
    consumer.run();
    clear_rows_of_no_sequence<typename C::T, C::D>(p.a, threadIdx.x, C::Groups * 128);
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

template <class C>
fa_status launch_forward(fa_ctx *ctx, const fa_attention_args &a) {
  if (a.rows_q == 0) return FA_OK;
  ForwardMaps maps;
  FA_TRY(make_forward_maps(ctx, a, C::Keys, &maps));
  const int64_t tiles_per_head = ceil_div(a.max_q, C::Rows), tiles = heads_of(a) * tiles_per_head;
  FA_TRY(check_grid(ctx, tiles));
  // Under a causal mask, as many heads together as fit half of L2 with K and V.
  const int64_t head_bytes = static_cast<int64_t>(a.max_k) * a.D * 4 + 1;
  const int64_t together = a.causal ? std::max<int64_t>(1, ctx->l2_bytes / 2 / head_bytes) : 1;
  const ForwardSchedule schedule{static_cast<int>(tiles), static_cast<int>(std::max<int64_t>(tiles_per_head, 1)),
                                 static_cast<int>(std::min<int64_t>(together, std::max<int64_t>(heads_of(a), 1))),
                                 static_cast<int>(heads_of(a))};
  FA_TRY(allow_shared(ctx, hopper_forward_kernel<C>, C::SharedBytes));
  const int64_t most = static_cast<int64_t>(ctx->sm_count) * C::Blocks;
  const unsigned grid = static_cast<unsigned>(std::max<int64_t>(1, std::min(most, tiles)));
  hopper_forward_kernel<C><<<grid, C::Threads, C::SharedBytes, ctx->stream>>>(make_problem(a), maps, schedule);
  return FA_LAUNCHED(ctx, "hopper_forward_kernel");
}

}  // namespace fa::hopper

#endif
