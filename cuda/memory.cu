// Device memory: allocation, copies in every direction, row gathers, casts.
#include <algorithm>
#include <cstring>

#include "types.cuh"

namespace fa {

void destroy_handles(fa_ctx *ctx);

namespace {

// ---- kernels -------------------------------------------------------------------------------------------------------

// One row per blockIdx.x step; Word is the widest unit that divides row size, strides and addresses.
template <class Word>
__global__ void copy_rows_kernel(char *dst, int64_t dst_stride, int dst_rows, const int32_t *dst_index, const char *src,
                                 int64_t src_stride, int src_rows, const int32_t *src_index, int rows, int row_words) {
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < rows; r += gridDim.x * blockDim.y) {
    const int64_t to = dst_index == nullptr ? r : dst_index[r];
    const int64_t from = src_index == nullptr ? r : src_index[r];
    if (to < 0 || to >= dst_rows || from < 0 || from >= src_rows) continue;
    Word *out = reinterpret_cast<Word *>(dst + to * dst_stride);
    const Word *in = reinterpret_cast<const Word *>(src + from * src_stride);
    for (int i = threadIdx.x; i < row_words; i += blockDim.x) out[i] = in[i];
  }
}

template <class To, class From>
__global__ void cast_kernel(To *dst, const From *src, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  float x[8];
  if (first + 8 <= n) {
    unpack(load_pack<From, true>(src + first, 8), x);
    store_pack<To, true>(dst + first, 8, pack_of<To>(x));
  } else if (first < n) {
    const int valid = static_cast<int>(n - first);
    unpack(load_pack<From, false>(src + first, valid), x);
    store_pack<To, false>(dst + first, valid, pack_of<To>(x));
  }
}

// ---- the upload ring -----------------------------------------------------------------------------------------------

fa_status open_ring(fa_ctx *ctx) {
  UploadRing &ring = ctx->ring;
  if (ring.host != nullptr) return FA_OK;
  for (cudaEvent_t &done : ring.done) {
    if (done == nullptr) FA_TRY(FA_CUDA(ctx, cudaEventCreateWithFlags(&done, cudaEventDisableTiming)));
  }
  void *host = nullptr;
  FA_TRY(FA_CUDA(ctx, cudaHostAlloc(&host, UploadRing::slot_bytes * UploadRing::slots, cudaHostAllocDefault)));
  ring.host = static_cast<char *>(host);
  return FA_OK;
}

// Copies at most one slot's worth; small pieces share a slot, whose event is that of the last of them.
fa_status upload_piece(fa_ctx *ctx, char *dst, const char *host, int64_t bytes) {
  UploadRing &ring = ctx->ring;
  if (ring.used + bytes > UploadRing::slot_bytes) {
    ring.next = (ring.next + 1) % UploadRing::slots;
    ring.used = 0;
    if (ring.pending[ring.next]) FA_TRY(FA_CUDA(ctx, cudaEventSynchronize(ring.done[ring.next])));
    ring.pending[ring.next] = false;
  }
  char *staged = ring.host + ring.next * UploadRing::slot_bytes + ring.used;
  memcpy(staged, host, static_cast<size_t>(bytes));
  FA_TRY(FA_CUDA(ctx, cudaMemcpyAsync(dst, staged, bytes, cudaMemcpyHostToDevice, ctx->stream)));
  FA_TRY(FA_CUDA(ctx, cudaEventRecord(ring.done[ring.next], ctx->stream)));
  ring.pending[ring.next] = true;
  ring.used += align_up(bytes, 256);
  return FA_OK;
}

void close_ring(fa_ctx *ctx) {
  for (cudaEvent_t done : ctx->ring.done) {
    if (done != nullptr) cudaEventDestroy(done);
  }
  if (ctx->ring.host != nullptr) cudaFreeHost(ctx->ring.host);
}

fa_status not_while_capturing(fa_ctx *ctx) {
  return ctx->capturing ? fail(ctx, FA_STATE, "the context is capturing: call fa_graph_end first") : FA_OK;
}

// Both ends of a transfer of `bytes`; nothing is looked at where there is nothing to move.
fa_status check_transfer(fa_ctx *ctx, const void *dst, const void *src, int64_t bytes) {
  FA_TRY(check_range(ctx, bytes, 0, INT64_MAX, "bytes"));
  if (bytes == 0) return FA_OK;
  FA_TRY(check_pointer(ctx, dst, "dst", 1));
  return check_pointer(ctx, src, "src or host", 1);
}

template <class Word>
fa_status launch_copy_rows(fa_ctx *ctx, void *dst, int64_t dst_stride, int dst_rows, const int32_t *dst_index,
                           const void *src, int64_t src_stride, int src_rows, const int32_t *src_index, int rows,
                           int row_bytes) {
  const int words = row_bytes / static_cast<int>(sizeof(Word));
  int width = 32;
  while (width < 256 && width < words) width *= 2;
  const dim3 block(width, 256 / width);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(rows, block.y), INT32_MAX));
  copy_rows_kernel<Word><<<grid, block, 0, ctx->stream>>>(static_cast<char *>(dst), dst_stride, dst_rows, dst_index,
                                                          static_cast<const char *>(src), src_stride, src_rows,
                                                          src_index, rows, words);
  return FA_LAUNCHED(ctx, "copy_rows_kernel");
}

}  // namespace
}  // namespace fa

