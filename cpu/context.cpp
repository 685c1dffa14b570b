// The context, its last error, device information, and memory.
#include "context.hpp"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>

namespace fa {

fa_status fail(fa_ctx *ctx, fa_status status, const char *format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  try {
    ctx->error = text;
    if (ctx->capture && ctx->capture_status == FA_OK) {
      ctx->capture_status = status;
      ctx->capture_error = text;
    }
  } catch (...) {
    // No room even for the message: the status has to do.
  }
  return status;
}

fa_status not_capturing(fa_ctx *ctx, const char *what) {
  FA_REQUIRE(ctx, !ctx->capture, FA_STATE, "Cannot %s as calls are being recorded: call fa_graph_end first", what);
  return FA_OK;
}

fa_status caught(fa_ctx *ctx) {
  try {
    throw;
  } catch (const std::bad_alloc &) {
    return fail(ctx, FA_OUT_OF_MEMORY, "Cannot run the call as main memory is exhausted");
  } catch (const std::exception &error) {
    return fail(ctx, FA_DEVICE, "Cannot run the call: %s", error.what());
  } catch (...) {
    return fail(ctx, FA_DEVICE, "Cannot run the call: unknown failure");
  }
}

namespace {

// From this size on an allocation is checked against the memory that is available now, and asks for huge pages.
constexpr int64_t LARGE = int64_t(4) << 20;

const Kernels *best_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl");
  if (v4) return &isa_v4::kernel_table;
  if (v3) return &isa_v3::kernel_table;
#endif
  return &isa_base::kernel_table;
}

/// The first number in a file after `key` (NULL: at its start); -1 where there is none.
double read_number(const char *path, const char *key) {
  FILE *file = fopen(path, "r");
  if (!file) return -1;
  char line[512];
  double value = -1;
  while (value < 0 && fgets(line, sizeof line, file)) {
    const char *at = key ? strstr(line, key) : line;
    if (!at || (key && at != line)) continue;
    at += key ? strlen(key) : 0;
    at += strspn(at, " \t:");
    if (*at >= '0' && *at <= '9') value = atof(at);
  }
  fclose(file);
  return value;
}

/// Main memory that this process may use: the machine's, or its control group's where that is less.
int64_t total_memory() {
  int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  double limit = read_number("/sys/fs/cgroup/memory.max", nullptr);
  return limit > 0 && limit < (double)bytes ? (int64_t)limit : bytes;
}

int64_t available_memory() {
  int64_t total = total_memory();
  double kilobytes = read_number("/proc/meminfo", "MemAvailable:");
  int64_t free = kilobytes < 0 ? total : std::min(total, (int64_t)(kilobytes * 1024));
  double limit = read_number("/sys/fs/cgroup/memory.max", nullptr);
  double used = read_number("/sys/fs/cgroup/memory.current", nullptr);
  // Pages of the file cache count as used in a control group but can be taken back.
  double cache = read_number("/sys/fs/cgroup/memory.stat", "file ");
  if (limit > 0 && used >= 0) free = std::min(free, (int64_t)(limit - used + std::max(cache, 0.0)));
  return std::max<int64_t>(free, 0);
}

void read_name(char *name, size_t capacity) {
  snprintf(name, capacity, "CPU");
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (!file) return;
  char line[256];
  while (fgets(line, sizeof line, file)) {
    const char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) != 0 || !colon) continue;
    line[strcspn(line, "\n")] = 0;
    snprintf(name, capacity, "%s", colon + 1 + strspn(colon + 1, " \t"));
    break;
  }
  fclose(file);
}

int32_t clock_mhz() {
  double kilohertz = read_number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", nullptr);
  if (kilohertz > 0) return (int32_t)(kilohertz / 1000);
  return (int32_t)std::max(0.0, read_number("/proc/cpuinfo", "cpu MHz"));
}

int32_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes <= 0) bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return (int32_t)std::clamp<int64_t>(bytes, 0, INT32_MAX);
#else
  return 0;
#endif
}

void say(char *message, int32_t capacity, const char *text) {
  if (message && capacity > 0) snprintf(message, (size_t)capacity, "%s", text);
}

}  // namespace
}  // namespace fa

using namespace fa;

