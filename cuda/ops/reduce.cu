// Sums: columns of a matrix, a vector, the norm of a gradient. All in two stages with a fixed order, without atomics.
#include <algorithm>

#include "../dependent.cuh"
#include "columns.cuh"

namespace fa {
namespace {

constexpr int reduce_threads = 256;
constexpr int reduce_blocks = 1024;  // at most; partial sums of a flat reduction

// ---- columns -------------------------------------------------------------------------------------------------------

template <class T, bool Vector>
__global__ __launch_bounds__(256, 4) void column_sum_kernel(float *partial, const T *x, int64_t rows, int64_t n,
                                                            int64_t stride, int chunk, bool accumulate) {
  __shared__ float shared[8 * 256];
  let_dependent_start();
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  const int valid = column < n ? static_cast<int>(min(static_cast<int64_t>(8), n - column)) : 0;
  float sum[8] = {};
  if (valid > 0) {
    constexpr int batch = sizeof(T) == 2 && Vector ? row_batch + 1 : row_batch;  // what registers allow
    Pack<T> pack[batch];
    for_row_batches<batch>(
        rows, chunk, [&](int64_t r, int u) { pack[u] = load_pack<T, Vector>(x + r * stride + column, valid); },
        [&](int64_t, int u) {
          float value[8];
          unpack(pack[u], value);
#pragma unroll
          for (int i = 0; i < 8; i++) sum[i] += value[i];
        });
  }
  add_block_rows(sum, shared);
  if (threadIdx.y == 0 && valid > 0) store_partial(partial, n, column, accumulate, sum);
}

// 32 columns a block, `Down` threads down the partial rows.
template <int Down>
__global__ __launch_bounds__(32 * Down) void add_partials_kernel(float *out, float *second, const float *partial,
                                                                 int64_t count, int64_t n, int64_t stride,
                                                                 bool accumulate) {
  __shared__ float shared[Down][33];
  wait_for_previous();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0.0f;
  if (column < stride) {
    constexpr int batch = 16;  // in flight at once, the last ones too
    for (int64_t first = threadIdx.y; first < count; first += Down * batch) {
      float value[batch];
#pragma unroll
      for (int u = 0; u < batch; u++) {
        const int64_t p = first + u * Down;
        value[u] = p < count ? partial[p * stride + column] : 0.0f;
      }
#pragma unroll
      for (int u = 0; u < batch; u++) sum += value[u];
    }
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  float *to = column < n ? out : second;
  if (threadIdx.y != 0 || column >= stride || to == nullptr) return;
  to += column < n ? column : column - n;
#pragma unroll
  for (int y = 1; y < Down; y++) sum += shared[y][threadIdx.x];
  *to = accumulate ? *to + sum : sum;
}

// ---- flat ----------------------------------------------------------------------------------------------------------

__device__ double block_sum(double x, double *shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  x = 0.0;
#pragma unroll
  for (int w = 0; w < reduce_threads / 32; w++) x += shared[w];
  return x;
}

template <bool Square>
__global__ __launch_bounds__(reduce_threads) void flat_sum_kernel(double *partial, const float *x, int64_t n) {
  __shared__ double shared[reduce_threads / 32];
  const int64_t vectors = n / 4;
  const int64_t step = static_cast<int64_t>(gridDim.x) * reduce_threads;
  const float4 *wide = reinterpret_cast<const float4 *>(x);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * reduce_threads + threadIdx.x;
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](const float4 &v) {
    sum.x += Square ? v.x * v.x : v.x;
    sum.y += Square ? v.y * v.y : v.y;
    sum.z += Square ? v.z * v.z : v.z;
    sum.w += Square ? v.w * v.w : v.w;
  };
  int64_t i = thread;
  for (; i + 7 * step < vectors; i += 8 * step) {
    float4 value[8];
#pragma unroll
    for (int u = 0; u < 8; u++) value[u] = wide[i + u * step];
#pragma unroll
    for (int u = 0; u < 8; u++) add(value[u]);
  }
  for (; i < vectors; i += step) add(wide[i]);
  double total = (static_cast<double>(sum.x) + sum.y) + (static_cast<double>(sum.z) + sum.w);
  if (thread < n - 4 * vectors) {
    const double tail = x[4 * vectors + thread];
    total += Square ? tail * tail : tail;
  }
  total = block_sum(total, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__device__ double add_flat_partials(const double *partial, int count) {
  __shared__ double shared[reduce_threads / 32];
  double total = 0.0;
  for (int i = threadIdx.x; i < count; i += reduce_threads) total += partial[i];
  return block_sum(total, shared);
}

__global__ __launch_bounds__(reduce_threads) void finish_sum_kernel(float *out, const double *partial, int count,
                                                                    bool accumulate) {
  const double total = add_flat_partials(partial, count);
  if (threadIdx.x == 0) out[0] = static_cast<float>(accumulate ? out[0] + total : total);
}

__global__ __launch_bounds__(reduce_threads) void finish_norm_kernel(float *norm, const double *partial, int count,
                                                                     float max_norm) {
  const double total = add_flat_partials(partial, count);
  if (threadIdx.x != 0) return;
  const float length = static_cast<float>(sqrt(total));
  norm[0] = length;
  norm[1] = !isfinite(length) ? 0.0f : max_norm > 0.0f && length > max_norm ? max_norm / length : 1.0f;
}

int flat_blocks(const fa_ctx *ctx, int64_t n) {
  const int64_t wanted = ceil_div(n, 4 * reduce_threads);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({wanted, 6 * int64_t{ctx->sm_count}, reduce_blocks})));
}

constexpr int64_t flat_bytes = reduce_blocks * sizeof(double);

}  // namespace

ColumnGrid column_grid(int64_t rows, int64_t n, int64_t most_blocks, int most_width) {
  const int64_t groups = ceil_div(n, 8);
  int width = 8;
  while (width < most_width && width < groups) width *= 2;
  ColumnGrid shape;
  shape.block = dim3(width, 256 / width);
  const int64_t across = ceil_div(groups, width);
  const int64_t batch = int64_t{row_batch} * shape.block.y;
  int64_t chunks = ceil_div(rows, batch);
  if (most_blocks > 0) chunks = std::min(chunks, std::max<int64_t>(1, most_blocks / across));
  chunks = std::max<int64_t>(1, std::min<int64_t>(chunks, 65535));
  shape.chunk = static_cast<int>(std::max<int64_t>(batch, align_up(ceil_div(rows, chunks), batch)));
  shape.chunks = static_cast<int>(std::max<int64_t>(1, ceil_div(rows, shape.chunk)));
  shape.grid = dim3(static_cast<unsigned>(across), static_cast<unsigned>(shape.chunks));
  return shape;
}

ColumnGrid partial_grid(const fa_ctx *ctx, int64_t rows, int64_t n) {
  return column_grid(rows, n, 4 * int64_t{ctx->sm_count}, 32);
}

fa_status add_partials(fa_ctx *ctx, float *out, float *second, int vectors, const float *partial, int64_t count,
                       int64_t n, bool accumulate) {
  const unsigned grid = static_cast<unsigned>(ceil_div(vectors * n, 32));
  if (count <= 128) {  // few: blocks that find room beside those of the first kernel, and wait there
    return launch_dependent(ctx, add_partials_kernel<8>, grid, dim3(32, 8), 0, out, second, partial, count, n,
                            vectors * n, accumulate);
  }
  return launch_dependent(ctx, add_partials_kernel<32>, grid, dim3(32, 32), 0, out, second, partial, count, n,
                          vectors * n, accumulate);
}

int64_t column_sum_bytes(const fa_ctx *ctx, int64_t rows, int64_t n) {
  return partial_bytes(partial_grid(ctx, rows, n).chunks, n, 1);
}

fa_status column_sum(fa_ctx *ctx, float *out, const void *x, int64_t rows, int64_t n, int64_t stride, int32_t dtype,
                     bool accumulate, void *workspace) {
  if (n == 0) return FA_OK;
  const ColumnGrid shape = partial_grid(ctx, rows, n);
  const bool direct = shape.chunks == 1;
  float *partial = direct ? out : static_cast<float *>(workspace);
  FA_TRY(by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride * sizeof(T) % 16 == 0;
    return by_bool(n % 8 == 0 && aligned, [&](auto vector) {
      column_sum_kernel<T, decltype(vector)::value><<<shape.grid, shape.block, 0, ctx->stream>>>(
          partial, static_cast<const T *>(x), rows, n, stride, shape.chunk, direct && accumulate);
      return FA_LAUNCHED(ctx, "column_sum_kernel");
    });
  }));
  return direct ? FA_OK : add_partials(ctx, out, nullptr, 1, partial, shape.chunks, n, accumulate);
}

