// fa_ctx and what every native function shares: entry guard, errors, launch checks, argument checks.
//
// Pattern of a function of the ABI:
//
//   extern "C" FA_EXPORT fa_status fa_thing(fa_ctx *ctx, ...) {
//     return fa::entry(ctx, "fa_thing", [&]() -> fa_status {
//       if (n < 0) return fa::fail(ctx, FA_INVALID, "n must be >= 0: current value is %d", n);
//       thing_kernel<<<grid, block, 0, ctx->stream>>>(...);
//       return FA_LAUNCHED(ctx, "thing_kernel");
//     });
//   }
//
// Inner functions return a status too; FA_TRY passes an error on, FA_CUDA turns a CUDA call's result into a status.
#ifndef FLASHATTN_CONTEXT_CUH
#define FLASHATTN_CONTEXT_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include <exception>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "flashattn.h"

#define FA_EXPORT __attribute__((visibility("default")))

#define FA_TRY(expression)                               \
  do {                                                   \
    const fa_status fa_try_status = (expression);        \
    if (fa_try_status != FA_OK) return fa_try_status;    \
  } while (0)

// Status of a CUDA runtime call; on failure the message names the call and the place.
#define FA_CUDA(ctx, call) ::fa::check_cuda((ctx), (call), #call, __FILE__, __LINE__)

// Status of the launch just made; `what` is the kernel's name.
#define FA_LAUNCHED(ctx, what) ::fa::check_cuda((ctx), cudaGetLastError(), "launch of " what, __FILE__, __LINE__)

namespace fa {
struct GemmState;  // gemm.cu: cuBLASLt, its workspace, the cached heuristics
struct GemmStateDeleter {
  void operator()(GemmState *state) const;
};

// Upload staging: slots of pinned memory used in turn, each guarded by an event, so that the host waits only when the
// device is `slots` uploads behind.
struct UploadRing {
  static constexpr int64_t slot_bytes = 4 << 20;
  static constexpr int slots = 8;
  char *host = nullptr;
  cudaEvent_t done[slots] = {};
  bool pending[slots] = {};
  int next = 0;
  int64_t used = 0;  // bytes taken of the current slot
};

// Kernels whose blocks take tiles by turns. Each has counters of its own, as one may start before another ends.
enum class TileCounter { kBackwardQuery, kBackwardKey, kCount };
}  // namespace fa

struct fa_ctx {
  int device = 0;
  cudaStream_t stream = nullptr;
  int sm_count = 0;
  int major = 0, minor = 0;      // compute capability
  int shared_bytes_optin = 0;    // most dynamic shared memory of a block
  int64_t l2_bytes = 0;
  uint32_t *counters = nullptr;  // device: two words for each fa::TileCounter, 0 between kernels
  bool capturing = false;
  fa_status capture_status = FA_OK;  // first error while capturing, with its text
  char capture_error[1024] = "";
  fa_status failed = FA_OK;          // not FA_OK: the device failed, every later call returns this
  const char *entry = "";            // the running function of the ABI, for messages
  char error[1024] = "";
  std::unordered_map<void *, int64_t> allocations;
  std::vector<fa_graph *> graphs;
  std::vector<fa_event *> events;
  fa::UploadRing ring;
  std::unique_ptr<fa::GemmState, fa::GemmStateDeleter> gemm;
};

namespace fa {

// Keeps the text "Cannot complete fa_x: ..." in the context and returns `status`.
fa_status fail(fa_ctx *ctx, fa_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

// FA_OK, FA_OUT_OF_MEMORY, or FA_DEVICE; a sticky error marks the context as failed.
fa_status check_cuda(fa_ctx *ctx, cudaError_t error, const char *what, const char *file, int line);

// Makes the context current, or returns the error that ended it.
fa_status enter(fa_ctx *ctx, const char *name);

// Notes an error made while capturing, so that fa_graph_end reports it.
fa_status leave(fa_ctx *ctx, fa_status status);

// Runs the body of a function of the ABI; nothing is thrown past it.
template <class Body>
fa_status entry(fa_ctx *ctx, const char *name, Body &&body) {
  if (ctx == nullptr) return FA_INVALID;
  FA_TRY(enter(ctx, name));
  try {
    return leave(ctx, body());
  } catch (const std::bad_alloc &) {
    return leave(ctx, fail(ctx, FA_OUT_OF_MEMORY, "out of main memory"));
  } catch (const std::exception &e) {
    return leave(ctx, fail(ctx, FA_DEVICE, "%s", e.what()));
  }
}

// ---- argument checks: each returns FA_OK or FA_INVALID with a message ---------------------------------------------

fa_status check_pointer(fa_ctx *ctx, const void *pointer, const char *name, uintptr_t alignment = 16);
// For pointers that may be NULL.
fa_status check_optional(fa_ctx *ctx, const void *pointer, const char *name, uintptr_t alignment = 16);
fa_status check_range(fa_ctx *ctx, int64_t value, int64_t low, int64_t high, const char *name);
fa_status check_dropout(fa_ctx *ctx, float dropout, const uint64_t *rng);
// FA_BF16 and FA_F16, and FA_F32 where `allow_f32`.
fa_status check_dtype(fa_ctx *ctx, int32_t dtype, bool allow_f32);
fa_status check_workspace(fa_ctx *ctx, const void *workspace, int64_t have, int64_t need);

inline int64_t dtype_bytes(int32_t dtype) { return dtype == FA_F32 ? 4 : 2; }

// Raises the dynamic shared memory limit of a kernel where it needs more than the default 48 KiB.
template <class Kernel>
fa_status allow_shared(fa_ctx *ctx, Kernel *kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return FA_OK;
  if (bytes > static_cast<size_t>(ctx->shared_bytes_optin)) {
    return fail(ctx, FA_UNSUPPORTED, "the kernel needs %zu bytes of shared memory and the device has %d", bytes,
                ctx->shared_bytes_optin);
  }
  return FA_CUDA(ctx, cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

inline uint32_t *tile_counter(const fa_ctx *ctx, TileCounter which) {
  return ctx->counters + 2 * static_cast<int>(which);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t align_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A grid for a grid-stride loop: enough blocks for `work` units, at most `waves` blocks per multiprocessor.
inline unsigned grid_for(const fa_ctx *ctx, int64_t work, int64_t per_block, int waves) {
  const int64_t blocks = ceil_div(work, per_block);
  const int64_t most = static_cast<int64_t>(ctx->sm_count) * waves;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

}  // namespace fa

#endif