int32_t fa_abi_version(void) { return FA_ABI_VERSION; }

const char *fa_backend(void) { return "cpu"; }

int32_t fa_device_count(char *message, int32_t capacity) {
  say(message, capacity, "");
  return 1;
}

fa_status fa_ctx_create(int32_t index, fa_ctx **out, char *message, int32_t capacity) {
  say(message, capacity, "");
  if (!out) {
    say(message, capacity, "Cannot open a device as `out` must not be NULL");
    return FA_INVALID;
  }
  *out = nullptr;
  if (index != 0) {
    char text[96];
    snprintf(text, sizeof text, "Cannot open a CPU device as its index must be 0: current value is %d", index);
    say(message, capacity, text);
    return FA_INVALID;
  }
  fa_ctx *ctx = new (std::nothrow) fa_ctx;
  if (!ctx) {
    say(message, capacity, "Cannot open the CPU device as main memory is exhausted");
    return FA_OUT_OF_MEMORY;
  }
  ctx->kernels = best_kernels();
  *out = ctx;
  return FA_OK;
}

void fa_ctx_destroy(fa_ctx *ctx) {
  if (!ctx) return;
  for (auto &entry : ctx->allocations) free(entry.first);
  delete ctx;
}

int32_t fa_last_error(fa_ctx *ctx, char *buffer, int32_t capacity) {
  const char *text = ctx ? ctx->error.c_str() : "The context is NULL";
  if (buffer && capacity > 0) snprintf(buffer, (size_t)capacity, "%s", text);
  return (int32_t)strlen(text);
}

fa_status fa_get_device_info(fa_ctx *ctx, fa_device_info *out) {
  FA_REQUIRE(ctx, out, FA_INVALID, "Cannot describe the device as `out` must not be NULL");
  *out = fa_device_info{};
  out->total_bytes = total_memory();
  out->free_bytes = available_memory();
  out->units = omp_get_max_threads();
  out->clock_mhz = clock_mhz();
  out->l2_bytes = last_level_cache();
  out->simd_width = ctx->kernels->simd_width;
  read_name(out->name, sizeof out->name);
  return FA_OK;
}

fa_status fa_synchronize(fa_ctx *ctx) {
  if (!ctx) return FA_INVALID;
  return not_capturing(ctx, "synchronize");
}

// ---- memory ---------------------------------------------------------------------------------------------------------

fa_status fa_alloc(fa_ctx *ctx, int64_t bytes, void **out) {
  FA_REQUIRE(ctx, out, FA_INVALID, "Cannot allocate as `out` must not be NULL");
  *out = nullptr;
  if (fa_status status = not_capturing(ctx, "allocate")) return status;
  FA_REQUIRE(ctx, bytes >= 0, FA_INVALID, "Cannot allocate as the size must be at least 0 bytes: current value is %lld",
             (long long)bytes);
  if (bytes >= LARGE) {
    int64_t available = available_memory();
    FA_REQUIRE(ctx, bytes <= available, FA_OUT_OF_MEMORY, "Cannot allocate %lld bytes as only %lld are available",
               (long long)bytes, (long long)available);
  }
  size_t alignment = bytes >= LARGE ? size_t(2) << 20 : 256;
  size_t size = ((size_t)std::max<int64_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void *memory = aligned_alloc(alignment, size);
  FA_REQUIRE(ctx, memory, FA_OUT_OF_MEMORY, "Cannot allocate %lld bytes as main memory is exhausted", (long long)bytes);
#if defined(MADV_HUGEPAGE)
  if (bytes >= LARGE) madvise(memory, size, MADV_HUGEPAGE);
#endif
  try {
    ctx->allocations.emplace(memory, Allocation{bytes});
  } catch (...) {
    free(memory);
    return caught(ctx);
  }
  *out = memory;
  return FA_OK;
}

fa_status fa_free(fa_ctx *ctx, void *ptr) {
  if (!ctx) return FA_INVALID;
  if (!ptr) return FA_OK;
  if (fa_status status = not_capturing(ctx, "free memory")) return status;
  auto found = ctx->allocations.find(ptr);
  FA_REQUIRE(ctx, found != ctx->allocations.end(), FA_INVALID,
             "Cannot free %p as it must come from fa_alloc of this context, and be freed once", ptr);
  ctx->allocations.erase(found);
  free(ptr);
  return FA_OK;
}

fa_status fa_memset(fa_ctx *ctx, void *dst, int32_t byte, int64_t bytes) {
  FA_REQUIRE(ctx, bytes >= 0, FA_INVALID, "Cannot set memory as `bytes` must be at least 0: current value is %lld",
             (long long)bytes);
  FA_REQUIRE(ctx, dst || !bytes, FA_INVALID, "Cannot set memory as `dst` must not be NULL");
  return submit(ctx, [=] {
    if (bytes) memset(dst, byte, (size_t)bytes);
  });
}

namespace {

// Large copies by all threads, as one alone does not reach the memory's speed.
void copy_bytes(char *dst, const char *src, int64_t bytes) {
  const bool overlap = dst < src + bytes && src < dst + bytes;
  if (bytes < LARGE || overlap) {
    memmove(dst, src, (size_t)bytes);
    return;
  }
  const int64_t parts = omp_get_max_threads(), part = (bytes / parts + 63) & ~int64_t(63);
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < bytes; begin += part) {
    memcpy(dst + begin, src + begin, (size_t)std::min(part, bytes - begin));
  }
}

fa_status copy(fa_ctx *ctx, void *dst, const void *src, int64_t bytes, const char *what) {
  FA_REQUIRE(ctx, bytes >= 0, FA_INVALID, "Cannot %s as `bytes` must be at least 0: current value is %lld", what,
             (long long)bytes);
  FA_REQUIRE(ctx, (dst && src) || !bytes, FA_INVALID, "Cannot %s as both pointers must not be NULL", what);
  return submit(ctx, [=] {
    if (bytes) copy_bytes((char *)dst, (const char *)src, bytes);
  });
}

}  // namespace