int64_t flat_workspace_bytes() { return flat_bytes; }

}  // namespace fa

using fa::entry;

extern "C" FA_EXPORT fa_status fa_column_sum(fa_ctx *ctx, float *out, const void *x, int32_t rows, int32_t n,
                                             int64_t stride, int32_t dtype, int32_t accumulate, void *workspace,
                                             int64_t workspace_bytes) {
  return entry(ctx, "fa_column_sum", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, n, 0, INT32_MAX, "n"));
    FA_TRY(fa::check_range(ctx, stride, n, INT64_MAX, "stride"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, out, "out", 4));
    if (rows > 0) FA_TRY(fa::check_pointer(ctx, x, "x", dtype == FA_F32 ? 4 : 2));
    FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, fa::column_sum_bytes(ctx, rows, n)));
    return fa::column_sum(ctx, out, x, rows, n, stride, dtype, accumulate != 0, workspace);
  });
}

extern "C" FA_EXPORT fa_status fa_sum(fa_ctx *ctx, float *out, const float *x, int64_t n, int32_t accumulate,
                                      void *workspace, int64_t workspace_bytes) {
  return entry(ctx, "fa_sum", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, n, 0, INT64_MAX / 8, "n"));
    FA_TRY(fa::check_pointer(ctx, out, "out", 4));
    if (n > 0) FA_TRY(fa::check_pointer(ctx, x, "x"));
    FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, fa::flat_bytes));
    double *partial = static_cast<double *>(workspace);
    const int blocks = fa::flat_blocks(ctx, n);
    fa::flat_sum_kernel<false><<<blocks, fa::reduce_threads, 0, ctx->stream>>>(partial, x, n);
    FA_TRY(FA_LAUNCHED(ctx, "flat_sum_kernel"));
    fa::finish_sum_kernel<<<1, fa::reduce_threads, 0, ctx->stream>>>(out, partial, blocks, accumulate != 0);
    return FA_LAUNCHED(ctx, "finish_sum_kernel");
  });
}

extern "C" FA_EXPORT fa_status fa_grad_norm(fa_ctx *ctx, float *norm, const float *grad, int64_t n, float max_norm,
                                            void *workspace, int64_t workspace_bytes) {
  return entry(ctx, "fa_grad_norm", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, n, 0, INT64_MAX / 8, "n"));
    FA_TRY(fa::check_pointer(ctx, norm, "norm", 4));
    if (n > 0) FA_TRY(fa::check_pointer(ctx, grad, "grad"));
    FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, fa::flat_bytes));
    double *partial = static_cast<double *>(workspace);
    const int blocks = fa::flat_blocks(ctx, n);
    fa::flat_sum_kernel<true><<<blocks, fa::reduce_threads, 0, ctx->stream>>>(partial, grad, n);
    FA_TRY(FA_LAUNCHED(ctx, "flat_sum_kernel"));
    fa::finish_norm_kernel<<<1, fa::reduce_threads, 0, ctx->stream>>>(norm, partial, blocks, max_norm);
    return FA_LAUNCHED(ctx, "finish_norm_kernel");
  });
}
