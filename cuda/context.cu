// Library entry, devices, the context and its errors.
#include "context.cuh"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fa {

namespace {

__global__ void probe_kernel() {}

void put_message(char *message, int32_t capacity, const char *format, ...) {
  if (message == nullptr || capacity <= 0) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, static_cast<size_t>(capacity), format, arguments);
  va_end(arguments);
}

// Errors after which the device's context answers nothing else any more.
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

fa_status status_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return FA_OUT_OF_MEMORY;
    case cudaErrorNoKernelImageForDevice: return FA_UNSUPPORTED;
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureImplicit: return FA_STATE;
    default: return FA_DEVICE;
  }
}

const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

// Devices this library can run on, in the driver's order. Where there is none, `message` says why.
std::vector<int> usable_devices(char *message, int32_t capacity) {
  std::vector<int> usable;
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaGetLastError();
  if (driver == 0) {
    put_message(message, capacity, "no NVIDIA driver is installed: install one, or use --device cpu");
    return usable;
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    put_message(
        message, capacity,
        "the NVIDIA driver supports CUDA %d.%d and this library was built with CUDA %d.%d: update the driver or "
        "build with an older toolkit",
        driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return usable;
  }
  if (error != cudaSuccess && error != cudaErrorNoDevice) {
    put_message(message, capacity, "the NVIDIA driver does not answer: %s", cudaGetErrorString(error));
    return usable;
  }
  for (int i = 0; i < count; i++) {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) != cudaSuccess) continue;
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
    if (major >= 8) {
      usable.push_back(i);
    } else {
      put_message(message, capacity, "GPU %d has compute capability %d.%d and 8.0 or higher is needed", i, major,
                  minor);
    }
  }
  if (count == 0 || error == cudaErrorNoDevice) {
    put_message(message, capacity, "no NVIDIA GPU is visible: look at nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  return usable;
}

fa_status open_device(fa_ctx *ctx) {
  FA_TRY(FA_CUDA(ctx, cudaSetDevice(ctx->device)));
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, ctx->device) == cudaSuccess ? value : 0;
  };
  ctx->sm_count = attribute(cudaDevAttrMultiProcessorCount);
  ctx->major = attribute(cudaDevAttrComputeCapabilityMajor);
  ctx->minor = attribute(cudaDevAttrComputeCapabilityMinor);
  ctx->shared_bytes_optin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ctx->l2_bytes = attribute(cudaDevAttrL2CacheSize);
  FA_TRY(FA_CUDA(ctx, cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking)));
  cudaFuncAttributes probe;
  if (cudaFuncGetAttributes(&probe, probe_kernel) != cudaSuccess) {
    cudaGetLastError();
    return fail(ctx, FA_UNSUPPORTED,
                "the library holds no code for compute capability %d.%d: build it again with \"deno task build\" and a "
                "toolkit that knows this GPU",
                ctx->major, ctx->minor);
  }
  constexpr size_t counter_bytes = 2 * sizeof(uint32_t) * static_cast<int>(TileCounter::kCount);
  FA_TRY(FA_CUDA(ctx, cudaMalloc(&ctx->counters, counter_bytes)));
  return FA_CUDA(ctx, cudaMemset(ctx->counters, 0, counter_bytes));
}

}  // namespace

fa_status fail(fa_ctx *ctx, fa_status status, const char *format, ...) {
  int used = snprintf(ctx->error, sizeof(ctx->error), "Cannot complete %s: ", ctx->entry);
  if (used < 0 || used >= static_cast<int>(sizeof(ctx->error))) used = 0;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(ctx->error + used, sizeof(ctx->error) - used, format, arguments);
  va_end(arguments);
  return status;
}

fa_status check_cuda(fa_ctx *ctx, cudaError_t error, const char *what, const char *file, int line) {
  if (error == cudaSuccess) return FA_OK;
  cudaGetLastError();  // not to be found again by the next launch check
  const fa_status status = status_of(error);
  fail(ctx, status, "%s (%s) at %s, %s:%d", cudaGetErrorString(error), cudaGetErrorName(error), what, base_name(file),
       line);
  if (is_sticky(error)) ctx->failed = status;
  return status;
}

fa_status enter(fa_ctx *ctx, const char *name) {
  if (ctx->failed != FA_OK) return ctx->failed;
  ctx->entry = name;
  return FA_CUDA(ctx, cudaSetDevice(ctx->device));
}

fa_status leave(fa_ctx *ctx, fa_status status) {
  if (status != FA_OK && ctx->capturing && ctx->capture_status == FA_OK) {
    ctx->capture_status = status;
    memcpy(ctx->capture_error, ctx->error, sizeof(ctx->error));
  }
  return status;
}

fa_status check_pointer(fa_ctx *ctx, const void *pointer, const char *name, uintptr_t alignment) {
  if (pointer == nullptr) return fail(ctx, FA_INVALID, "%s must not be NULL", name);
  return check_optional(ctx, pointer, name, alignment);
}

fa_status check_optional(fa_ctx *ctx, const void *pointer, const char *name, uintptr_t alignment) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0) {
    return fail(ctx, FA_INVALID, "%s must lie on %d bytes: current value is %p", name, static_cast<int>(alignment),
                pointer);
  }
  return FA_OK;
}

fa_status check_range(fa_ctx *ctx, int64_t value, int64_t low, int64_t high, const char *name) {
  if (value >= low && value <= high) return FA_OK;
  if (high >= INT32_MAX) {
    return fail(ctx, FA_INVALID, "%s must be >= %lld: current value is %lld", name, static_cast<long long>(low),
                static_cast<long long>(value));
  }
  return fail(ctx, FA_INVALID, "%s must be from %lld to %lld: current value is %lld", name, static_cast<long long>(low),
              static_cast<long long>(high), static_cast<long long>(value));
}

