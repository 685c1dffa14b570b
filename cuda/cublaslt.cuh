// The part of cuBLASLt's C interface that gemm.cu uses, declared here because the library is opened at run time and its
// headers are no part of a minimal toolkit. Names, values and layouts are those of NVIDIA's cuBLAS documentation, the
// same in cuBLAS 12 and 13.
#ifndef FLASHATTN_CUBLASLT_CUH
#define FLASHATTN_CUBLASLT_CUH

#include <cuda_runtime.h>
#include <library_types.h>
#include <stddef.h>
#include <stdint.h>

namespace fa {
namespace lt {

using Status = int;  // 0: success
using Handle = struct HandleBody *;
using MatmulDesc = struct MatmulDescBody *;
using Layout = struct LayoutBody *;
using Preference = struct PreferenceBody *;

enum : int { operation_n = 0, operation_t = 1 };
enum : int { compute_32f = 68 };

enum DescAttribute : int {
  desc_trans_a = 3,
  desc_trans_b = 4,
  desc_epilogue = 7,
  desc_bias_pointer = 8,
  desc_bias_data_type = 26,
};

enum PreferenceAttribute : int {
  preference_max_workspace_bytes = 1,
  preference_min_alignment_a_bytes = 5,
  preference_min_alignment_b_bytes = 6,
  preference_min_alignment_c_bytes = 7,
  preference_min_alignment_d_bytes = 8,
};

enum Epilogue : int {
  epilogue_default = 1,
  epilogue_bias = 4,
  epilogue_relu_bias = 6,
};

struct Algo {
  uint64_t data[8];
};

struct HeuristicResult {
  Algo algo;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

// The entry points, filled by gemm.cu.
struct Library {
  void *handle = nullptr;
  Status (*create)(Handle *) = nullptr;
  Status (*destroy)(Handle) = nullptr;
  Status (*desc_create)(MatmulDesc *, int compute_type, cudaDataType scale_type) = nullptr;
  Status (*desc_destroy)(MatmulDesc) = nullptr;
  Status (*desc_set)(MatmulDesc, int attribute, const void *value, size_t bytes) = nullptr;
  Status (*layout_create)(Layout *, cudaDataType, uint64_t rows, uint64_t columns, int64_t ld) = nullptr;
  Status (*layout_destroy)(Layout) = nullptr;
  Status (*preference_create)(Preference *) = nullptr;
  Status (*preference_destroy)(Preference) = nullptr;
  Status (*preference_set)(Preference, int attribute, const void *value, size_t bytes) = nullptr;
  Status (*heuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference, int requested,
                      HeuristicResult *, int *returned) = nullptr;
  Status (*matmul)(Handle, MatmulDesc, const void *alpha, const void *a, Layout, const void *b, Layout,
                   const void *beta, const void *c, Layout, void *d, Layout, const Algo *, void *workspace,
                   size_t workspace_bytes, cudaStream_t) = nullptr;
};

}  // namespace lt
}  // namespace fa

#endif