using fa::entry;
using fa::fail;

// Here, as it must free what every other file made.
extern "C" FA_EXPORT void fa_ctx_destroy(fa_ctx *ctx) {
  if (ctx == nullptr) return;
  cudaSetDevice(ctx->device);
  if (ctx->capturing) {
    cudaGraph_t recorded = nullptr;
    cudaStreamEndCapture(ctx->stream, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
  }
  cudaStreamSynchronize(ctx->stream);
  fa::destroy_handles(ctx);
  ctx->gemm.reset();
  fa::close_ring(ctx);
  for (const auto &allocation : ctx->allocations) cudaFree(allocation.first);
  cudaFree(ctx->counters);
  cudaStreamDestroy(ctx->stream);
  cudaGetLastError();
  delete ctx;
}

extern "C" FA_EXPORT fa_status fa_alloc(fa_ctx *ctx, int64_t bytes, void **out) {
  return entry(ctx, "fa_alloc", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, out, "out", alignof(void *)));
    *out = nullptr;
    FA_TRY(fa::check_range(ctx, bytes, 0, INT64_MAX, "bytes"));
    FA_TRY(fa::not_while_capturing(ctx));
    void *pointer = nullptr;
    const cudaError_t error = cudaMalloc(&pointer, static_cast<size_t>(std::max<int64_t>(bytes, 256)));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free_bytes = 0, total_bytes = 0;
      cudaMemGetInfo(&free_bytes, &total_bytes);
      return fail(ctx, FA_OUT_OF_MEMORY, "cannot allocate %lld bytes: %lld of %lld bytes are free",
                  static_cast<long long>(bytes), static_cast<long long>(free_bytes),
                  static_cast<long long>(total_bytes));
    }
    FA_TRY(FA_CUDA(ctx, error));
    try {
      ctx->allocations.emplace(pointer, bytes);
    } catch (...) {
      cudaFree(pointer);
      throw;
    }
    *out = pointer;
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_free(fa_ctx *ctx, void *ptr) {
  return entry(ctx, "fa_free", [&]() -> fa_status {
    if (ptr == nullptr) return FA_OK;
    FA_TRY(fa::not_while_capturing(ctx));
    const auto found = ctx->allocations.find(ptr);
    if (found == ctx->allocations.end()) {
      return fail(ctx, FA_INVALID, "ptr must come from fa_alloc of this context and not be freed: current value is %p",
                  ptr);
    }
    FA_TRY(FA_CUDA(ctx, cudaStreamSynchronize(ctx->stream)));
    ctx->allocations.erase(found);
    return FA_CUDA(ctx, cudaFree(ptr));
  });
}

extern "C" FA_EXPORT fa_status fa_memset(fa_ctx *ctx, void *dst, int32_t byte, int64_t bytes) {
  return entry(ctx, "fa_memset", [&]() -> fa_status {
    FA_TRY(fa::check_transfer(ctx, dst, dst, bytes));
    if (bytes == 0) return FA_OK;
    return FA_CUDA(ctx, cudaMemsetAsync(dst, byte, static_cast<size_t>(bytes), ctx->stream));
  });
}

extern "C" FA_EXPORT fa_status fa_copy(fa_ctx *ctx, void *dst, const void *src, int64_t bytes) {
  return entry(ctx, "fa_copy", [&]() -> fa_status {
    FA_TRY(fa::check_transfer(ctx, dst, src, bytes));
    if (bytes == 0) return FA_OK;
    return FA_CUDA(ctx, cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, ctx->stream));
  });
}

