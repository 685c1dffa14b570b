// The fused walk (hopper_backward_fused.cuh) at D 128. dk and dv take 128 of a thread's 240 registers, so that a whole
// tile of dq does not fit: each warpgroup makes half the columns of dq in every step, a step late, with the registers
// in which it had the scores. From there dq goes through shared memory, and a warp beside the producer adds it to
// memory by bulk reductions: adding from registers would keep them from the next scores until the last add is issued.
//
// A step finds its scores made. dP^T starts; P = 2^(S c - lse) while that runs; dv += P^T dO and dq of the step before
// start; dS = P (dP - delta) while those run; dk += dS^T Q starts; dq is handed over and the next scores start; what
// is to be ready with them is fetched while they run.
#ifndef FLASHATTN_HOPPER_BACKWARD_FUSED_WIDE_CUH
#define FLASHATTN_HOPPER_BACKWARD_FUSED_WIDE_CUH

#include "hopper_backward_fused.cuh"

namespace fa::hopper {

template <class C>
struct WideConsumer : FusedWarpgroup<C> {
  using Base = FusedWarpgroup<C>;
  using Base::block, Base::group, Base::lane, Base::slot, Base::parity, Base::key, Base::kDqColumns;
  using typename Base::T;
  // Column groups whose delta is loaded before dP is waited for: as many as registers allow.
  static constexpr int kEarly = std::is_same_v<T, __nv_bfloat16> ? 4 : 2;
  static constexpr int kBoth = 3;  // named barriers: 1, 2 of a warpgroup, then of both
  static_assert(C::D == C::Groups * kDqColumns && kDqColumns == C::Rows);
  static_assert(!C::Dropout, "dS is made of P as it was packed");
  using Base::Base;

  __device__ __forceinline__ static uint32_t ds_full(const FusedBlock<C> &block, int buffer) {
    return block.barrier_after(1 + buffer);
  }
  __device__ __forceinline__ static uint32_t ds_empty(const FusedBlock<C> &block, int buffer) {
    return ds_full(block, C::Buffers + buffer);
  }
  __device__ __forceinline__ static uint32_t dq_full(const FusedBlock<C> &block, int group) {
    return ds_full(block, 2 * C::Buffers + group);
  }
  __device__ __forceinline__ static uint32_t dq_empty(const FusedBlock<C> &block, int group) {
    return ds_full(block, 2 * C::Buffers + C::Groups + group);
  }
  static_assert((3 * C::Stages + 1 + 2 * C::Buffers + 2 * C::Groups) * 8 <= 192);
  __device__ __forceinline__ static void init_barriers(const FusedBlock<C> &block) {
    for (int i = 0; i < 2 * C::Buffers; i++) barrier_init(ds_full(block, i), 4 * C::Groups);
    for (int g = 0; g < C::Groups; g++) {
      barrier_init(dq_full(block, g), 4);
      barrier_init(dq_empty(block, g), 1);
    }
  }

  // dq of a warpgroup on its way to memory.
  static constexpr uint32_t kDqBytes = kGroupRows * kDqColumns * 4;
  __device__ __forceinline__ static uint32_t dq_stage(const FusedBlock<C> &block, int group) {
    return block.base + C::DqOffset + group * kDqBytes;
  }

  // Warps of the producer's warpgroup, one for each consumer warpgroup: add what that hands over.
  __device__ __forceinline__ static void help(const FusedBlock<C> &block, const DqSum &sum) {
    const int group = threadIdx.x / 32 - C::Groups * 4 - 1;
    if (group >= C::Groups || threadIdx.x % 32 != 0) return;
    float *target = dq_sum_tile<C::D>(sum, block.h, block.s.q0, block.b, block.begin) + group * kGroupRows * kDqColumns;
    wait_for_previous();  // the accumulator's zeros
    uint32_t parity = 0;
    for (int n = block.begin; n < block.end; n++, parity ^= 1, target += kGroupRows * C::D) {
      barrier_wait(dq_full(block, group), parity);
      reduce_add_bulk(target, dq_stage(block, group), kDqBytes);
      store_commit();
      store_wait_read<0>();
      barrier_arrive(dq_empty(block, group));
    }
    store_wait<0>();
  }

  // Buffer of a step's dS^T, and the parity of its barriers: of its first use, 0 and 0.
  __device__ __forceinline__ int buffer(int n) const { return (n - block.begin) % C::Buffers; }
  __device__ __forceinline__ uint32_t use(int n) const { return (n - block.begin) / C::Buffers % 2; }

  // dq of step n; of whatever lies there before the first.
  __device__ __forceinline__ void start_dq(float (&dq)[kDqColumns / 2], int n) const {
    if (n >= block.begin) barrier_wait(ds_full(block, buffer(n)), use(n));
    this->start_dq_product(dq, buffer(n + C::Buffers), group);
  }

