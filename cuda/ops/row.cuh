// A row of logits as one block sees it: thread t owns the groups of eight columns t, t + Threads, ... The row is brought to
// shared memory once where it fits, each thread reading back only what it fetched itself, so that no barrier is needed.
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

// Running maximum and sum of exp(x - maximum), with the first group that holds the maximum.
struct SoftmaxPart {
  float maximum = -INFINITY, sum = 0.0f, total = 0.0f;  // total: plain sum of x
  int group = INT32_MAX;

  static __device__ __forceinline__ float power(float x) { return exp2f(x * 1.44269504088896340736f); }

  __device__ __forceinline__ void merge(const SoftmaxPart &other) {
    const float top = fmaxf(maximum, other.maximum);
    if (top > -INFINITY) {
      sum = sum * power(maximum - top) + other.sum * power(other.maximum - top);
    } else {
      sum += other.sum;
    }
    if (other.maximum > maximum || (other.maximum == maximum && other.group < group)) group = other.group;
    maximum = top;
    total += other.total;
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
  for (int g = threadIdx.x; g < row.groups; g += Threads) {
    float x[8];
    row.get(g, x);
    float top = x[0];
#pragma unroll
    for (int i = 1; i < 8; i++) top = fmaxf(top, x[i]);
    if (top > part.maximum) {
      part.sum *= SoftmaxPart::power(part.maximum - top);
      part.maximum = top;
      part.group = g;
    }
    const float shift = part.maximum * 1.44269504088896340736f;
    const bool any = part.maximum > -INFINITY;
    const int valid = row.valid(g);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      part.sum += any ? exp2f(fmaf(x[i], 1.44269504088896340736f, -shift)) : x[i] != x[i] ? x[i] : 0.0f;
      if (Total) part.total += i < valid ? x[i] : 0.0f;
    }
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

// Shared memory of the cached form, or 0 where a row does not fit.
template <class T>
size_t row_cache_bytes(const fa_ctx *ctx, int V) {
  const size_t bytes = static_cast<size_t>(ceil_div(V, 8)) * sizeof(Pack<T>);
  return bytes + 2048 <= static_cast<size_t>(ctx->shared_bytes_optin) ? bytes : 0;
}

}  // namespace fa

#endif
