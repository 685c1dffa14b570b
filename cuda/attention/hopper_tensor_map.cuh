// Tensor maps of packed attention matrices, made on the host at each launch and passed to kernels by value as
// `const __grid_constant__ CUtensorMap`. libcuda is reached through the runtime, so the library does not link to it.
#ifndef FLASHATTN_HOPPER_TENSOR_MAP_CUH
#define FLASHATTN_HOPPER_TENSOR_MAP_CUH

#include <cuda.h>

#include "../context.cuh"

namespace fa::hopper {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

inline EncodeTiled find_encode_tiled() {
  static const EncodeTiled encode = [] {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    const bool usable = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return usable ? reinterpret_cast<EncodeTiled>(function) : nullptr;
  }();
  return encode;
}

// Map over [rows, columns] of 16-bit elements (FA_BF16 or FA_F16) whose rows lie `stride` elements apart, read or
// written in boxes of `box_rows` (1 to 256) x 64 columns with the 128-byte swizzle. Parts of a box outside the matrix
// read as zeros.
inline fa_status make_tensor_map(fa_ctx *ctx, CUtensorMap *map, const void *base, int64_t rows, int64_t columns,
                                 int64_t stride, int box_rows, int dtype) {
  const EncodeTiled encode = find_encode_tiled();
  if (encode == nullptr) return fail(ctx, FA_LIBRARY, "the driver has no cuTensorMapEncodeTiled: CUDA 12 is needed");
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows > 0 ? rows : 1)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t element_strides[2] = {1, 1};
  const CUresult result =
      encode(map, dtype == FA_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
             const_cast<void *>(base), sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return FA_OK;
  return fail(ctx, FA_DEVICE, "cuTensorMapEncodeTiled refused a [%lld, %lld] matrix of stride %lld: error %d",
              static_cast<long long>(rows), static_cast<long long>(columns), static_cast<long long>(stride),
              static_cast<int>(result));
}

}  // namespace fa::hopper

#endif
