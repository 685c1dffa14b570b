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
  using Base::buffer, Base::use, Base::ds_full, Base::ds_empty, Base::dq_full, Base::store_dq;
  using typename Base::T;
  // Column groups whose delta is loaded before dP is waited for: as many as registers allow.
  static constexpr int kEarly = std::is_same_v<T, __nv_bfloat16> ? 4 : 2;
  static_assert(C::D == C::Groups * kDqColumns && kDqColumns == C::Rows);
  static_assert(!C::Dropout, "dS is made of P as it was packed");
  using Base::Base;

  __device__ __forceinline__ static void add_dq(const FusedBlock<C> &block, const DqSum &sum, int group) {
    float *tile = dq_sum_tile<C::D>(sum, block.h, block.s.q0, block.b, block.begin);
    Base::template add_steps<1>(block, group, block.begin, tile + group * kGroupRows * kDqColumns);
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
    this->start_dq(x, n - 1, group);
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
    if (n > block.begin) store_dq(x, n - 1 - block.begin);
    if constexpr (HasNext) start_scores_product<T, C::D, C::Rows>(x, block.k(group), block.q(slot));
    fence_async_proxy();
    barrier_arrive(ds_full(block, buffer(n)));
    if (n > block.begin) {
      barrier_arrive(ds_empty(block, buffer(n - 1)));
      barrier_arrive(dq_full(block, group));
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
    barrier_arrive(ds_full(block, buffer(n)));
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
    this->start_dq(x, block.end - 1, group);
    product_wait<0>();
    keep(x);
    keep(dk);
    keep(dv);
    store_dq(x, block.end - 1 - block.begin);
    fence_async_proxy();
    barrier_arrive(dq_full(block, group));
  }

  __device__ __forceinline__ void run() {
    this->run_walk([this](auto &dk, auto &dv) { walk(dk, dv); });
  }
};

}  // namespace fa::hopper

#endif
