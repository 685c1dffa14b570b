// Warpgroup matrix products: m64 x N x k16 of 16-bit operands with float accumulators. All 128 threads of a warpgroup
// call.
//
//   product_ss<T, N, TransA, TransB>(d, a, b, accumulate)   A and B by descriptor
//   product_rs<T, N, TransB>(d, a0, a1, a2, a3, b, accumulate)   A in registers (accumulator layout, packed)
//
// Trans 1: the operand lies with its M or N dimension contiguous (descriptor_mn_major). accumulate 0: d = A B.
//
// Products run behind the warpgroup. Around a batch of them:
//   product_begin();  product_..(..);  ..  product_commit();      // a group; groups complete in order
//   product_wait<Pending>();  keep(d);                           // d is readable now
// keep() stops the compiler from moving uses of an array across the wait; it makes no instruction.
#ifndef FLASHATTN_HOPPER_WGMMA_CUH
#define FLASHATTN_HOPPER_WGMMA_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#include <type_traits>

namespace fa::hopper {

// Orders register accesses before the products that follow.
__device__ __forceinline__ void product_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

template <int Count>
__device__ __forceinline__ void keep(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int Count>
__device__ __forceinline__ void keep(uint32_t (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; i++) asm volatile("" : "+r"(d[i])::"memory");
}

template <class T, int N>
struct Wgmma;

// Operand lists: registers in the text, accumulators as constraints.
#define FA_REGS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FA_REGS_16 FA_REGS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FA_REGS_24 FA_REGS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FA_REGS_32 FA_REGS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FA_REGS_40 FA_REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define FA_REGS_48 FA_REGS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FA_REGS_56 FA_REGS_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define FA_REGS_64 FA_REGS_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define FA_REGS_72 FA_REGS_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define FA_REGS_80 FA_REGS_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define FA_REGS_88 FA_REGS_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define FA_REGS_96 FA_REGS_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define FA_REGS_104 FA_REGS_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define FA_ACC_OF(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FA_ACC_8 FA_ACC_OF(0)
#define FA_ACC_16 FA_ACC_OF(0), FA_ACC_OF(8)
#define FA_ACC_24 FA_ACC_16, FA_ACC_OF(16)
#define FA_ACC_32 FA_ACC_24, FA_ACC_OF(24)
#define FA_ACC_40 FA_ACC_32, FA_ACC_OF(32)
#define FA_ACC_48 FA_ACC_40, FA_ACC_OF(40)
#define FA_ACC_56 FA_ACC_48, FA_ACC_OF(48)
#define FA_ACC_64 FA_ACC_56, FA_ACC_OF(56)
#define FA_ACC_72 FA_ACC_64, FA_ACC_OF(64)
#define FA_ACC_80 FA_ACC_72, FA_ACC_OF(72)
#define FA_ACC_88 FA_ACC_80, FA_ACC_OF(80)
#define FA_ACC_96 FA_ACC_88, FA_ACC_OF(88)
#define FA_ACC_104 FA_ACC_96, FA_ACC_OF(96)

// i0 .. i6: the numbers of the operands after the accumulators.
#define FA_WGMMA_SS(N, TYPE, K, i0, i1, i2, i3, i4)                                                                   \
  asm volatile(                                                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FA_REGS_##K "}, %" #i0 ", %" #i1           \
      ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                                                                             \
      : FA_ACC_##K                                                                                                    \
      : "l"(a), "l"(b), "r"(accumulate), "n"(TransA), "n"(TransB))
#define FA_WGMMA_RS(N, TYPE, K, i0, i1, i2, i3, i4, i5, i6)                                                           \
  asm volatile(                                                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FA_REGS_##K "}, {%" #i0 ", %" #i1 ", %" #i2\
      ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}"                                                                  \
      : FA_ACC_##K                                                                                                    \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(TransB))

#define FA_WGMMA(N, K, i0, i1, i2, i3, i4, i5, i6)                                                                    \
  template <class T>                                                                                                  \
  struct Wgmma<T, N> {                                                                                                \
    template <int TransA, int TransB>                                                                                 \
    static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {            \
      if constexpr (std::is_same_v<T, __nv_bfloat16>)                                                                 \
        FA_WGMMA_SS(N, "bf16", K, i0, i1, i2, i3, i4);                                                                \
      else                                                                                                            \
        FA_WGMMA_SS(N, "f16", K, i0, i1, i2, i3, i4);                                                                 \
    }                                                                                                                 \
    template <int TransB>                                                                                             \
    static __device__ __forceinline__ void rs(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2,               \
                                              uint32_t a3, uint64_t b, int accumulate) {                              \
      if constexpr (std::is_same_v<T, __nv_bfloat16>)                                                                 \
        FA_WGMMA_RS(N, "bf16", K, i0, i1, i2, i3, i4, i5, i6);                                                        \
      else                                                                                                            \
        FA_WGMMA_RS(N, "f16", K, i0, i1, i2, i3, i4, i5, i6);                                                         \
    }                                                                                                                 \
  };

FA_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14)
FA_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
FA_WGMMA(48, 24, 24, 25, 26, 27, 28, 29, 30)
FA_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
FA_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
FA_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
FA_WGMMA(112, 56, 56, 57, 58, 59, 60, 61, 62)
FA_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
FA_WGMMA(144, 72, 72, 73, 74, 75, 76, 77, 78)
FA_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
FA_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94)
FA_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
FA_WGMMA(208, 104, 104, 105, 106, 107, 108, 109, 110)

template <class T, int N, int TransA, int TransB>
__device__ __forceinline__ void product_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
  Wgmma<T, N>::template ss<TransA, TransB>(d, a, b, accumulate);
}
template <class T, int N, int TransB>
__device__ __forceinline__ void product_rs(float (&d)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                           uint64_t b, int accumulate) {
  Wgmma<T, N>::template rs<TransB>(d, a0, a1, a2, a3, b, accumulate);
}

#undef FA_WGMMA
#undef FA_WGMMA_SS
#undef FA_WGMMA_RS
#undef FA_ACC_OF
#undef FA_REGS_8
#undef FA_ACC_8
#undef FA_REGS_16
#undef FA_ACC_16
#undef FA_REGS_24
#undef FA_ACC_24
#undef FA_REGS_32
#undef FA_ACC_32
#undef FA_REGS_40
#undef FA_ACC_40
#undef FA_REGS_48
#undef FA_ACC_48
#undef FA_REGS_56
#undef FA_ACC_56
#undef FA_REGS_64
#undef FA_ACC_64
#undef FA_REGS_72
#undef FA_ACC_72
#undef FA_REGS_80
#undef FA_ACC_80
#undef FA_REGS_88
#undef FA_ACC_88
#undef FA_REGS_96
#undef FA_ACC_96
#undef FA_REGS_104
#undef FA_ACC_104

}  // namespace fa::hopper

#endif
