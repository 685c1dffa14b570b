// Kernels the second of which goes on with what the first began: on Hopper the second is brought to the multiprocessors
// while the first still runs (programmatic dependent launch), so that the gap between the two goes.
#ifndef FLASHATTN_DEPENDENT_CUH
#define FLASHATTN_DEPENDENT_CUH

#include "context.cuh"

namespace fa {

// In the first kernel: the second may take its place as soon as all blocks have come here.
__device__ __forceinline__ void let_dependent_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// In the second kernel, before anything the first wrote is read: returns once the first is done, its writes seen.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches the second kernel of a pair, which must call wait_for_previous().
template <class... Parameters, class... Arguments>
fa_status launch_dependent(fa_ctx *ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                           const Arguments &...arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = ctx->stream;
  config.attrs = &attribute;
  config.numAttrs = ctx->major >= 9 ? 1 : 0;
  return FA_CUDA(ctx, cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace fa

#endif
