// A row of logits as one block sees it: thread t owns the groups of eight columns t, t + Threads, ... The row is
// brought to shared memory once where it fits, each thread reading back only what it fetched itself, so that no barrier
// is needed.
#ifndef FLASHATTN_OPS_ROW_CUH
#define FLASHATTN_OPS_ROW_CUH

#include "../types.cuh"

namespace fa {

__device__ __forceinline__ void copy_async_16(void *shared, const void *global) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

template <class T, bool Vector, bool Cached>
struct LogitRow {
  const T *row;
  Pack<T> *cache;
  int V, groups;

  // `cache`: shared memory for `groups` packs. Starts the copy; wait() before get().
  __device__ __forceinline__ LogitRow(const T *data, void *shared, int columns)
      : row(data), cache(static_cast<Pack<T> *>(shared)), V(columns), groups((columns + 7) / 8) {
    if constexpr (Cached) {
      for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        if constexpr (Vector) {
#pragma unroll
          for (int i = 0; i < static_cast<int>(sizeof(Pack<T>) / 16); i++) {
            copy_async_16(reinterpret_cast<uint4 *>(cache + g) + i, reinterpret_cast<const uint4 *>(row + g * 8) + i);
          }
        } else {
          cache[g] = load_pack<T, false>(row + g * 8, min(8, V - g * 8));
        }
      }
    }
  }

  __device__ __forceinline__ void wait() const {
    if constexpr (Cached && Vector) copy_async_wait();
  }

  __device__ __forceinline__ int valid(int g) const { return min(8, V - g * 8); }

  // Columns from V on read as -inf.
  __device__ __forceinline__ void get(int g, float (&x)[8]) const {
    if constexpr (Cached) {
      unpack(cache[g], x);
    } else {
      unpack(load_pack<T, Vector>(row + static_cast<int64_t>(g) * 8, valid(g)), x);
    }
    const int count = valid(g);
    if (count < 8) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (i >= count) x[i] = -INFINITY;
      }
    }
  }
};

constexpr float log2_e = 1.44269504088896340736f;

// 2^x by the special function unit; results below the normal range are 0.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Running maximum and sum of exp(x - maximum), with the first group that holds the maximum.
struct SoftmaxPart {
  float maximum = -INFINITY, sum = 0.0f, total = 0.0f;  // total: plain sum of x
  int group = INT32_MAX;

  // The sum so far, relative to a maximum that is at least as high.
  __device__ __forceinline__ float rescaled(float top) const {
    return maximum > -INFINITY ? sum * power_of_two((maximum - top) * log2_e) : sum;
  }

  __device__ __forceinline__ void merge(const SoftmaxPart &other) {
    const float top = fmaxf(maximum, other.maximum);
    sum = rescaled(top) + other.rescaled(top);
    if (other.maximum > maximum || (other.maximum == maximum && other.group < group)) group = other.group;
    maximum = top;
    total += other.total;
  }

  // Eight columns of group g, those from `valid` on -inf.
  template <bool Total>
  __device__ __forceinline__ void add(const float (&x)[8], int g, int valid) {
    const float top = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
    if (top > maximum) {
      sum = rescaled(top);
      maximum = top;
      group = g;
    }
    const float shift = maximum > -INFINITY ? maximum : 0.0f;
    float e[8];
#pragma unroll
    for (int i = 0; i < 8; i++) e[i] = power_of_two((x[i] - shift) * log2_e);
    sum += ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]));
    if constexpr (Total) {
      if (valid == 8) {
        total += ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
      } else {
#pragma unroll
        for (int i = 0; i < 8; i++) total += i < valid ? x[i] : 0.0f;
      }
    }
  }

  __device__ __forceinline__ SoftmaxPart shuffled(int offset) const {
    SoftmaxPart other;
    other.maximum = __shfl_xor_sync(0xffffffffu, maximum, offset);
    other.sum = __shfl_xor_sync(0xffffffffu, sum, offset);
    other.total = __shfl_xor_sync(0xffffffffu, total, offset);
    other.group = __shfl_xor_sync(0xffffffffu, group, offset);
    return other;
  }
};

// The whole row's statistics, in every thread. `Total`: also the plain sum.
template <int Threads, bool Total, class Row>
__device__ __forceinline__ SoftmaxPart row_softmax(const Row &row, SoftmaxPart *shared) {
  SoftmaxPart part;
#pragma unroll 2
  for (int g = threadIdx.x; g < row.groups; g += Threads) {
    float x[8];
    row.get(g, x);
    part.template add<Total>(x, g, row.valid(g));
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) part.merge(part.shuffled(offset));
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = part;
  __syncthreads();
  part = shared[threadIdx.x & (Threads / 32 - 1)];
#pragma unroll
  for (int offset = Threads / 64; offset > 0; offset >>= 1) part.merge(part.shuffled(offset));
  return part;
}

// Raises the shared memory of a kernel that keeps rows there to all that the multiprocessor has, so that several rows
// are in flight.
template <class Kernel>
fa_status prefer_shared(fa_ctx *ctx, Kernel *kernel, size_t bytes) {
  if (bytes == 0) return FA_OK;
  FA_TRY(allow_shared(ctx, kernel, bytes));
  return FA_CUDA(
      ctx, cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributePreferredSharedMemoryCarveout,
                                cudaSharedmemCarveoutMaxShared));
}

// Shared memory of the cached form, or 0 where a row does not fit.
template <class T>
size_t row_cache_bytes(const fa_ctx *ctx, int V) {
  const size_t bytes = static_cast<size_t>(ceil_div(V, 8)) * sizeof(Pack<T>);
  return bytes + 2048 <= static_cast<size_t>(ctx->shared_bytes_optin) ? bytes : 0;
}

}  // namespace fa

#endif
