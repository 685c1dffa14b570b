// What the one walk for dq, dk and dv (hopper_backward_fused.cuh) adds up in memory, who writes the zeros it begins
// with, and the kernels before and after the walk.
#ifndef FLASHATTN_HOPPER_BACKWARD_ACCUMULATOR_CUH
#define FLASHATTN_HOPPER_BACKWARD_ACCUMULATOR_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

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

// ---- zeros ---------------------------------------------------------------------------------------------------------

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

// ---- before and after ----------------------------------------------------------------------------------------------

constexpr int kPrepareRows = 128;

// Row statistics, and zeros where the walk adds; a block takes 128 rows of a head.
template <class T, int D>
__global__ void __launch_bounds__(256)
    hopper_backward_prepare_kernel(const __grid_constant__ Problem p, const RowStats stats, const FusedMemory m,
                                   int tiles) {
  constexpr int lanes = D / 8, rows_at_once = 256 / lanes;
  let_dependent_start();
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < m.count; i += int64_t{gridDim.x} * 256) {
    m.words[i] = 0;
  }
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

}  // namespace fa::hopper

#endif