fa_status fa_copy(fa_ctx *ctx, void *dst, const void *src, int64_t bytes) {
  return copy(ctx, dst, src, bytes, "copy memory");
}

fa_status fa_upload(fa_ctx *ctx, void *dst, const void *host, int64_t bytes) {
  if (!ctx) return FA_INVALID;
  if (fa_status status = not_capturing(ctx, "upload")) return status;
  return copy(ctx, dst, host, bytes, "upload");
}

fa_status fa_download(fa_ctx *ctx, void *host, const void *src, int64_t bytes) {
  if (!ctx) return FA_INVALID;
  if (fa_status status = not_capturing(ctx, "download")) return status;
  return copy(ctx, host, src, bytes, "download");
}

fa_status fa_copy_rows(fa_ctx *ctx, void *dst, int64_t dst_stride, int32_t dst_rows, const int32_t *dst_index,
                       const void *src, int64_t src_stride, int32_t src_rows, const int32_t *src_index, int32_t rows,
                       int32_t row_bytes) {
  FA_REQUIRE(ctx, rows >= 0 && dst_rows >= 0 && src_rows >= 0, FA_INVALID,
             "Cannot copy rows as row counts must be at least 0: current values are %d, %d and %d", rows, dst_rows,
             src_rows);
  FA_REQUIRE(ctx, row_bytes >= 0 && row_bytes % 4 == 0, FA_INVALID,
             "Cannot copy rows as `row_bytes` must be a multiple of 4: current value is %d", row_bytes);
  FA_REQUIRE(ctx, dst_stride >= row_bytes && src_stride >= row_bytes, FA_INVALID,
             "Cannot copy rows as strides must be at least the row's %d bytes: current values are %lld and %lld",
             row_bytes, (long long)dst_stride, (long long)src_stride);
  FA_REQUIRE(ctx, (dst && src) || !rows || !row_bytes, FA_INVALID, "Cannot copy rows as `dst`, `src` must not be NULL");
  return submit(ctx, [=] {
    for (int32_t r = 0; r < rows; r++) {
      int32_t to = dst_index ? dst_index[r] : r, from = src_index ? src_index[r] : r;
      if (to < 0 || to >= dst_rows || from < 0 || from >= src_rows) continue;
      memcpy((char *)dst + to * dst_stride, (const char *)src + from * src_stride, (size_t)row_bytes);
    }
  });
}
