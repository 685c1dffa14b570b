// Warp-level building blocks of sm_80 and later: mma.m16n8k16, ldmatrix, cp.async, and the swizzled tile they read.
#ifndef FLASHATTN_TENSOR_CORE_CUH
#define FLASHATTN_TENSOR_CORE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace fa {

template <class T>
struct Half2;

template <>
struct Half2<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
  }
};

template <>
struct Half2<__half> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&x));
  }
};

// Sixteen columns of accumulators, tiles 2 step and 2 step + 1, as the left operand of another product.
template <class T, int tiles>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[4], const float (&x)[tiles][4], int step) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const float *pair = &x[2 * step + (e >> 1)][(e & 1) * 2];
    a[e] = Half2<T>::pack(pair[0], pair[1]);
  }
}

// c [16 x 8] += a [16 x 16] b [16 x 8]. With g = lane / 4 and t = lane % 4, c holds rows g, g, g + 8, g + 8 and columns
// 2t, 2t + 1, 2t, 2t + 1.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Transposes the 8 x 8 matrix of 16-bit values that a warp holds in fragment layout.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes past L1; `bytes` of them are read, the rest become 0.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void *global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_8(uint32_t shared, const void *global, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// Sum and maximum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// A tile of rows of `columns` 16-bit values in shared memory, its 16-byte chunks permuted within a row so that eight
// rows of one chunk column lie in different banks: ldmatrix and the copies are free of conflicts.
template <int columns>
struct Tile {
  static constexpr int pitch = columns * 2;
  static constexpr int chunks = columns / 8;
  static_assert(columns % 32 == 0, "the permutation needs at least four chunks");
  // Rows of a multiple of 128 bytes start in bank 0 each; others alternate between the two halves.
  static __device__ __forceinline__ int swizzle(int row) {
    return pitch % 128 == 0 ? row & 7 : (row >> 1) & 3;
  }
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return row * pitch + ((chunk ^ swizzle(row)) << 4);
  }
};

// One lane's addresses for ldmatrix over a tile: rows `row` + 16 m, chunks `half` + 2 k (steps of 16 columns).
// `row` is taken below 16, so the permutation is the same for every m.
template <int columns>
struct LaneTile {
  uint32_t row_base;
  uint32_t chunk_base;
  uint32_t extra;  // a distance in whole rows, added last, so that tiles side by side share the permuted addresses
  // Rows (lane & 15), columns in halves by lane >> 4: operand a as stored, or b from a [k, n] tile (transposed load).
  static __device__ __forceinline__ LaneTile rows_first(uint32_t tile, int lane) {
    return make(tile, lane & 15, lane >> 4);
  }
  // Rows in halves by lane >> 4, columns by lane >> 3: operand b from an [n, k] tile, or a from [k, m] (transposed
  // load).
  static __device__ __forceinline__ LaneTile columns_first(uint32_t tile, int lane) {
    return make(tile, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  }
  static __device__ __forceinline__ LaneTile make(uint32_t tile, int row, int half) {
    return LaneTile{tile + row * Tile<columns>::pitch,
        static_cast<uint32_t>((half ^ Tile<columns>::swizzle(row)) << 4), 0};
  }
  __device__ __forceinline__ uint32_t at(int m, int k) const {
    if constexpr (Tile<columns>::pitch % 128 == 0) {
      // Only bits 5 and 6 of the step meet the permutation: the rest is a constant offset.
      return ((row_base + chunk_base) ^ ((k & 3) << 5)) + extra + (k >> 2) * 128 + m * 16 * Tile<columns>::pitch;
    } else {
      return row_base + extra + (chunk_base ^ (k << 5)) + m * 16 * Tile<columns>::pitch;
    }
  }
  // The same lane in another tile, `bytes` further on.
  __device__ __forceinline__ LaneTile shifted(uint32_t bytes) const {
    return LaneTile{row_base, chunk_base, extra + bytes};
  }
};

// Copies `rows` rows of a [*, columns] tile from global memory; rows from `valid` up and columns from D up become 0. A
// copy of 0 bytes reads nothing, so its address need not exist.
template <class T, int columns, int rows, int threads>
__device__ __forceinline__ void load_tile(uint32_t tile, const T *source, int64_t stride, int valid, int D,
    int thread) {
  constexpr int chunks = Tile<columns>::chunks;
  if constexpr (threads % chunks == 0 && rows % (threads / chunks) == 0 && (threads / chunks) % 8 == 0) {
    constexpr int step = threads / chunks;
    const int chunk = thread % chunks;
    const int first = thread / chunks;
    const int left = chunk * 8 < D ? valid - first : 0;
    const char *from = reinterpret_cast<const char *>(source + first * stride + chunk * 8);
    const uint32_t to = tile + Tile<columns>::offset(first, chunk);
#pragma unroll
    for (int r = 0; r < rows; r += step) {
      copy_async_16(to + r * Tile<columns>::pitch, from, r < left ? 16 : 0);
      from += stride * (step * 2);
    }
  } else {
#pragma unroll
    for (int i = 0; i < rows * chunks; i += threads) {
      const int index = i + thread;
      if ((rows * chunks) % threads != 0 && index >= rows * chunks) break;
      const int row = index / chunks, chunk = index % chunks;
      copy_async_16(tile + Tile<columns>::offset(row, chunk), source + row * stride + chunk * 8,
                    chunk * 8 < D && row < valid ? 16 : 0);
    }
  }
}

// Copies a tile to global memory, rows below `valid` and columns below D.
template <class T, int columns, int rows, int threads>
__device__ __forceinline__ void store_tile(T *target, int64_t stride, const char *tile, int valid, int D, int thread) {
  constexpr int chunks = Tile<columns>::chunks;
#pragma unroll
  for (int i = 0; i < rows * chunks; i += threads) {
    const int index = i + thread;
    if ((rows * chunks) % threads != 0 && index >= rows * chunks) break;
    const int row = index / chunks, chunk = index % chunks;
    if (row >= valid || chunk * 8 >= D) continue;
    *reinterpret_cast<uint4 *>(target + row * stride + chunk * 8) =
        *reinterpret_cast<const uint4 *>(tile + Tile<columns>::offset(row, chunk));
  }
}

}  // namespace fa

#endif