  // dq of step n goes to memory by way of shared memory: its registers are soon free. Fence after it, then hand over.
  __device__ __forceinline__ void store_dq(const float (&dq)[kDqColumns / 2], int n) const {
    const uint32_t mine = dq_stage(block, group) + this->warp * (kDqBytes / 4) + lane * 16;
    barrier_wait(dq_empty(block, group), (n - block.begin + 1) % 2);
#pragma unroll
    for (int j = 0; j < kDqColumns / 8; j++) {
      store_shared16(mine + j * 512, make_uint4(__float_as_uint(dq[4 * j]), __float_as_uint(dq[4 * j + 1]),
                                                __float_as_uint(dq[4 * j + 2]), __float_as_uint(dq[4 * j + 3])));
    }
  }

  __device__ __forceinline__ void load_lse(float2 (&lse)[C::Rows / 8]) const {
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) lse[j] = load_query_values(block.lse(slot), j);
  }

  // On entry and on return the scores of the step are in x, its statistics in lse, its dO is there, and nothing is in
  // flight.
  template <bool HasNext>
  __device__ __forceinline__ void step(float (&x)[C::Rows / 2], float2 (&lse)[C::Rows / 8], float (&dk)[C::D / 2],
                                       float (&dv)[C::D / 2], int n) {
    float dp[C::Rows / 2];
    uint32_t pt[C::Rows / 4], dst[C::Rows / 4];
    start_scores_product<T, C::D, C::Rows>(dp, block.v(group), block.dout(slot));
    this->mask(x, n);
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      probabilities_of<T, C::Rows, false>(j, x, pt, lse[j], block.p.scale_log2, {});
    }
    start_sum_product<T, C::D, C::Rows>(dv, pt, block.dout(slot));
    start_dq(x, n - 1);
    float2 delta[kEarly];
#pragma unroll
    for (int j = 0; j < kEarly; j++) delta[j] = load_query_values(block.delta(slot), j);
    product_wait<2>();
    keep(dp);
#pragma unroll
    for (int j = 0; j < C::Rows / 8; j++) {
      const float2 row = j < kEarly ? delta[j] : load_query_values(block.delta(slot), j);
      differentiate_packed_of<T, C::Rows>(j, pt, dp, dst, row);
    }
    start_sum_product<T, C::D, C::Rows>(dk, dst, block.q(slot));
    barrier_wait(ds_empty(block, buffer(n)), use(n) ^ 1);
    this->store_ds(dst, buffer(n));
    const int here = slot;
    if (++slot == C::Stages) slot = 0, parity ^= 1;
    if constexpr (HasNext) block.await_queries(group, n + 1, slot, parity);
    product_wait<1>();
    keep(x);
    keep(pt);
    if (n > block.begin) store_dq(x, n - 1);
    if constexpr (HasNext) start_scores_product<T, C::D, C::Rows>(x, block.k(group), block.q(slot));
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(ds_full(block, buffer(n)));
      if (n > block.begin) {
        barrier_arrive(ds_empty(block, buffer(n - 1)));
        barrier_arrive(dq_full(block, group));
      }
    }
    if constexpr (HasNext) {
      load_lse(lse);
      barrier_wait(block.dout_full(slot), parity);
    }
    product_wait<0>();
    keep(x);
    keep(dst);
    block.release(here);
  }

  // A step whose queries see no key of the warpgroup, the first under a causal mask: dS^T is 0.
  __device__ __forceinline__ void skip_step(int n) {
    const uint32_t zeros[C::Rows / 4] = {};
    barrier_wait(block.q_full(slot), parity);
    barrier_wait(block.dout_full(slot), parity);
    this->store_ds(zeros, buffer(n));
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) barrier_arrive(ds_full(block, buffer(n)));
    block.release(slot);
    if (++slot == C::Stages) slot = 0, parity ^= 1;
  }

  __device__ __forceinline__ void walk(float (&dk)[C::D / 2], float (&dv)[C::D / 2]) {
    float x[C::Rows / 2];
    float2 lse[C::Rows / 8];
    int n = block.begin;
    if (block.first_step(key) > n) skip_step(n++);
    keep(dk);
    keep(dv);
    if (n < block.end) {
      block.start_scores(x, block.k(group), group, n, slot, parity);
      load_lse(lse);
      barrier_wait(block.dout_full(slot), parity);
      product_wait<0>();
      keep(x);
      for (; n + 1 < block.end; n++) step<true>(x, lse, dk, dv, n);
      step<false>(x, lse, dk, dv, n);
    }
    start_dq(x, block.end - 1);
    product_wait<0>();
    keep(x);
    keep(dk);
    keep(dv);
    store_dq(x, block.end - 1);
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) barrier_arrive(dq_full(block, group));
  }

  __device__ __forceinline__ void run() {
    this->run_walk(kBoth, [this](auto &dk, auto &dv) { walk(dk, dv); });
  }
};

}  // namespace fa::hopper

#endif