extern "C" FA_EXPORT fa_status fa_upload(fa_ctx *ctx, void *dst, const void *host, int64_t bytes) {
  return entry(ctx, "fa_upload", [&]() -> fa_status {
    FA_TRY(fa::not_while_capturing(ctx));
    FA_TRY(fa::check_transfer(ctx, dst, host, bytes));
    if (bytes == 0) return FA_OK;
    FA_TRY(fa::open_ring(ctx));
    for (int64_t at = 0; at < bytes; at += fa::UploadRing::slot_bytes) {
      FA_TRY(fa::upload_piece(ctx, static_cast<char *>(dst) + at, static_cast<const char *>(host) + at,
                              std::min<int64_t>(bytes - at, fa::UploadRing::slot_bytes)));
    }
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_download(fa_ctx *ctx, void *host, const void *src, int64_t bytes) {
  return entry(ctx, "fa_download", [&]() -> fa_status {
    FA_TRY(fa::not_while_capturing(ctx));
    FA_TRY(fa::check_transfer(ctx, host, src, bytes));
    if (bytes != 0) {
      FA_TRY(FA_CUDA(ctx, cudaMemcpyAsync(host, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, ctx->stream)));
    }
    return FA_CUDA(ctx, cudaStreamSynchronize(ctx->stream));
  });
}

extern "C" FA_EXPORT fa_status fa_copy_rows(fa_ctx *ctx, void *dst, int64_t dst_stride, int32_t dst_rows,
                                            const int32_t *dst_index, const void *src, int64_t src_stride,
                                            int32_t src_rows, const int32_t *src_index, int32_t rows,
                                            int32_t row_bytes) {
  return entry(ctx, "fa_copy_rows", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, row_bytes, 0, INT32_MAX, "row_bytes"));
    FA_TRY(fa::check_range(ctx, dst_rows, 0, INT32_MAX, "dst_rows"));
    FA_TRY(fa::check_range(ctx, src_rows, 0, INT32_MAX, "src_rows"));
    FA_TRY(fa::check_range(ctx, dst_stride, row_bytes, INT64_MAX, "dst_stride"));
    FA_TRY(fa::check_range(ctx, src_stride, 0, INT64_MAX, "src_stride"));
    if ((row_bytes | dst_stride | src_stride) % 4 != 0) {
      return fail(ctx, FA_INVALID, "row_bytes and strides must be multiples of 4: current values are %d, %lld, %lld",
                  row_bytes, static_cast<long long>(dst_stride), static_cast<long long>(src_stride));
    }
    if (rows == 0 || row_bytes == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, dst, "dst", 4));
    FA_TRY(fa::check_pointer(ctx, src, "src", 4));
    FA_TRY(fa::check_optional(ctx, dst_index, "dst_index", 4));
    FA_TRY(fa::check_optional(ctx, src_index, "src_index", 4));
    const bool wide = (reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src) |
                       static_cast<uintptr_t>(row_bytes | dst_stride | src_stride)) % 16 == 0;
    return wide ? fa::launch_copy_rows<uint4>(ctx, dst, dst_stride, dst_rows, dst_index, src, src_stride, src_rows,
                                              src_index, rows, row_bytes)
                : fa::launch_copy_rows<uint32_t>(ctx, dst, dst_stride, dst_rows, dst_index, src, src_stride, src_rows,
                                                 src_index, rows, row_bytes);
  });
}

extern "C" FA_EXPORT fa_status fa_cast(fa_ctx *ctx, void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype,
                                       int64_t n) {
  return entry(ctx, "fa_cast", [&]() -> fa_status {
    FA_TRY(fa::check_dtype(ctx, dst_dtype, true));
    FA_TRY(fa::check_dtype(ctx, src_dtype, true));
    FA_TRY(fa::check_range(ctx, n, 0, INT64_MAX / 4, "n"));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, dst, "dst"));
    FA_TRY(fa::check_pointer(ctx, src, "src"));
    const unsigned grid = static_cast<unsigned>(fa::ceil_div(n, 8 * 256));
    return fa::by_dtype(dst_dtype, [&](auto to) {
      return fa::by_dtype(src_dtype, [&](auto from) {
        using To = decltype(to);
        using From = decltype(from);
        fa::cast_kernel<To, From>
            <<<grid, 256, 0, ctx->stream>>>(static_cast<To *>(dst), static_cast<const From *>(src), n);
        return FA_LAUNCHED(ctx, "cast_kernel");
      });
    });
  });
}
