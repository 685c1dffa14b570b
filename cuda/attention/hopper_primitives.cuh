// What the Hopper kernels are made of: mbarriers, bulk tensor copies, shared-memory matrix descriptors, register
// reallocation and small fragment helpers. Products are in hopper_wgmma.cuh, tensor maps in hopper_tensor_map.cuh.
//
// Tiles. A tile in shared memory is one or more panels of 64 columns of 16 bits: 128 bytes a row, rows one after
// another, 1024-byte aligned, the 16-byte chunk c of row r at chunk c ^ (r % 8) (the 128-byte swizzle of TMA and
// wgmma).
//
// Threads. A role is a warpgroup (4 warps, the first of index divisible by 4) or one elected lane; every helper says
// who calls it.
#ifndef FLASHATTN_HOPPER_PRIMITIVES_CUH
#define FLASHATTN_HOPPER_PRIMITIVES_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "tensor_core.cuh"

namespace fa::hopper {

constexpr int kPanelColumns = 64;  // 16-bit elements
constexpr int kRowBytes = 128;     // of a panel

// ---- mbarriers: addresses are shared-memory addresses of 8-byte words ---------------------------------------------

// One thread, before barrier_init_fence and a __syncthreads.
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine (and to the other blocks of a cluster).
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives once and announces `bytes` that copies will complete in this phase.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool barrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Returns when the phase of `parity` is complete. A fresh barrier counts as having completed a phase of parity 1.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

// Named barrier among `threads` threads, whole warps. Id 0 is __syncthreads.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Orders this thread's ordinary shared-memory accesses before later ones of the tensor cores and the copy engine.
// Needed by each writer before the barrier that hands the data over.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies: one thread issues -------------------------------------------------------------------------------

constexpr uint64_t kEvictFirst = 0x12F0000000000000ull;  // L2 policies: data read once, data read again
constexpr uint64_t kEvictLast = 0x14F0000000000000ull;

__device__ __forceinline__ void prefetch_map(const CUtensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The map's box at (column, row) to shared memory. Completes box bytes on the barrier, also where parts lie outside the
// tensor: those arrive as zeros.
__device__ __forceinline__ void load_box(uint32_t destination, const CUtensorMap *map, int column, int row,
                                         uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

// `bytes` (a multiple of 16, both ends 16-byte aligned) of contiguous memory to shared memory.
__device__ __forceinline__ void load_bulk(uint32_t destination, const void *source, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(destination), "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

// Shared to global, the box at (column, row); parts outside the tensor are dropped. Close the group with store_commit.
__device__ __forceinline__ void store_box(const CUtensorMap *map, int column, int row, uint32_t source) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column),
               "r"(row), "r"(source)
               : "memory");
}

// destination[i] += source[i] for contiguous floats in global memory.
__device__ __forceinline__ void reduce_add_bulk(float *destination, uint32_t source, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(destination),
               "r"(source), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until the sources of all but `Pending` groups have been read (they may be reused then).
template <int Pending>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// Waits until all but `Pending` groups are complete and visible.
template <int Pending>
__device__ __forceinline__ void store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- registers: all warps of a warpgroup; the kernel needs __launch_bounds__(threads, 1) --------------------------

template <int Count>
__device__ __forceinline__ void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

// ---- matrix descriptors of swizzled panels ------------------------------------------------------------------------
// start address / 16 in bits 0-13, leading byte offset / 16 in bits 16-29, stride byte offset / 16 in bits 32-45,
// layout 1 (128-byte swizzle) in bits 62-63. The stride is that between groups of 8 rows: 1024 bytes.

// Rows are M or N, columns the summed dimension (Q, K as they lie). Next 16 columns: + 32 bytes; next panel: its
// address.
__device__ __forceinline__ uint64_t descriptor_k_major(uint32_t address) {
  return (1ull << 62) | (64ull << 32) | (1ull << 16) | ((address & 0x3ffffu) >> 4);
}

// Rows are the summed dimension, columns M or N: the transposed operand (V as it lies). Next 16 rows: + 2048 bytes.
// More than 64 columns: panels `panel_bytes` apart.
__device__ __forceinline__ uint64_t descriptor_mn_major(uint32_t address, uint32_t panel_bytes) {
  return (1ull << 62) | (64ull << 32) | (static_cast<uint64_t>(panel_bytes >> 4) << 16) | ((address & 0x3ffffu) >> 4);
}

// A descriptor whose start address is `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

// Offset of element (row, column) of a panel in bytes; column even.
__device__ __forceinline__ uint32_t swizzled_offset(int row, int column) {
  return static_cast<uint32_t>(row * kRowBytes + ((((column >> 3) ^ row) & 7) << 4) + (column & 7) * 2);
}

// ---- fragments ----------------------------------------------------------------------------------------------------
// Accumulators of wgmma m64nN: lane l of warp w holds rows 16 w + l / 4 (+ 8) and columns 8 j + 2 (l % 4) (+ 1), as
// d[4 j + 2 r + c] for row half r and column parity c. Two neighbouring j, packed to 16 bits, are one A operand of k
// 16.

__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four 8x8 matrices of 16 bits to shared memory: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                                          uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

__device__ __forceinline__ uint4 load_shared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_shared16(uint32_t address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// The value of lane 0, which the compiler then knows to be that of the whole (converged) warp.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_lane() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

}  // namespace fa::hopper

#endif
