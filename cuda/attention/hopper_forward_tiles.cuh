// The forward kernel's shapes, the order in which its tiles are taken, and its shared memory.
#ifndef FLASHATTN_HOPPER_FORWARD_TILES_CUH
#define FLASHATTN_HOPPER_FORWARD_TILES_CUH

#include "hopper_primitives.cuh"
#include "problem.cuh"

namespace fa::hopper {

constexpr int kSmallBox = 16;  // rows of a box where less than a whole tile exists

// Pairs: teams of a producer warp and its consumers in a block; they share nothing. Groups: consumer warpgroups of a
// pair, 64 query rows each. Keys: keys of a step. Stages: depth of the ring of K and V tiles. One block a
// multiprocessor.
template <class T_, int D_, int Pairs_, int Groups_, int Keys_, int Stages_, bool Dropout_>
struct ForwardConfig {
  using T = T_;
  static constexpr int D = D_, Pairs = Pairs_, Groups = Groups_, Keys = Keys_, Stages = Stages_;
  static constexpr int QStages = 2;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Rows = 64 * Groups;
  static constexpr int Consumers = Pairs * Groups;  // warpgroups of a block
  static constexpr int Threads = Consumers * 128 + 128;
  static constexpr int QGroupBytes = 64 * kRowBytes * Panels;
  static constexpr int QBytes = QGroupBytes * Groups;
  static constexpr int TilePanelBytes = Keys * kRowBytes;
  static constexpr int TileBytes = TilePanelBytes * Panels;
  static constexpr int Barriers = 4 * Stages + 2 * QStages;
  static constexpr int KOffset = QStages * QBytes, VOffset = KOffset + Stages * TileBytes;
  static constexpr int BarrierOffset = VOffset + Stages * TileBytes,
                       InfoOffset = BarrierOffset + (Barriers + 31) / 32 * 256;
  static constexpr int NoteOffset = InfoOffset + QStages * 32;
  static constexpr int PairBytes = (NoteOffset + 32 * 48 + 1023) / 1024 * 1024;
  static constexpr int SharedBytes = Pairs * PairBytes + 1024;  // 1024: room to align
  static_assert(Pairs <= 4, "the producer warpgroup has a warp for each pair");
  static_assert(Keys % 16 == 0 && D % kPanelColumns == 0);
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

// Tiles in the order they are taken: heads in groups of `head_group` (whose K and V stay in L2), in a group the last
// rows of every head first: under a causal mask the longest tiles.
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
  const Sequence s = read_sequence(p.a, b);
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
                                          int column, int row, int rows, uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < Panels; panel++) {
    const uint32_t to = destination + panel * Full * kRowBytes;
    const int from = column + panel * kPanelColumns;
    if (rows > Full - kSmallBox) {
      load_box(to, whole, from, row, barrier, kEvictLast);
    } else {
#pragma unroll 1
      for (int r = 0; r < rows; r += kSmallBox) load_box(to + r * kRowBytes, small, from, row + r, barrier, kEvictLast);
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
      barrier_init(q_empty(i), 128 * C::Groups);
    }
    barrier_init_fence();
  }
  __device__ __forceinline__ uint32_t noted(int lane) const { return base + C::NoteOffset + lane * 48; }
};

}  // namespace fa::hopper

#endif