fa_status check_dropout(fa_ctx *ctx, float dropout, const uint64_t *rng) {
  if (!(dropout >= 0.0f && dropout < 1.0f)) {
    return fail(ctx, FA_INVALID, "dropout must be in [0, 1): current value is %g", static_cast<double>(dropout));
  }
  if (dropout == 0.0f) return FA_OK;
  return check_pointer(ctx, rng, "rng, as dropout is not 0,", 8);
}

fa_status check_dtype(fa_ctx *ctx, int32_t dtype, bool allow_f32) {
  if (dtype == FA_BF16 || dtype == FA_F16 || (dtype == FA_F32 && allow_f32)) return FA_OK;
  if (dtype == FA_F32) return fail(ctx, FA_UNSUPPORTED, "dtype FA_F32 is for the CPU: use FA_BF16 or FA_F16");
  return fail(ctx, FA_INVALID, "dtype must be FA_F32, FA_BF16 or FA_F16: current value is %d", dtype);
}

fa_status check_workspace(fa_ctx *ctx, const void *workspace, int64_t have, int64_t need) {
  if (have < need) {
    return fail(ctx, FA_INVALID, "workspace_bytes must be >= %lld: current value is %lld", static_cast<long long>(need),
                static_cast<long long>(have));
  }
  return need == 0 ? FA_OK : check_pointer(ctx, workspace, "workspace");
}

}  // namespace fa

using fa::entry;
using fa::fail;

extern "C" FA_EXPORT int32_t fa_abi_version(void) { return FA_ABI_VERSION; }

extern "C" FA_EXPORT const char *fa_backend(void) { return "cuda"; }

extern "C" FA_EXPORT int32_t fa_device_count(char *message, int32_t capacity) {
  fa::put_message(message, capacity, "%s", "");
  try {
    return static_cast<int32_t>(fa::usable_devices(message, capacity).size());
  } catch (const std::exception &e) {
    fa::put_message(message, capacity, "%s", e.what());
    return 0;
  }
}

extern "C" FA_EXPORT fa_status fa_ctx_create(int32_t index, fa_ctx **out, char *message, int32_t capacity) {
  if (out == nullptr) return FA_INVALID;
  *out = nullptr;
  fa::put_message(message, capacity, "%s", "");
  try {
    const std::vector<int> devices = fa::usable_devices(message, capacity);
    if (devices.empty()) return FA_DEVICE;
    if (index < 0 || index >= static_cast<int32_t>(devices.size())) {
      fa::put_message(message, capacity, "Cannot open device as index must be from 0 to %d: current value is %d",
                      static_cast<int>(devices.size()) - 1, index);
      return FA_INVALID;
    }
    std::unique_ptr<fa_ctx> ctx(new fa_ctx);
    ctx->device = devices[index];
    ctx->entry = "fa_ctx_create";
    const fa_status status = fa::open_device(ctx.get());
    if (status != FA_OK) {
      fa::put_message(message, capacity, "%s", ctx->error);
      if (ctx->counters != nullptr) cudaFree(ctx->counters);
      if (ctx->stream != nullptr) cudaStreamDestroy(ctx->stream);
      return status;
    }
    *out = ctx.release();
    return FA_OK;
  } catch (const std::exception &e) {
    fa::put_message(message, capacity, "Cannot open device: %s", e.what());
    return FA_OUT_OF_MEMORY;
  }
}

extern "C" FA_EXPORT int32_t fa_last_error(fa_ctx *ctx, char *buffer, int32_t capacity) {
  const char *text = ctx == nullptr ? "Cannot complete the call as ctx must not be NULL" : ctx->error;
  fa::put_message(buffer, capacity, "%s", text);
  return static_cast<int32_t>(strlen(text));
}

extern "C" FA_EXPORT fa_status fa_get_device_info(fa_ctx *ctx, fa_device_info *out) {
  return entry(ctx, "fa_get_device_info", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, out, "out", alignof(fa_device_info)));
    fa_device_info info = {};
    size_t free_bytes = 0, total_bytes = 0;
    FA_TRY(FA_CUDA(ctx, cudaMemGetInfo(&free_bytes, &total_bytes)));
    cudaDeviceProp properties;
    FA_TRY(FA_CUDA(ctx, cudaGetDeviceProperties(&properties, ctx->device)));
    int clock_khz = 0, driver = 0, runtime = 0;
    if (cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, ctx->device) != cudaSuccess) cudaGetLastError();
    FA_TRY(FA_CUDA(ctx, cudaDriverGetVersion(&driver)));
    FA_TRY(FA_CUDA(ctx, cudaRuntimeGetVersion(&runtime)));
    info.total_bytes = static_cast<int64_t>(total_bytes);
    info.free_bytes = static_cast<int64_t>(free_bytes);
    info.major = ctx->major;
    info.minor = ctx->minor;
    info.units = ctx->sm_count;
    info.clock_mhz = clock_khz / 1000;
    info.driver = driver;
    info.runtime = runtime;
    info.l2_bytes = static_cast<int32_t>(ctx->l2_bytes);
    info.simd_width = 32;
    snprintf(info.name, sizeof(info.name), "%.127s", properties.name);
    *out = info;
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_synchronize(fa_ctx *ctx) {
  return entry(ctx, "fa_synchronize", [&]() -> fa_status {
    if (ctx->capturing) return fail(ctx, FA_STATE, "the context is capturing: call fa_graph_end first");
    return FA_CUDA(ctx, cudaStreamSynchronize(ctx->stream));
  });
}
