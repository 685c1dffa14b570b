// Element by element: add, dropout, bias + ReLU + dropout and its backward pass, uniform random numbers.
#include "columns.cuh"
#include "../dependent.cuh"

namespace fa {
namespace {

constexpr int flat_threads = 256;
constexpr int flat_groups = 4;  // groups of eight elements a thread
constexpr int64_t flat_block = int64_t{flat_threads} * flat_groups * 8;

// Loads, then stores each group of eight elements of a thread. Where a whole block of work is left the first argument
// is Bool<true>: vector access, and the loads of all groups are in flight before the first store.
template <class T, class Load, class Store>
__device__ __forceinline__ void flat_apply(int64_t n, Load &&load, Store &&store) {
  const int64_t base = static_cast<int64_t>(blockIdx.x) * flat_block + threadIdx.x * 8;
  if (static_cast<int64_t>(blockIdx.x + 1) * flat_block <= n) {
    float x[flat_groups][8];
#pragma unroll
    for (int u = 0; u < flat_groups; u++) load(Bool<true>{}, base + u * flat_threads * 8, 8, x[u]);
#pragma unroll
    for (int u = 0; u < flat_groups; u++) store(Bool<true>{}, base + u * flat_threads * 8, 8, x[u]);
    return;
  }
  for (int u = 0; u < flat_groups; u++) {
    const int64_t first = base + u * flat_threads * 8;
    if (first >= n) return;
    const int valid = static_cast<int>(min(static_cast<int64_t>(8), n - first));
    float x[8];
    load(Bool<false>{}, first, valid, x);
    store(Bool<false>{}, first, valid, x);
  }
}

template <class T>
__global__ __launch_bounds__(flat_threads) void add_kernel(T *out, const T *a, const T *b, int64_t n) {
  flat_apply<T>(
      n,
      [&](auto full, int64_t first, int valid, float (&x)[8]) {
        float y[8];
        unpack(load_pack<T, decltype(full)::value>(a + first, valid), x);
        unpack(load_pack<T, decltype(full)::value>(b + first, valid), y);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += y[i];
      },
      [&](auto full, int64_t first, int valid, float (&x)[8]) {
        store_pack<T, decltype(full)::value>(out + first, valid, pack_of<T>(x));
      });
}

template <class T>
__global__ __launch_bounds__(flat_threads) void dropout_kernel(T *y, const T *x, int64_t n, DropoutParams params) {
  const Dropout dropout(params);
  flat_apply<T>(
      n,
      [&](auto full, int64_t first, int valid, float (&value)[8]) {
        unpack(load_pack<T, decltype(full)::value>(x + first, valid), value);
      },
      [&](auto full, int64_t first, int valid, float (&value)[8]) {
        if (dropout.active()) {
          const uint4 words = dropout.element_group(static_cast<uint64_t>(first) >> 3);
#pragma unroll
          for (int i = 0; i < 8; i++) value[i] = dropout.apply(words, i, value[i]);
        }
        store_pack<T, decltype(full)::value>(y + first, valid, pack_of<T>(value));
      });
}

// ---- bias + ReLU + dropout ----------------------------------------------------------------------------------------

template <class T, bool Vector>
__global__ __launch_bounds__(256) void bias_relu_dropout_forward_kernel(T *y, const T *x, const T *bias, int64_t rows,
                                                                        int64_t n, int chunk, DropoutParams params) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (column >= n) return;
  const int valid = static_cast<int>(min(static_cast<int64_t>(8), n - column));
  const Dropout dropout(params);
  float shift[8] = {};
  if (bias != nullptr) unpack(load_pack<T, Vector>(bias + column, valid), shift);
  Pack<T> pack[row_batch];
  for_row_batches(
      rows, chunk, [&](int64_t r, int u) { pack[u] = load_pack<T, Vector>(x + r * n + column, valid); },
      [&](int64_t r, int u) {
        float value[8];
        unpack(pack[u], value);
#pragma unroll
        for (int i = 0; i < 8; i++) value[i] = fmaxf(value[i] + shift[i], 0.0f);
        drop_row_group<Vector>(dropout, r, n, column, value);
        store_pack<T, Vector>(y + r * n + column, valid, pack_of<T>(value));
      });
}

// All blocks of the grid are resident at once (partial_grid); four a multiprocessor need 64 registers or less.
template <class T, bool Vector>
__global__ __launch_bounds__(256, Vector && sizeof(T) == 2 ? 4 : 1) void bias_relu_dropout_backward_kernel(
    T *dx, float *partial, const T *dy, const T *y, int64_t rows, int64_t n, int chunk, float scale, bool accumulate) {
  __shared__ float shared[8 * 256];
  let_dependent_start();
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  const int valid = column < n ? static_cast<int>(min(static_cast<int64_t>(8), n - column)) : 0;
  float sum[8] = {};
  if (valid > 0) {
    Pack<T> gradient[row_batch], output[row_batch];
    for_row_batches(
        rows, chunk,
        [&](int64_t r, int u) {
          gradient[u] = load_pack<T, Vector>(dy + r * n + column, valid);
          output[u] = load_pack<T, Vector>(y + r * n + column, valid);
        },
        [&](int64_t r, int u) {
          float value[8], mask[8];
          unpack(gradient[u], value);
          unpack(output[u], mask);
#pragma unroll
          for (int i = 0; i < 8; i++) {
            value[i] = mask[i] > 0.0f ? value[i] * scale : 0.0f;
            sum[i] += value[i];
          }
          store_pack<T, Vector>(dx + r * n + column, valid, pack_of<T>(value));
        });
  }
  if (partial == nullptr) return;
  add_block_rows(sum, shared);
  if (threadIdx.y == 0 && valid > 0) store_partial(partial, n, column, accumulate, sum);
}

__global__ __launch_bounds__(256) void random_uniform_kernel(float *x, int64_t n, float low, float range, uint2 key,
                                                             uint32_t site) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  const uint4 words = philox(make_uint4(static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), site, 2u), key);
  const float u = static_cast<float>(words.x >> 8) * (1.0f / 16777216.0f);
  x[i] = __fadd_rn(low, __fmul_rn(range, u));
}

fa_status check_flat(fa_ctx *ctx, int64_t n, int32_t dtype) {
  FA_TRY(check_range(ctx, n, 0, INT64_MAX / 8, "n"));
  return check_dtype(ctx, dtype, true);
}

}  // namespace
}  // namespace fa

using fa::entry;

extern "C" FA_EXPORT fa_status fa_add(fa_ctx *ctx, void *out, const void *a, const void *b, int64_t n, int32_t dtype) {
  return entry(ctx, "fa_add", [&]() -> fa_status {
    FA_TRY(fa::check_flat(ctx, n, dtype));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, out, "out"));
    FA_TRY(fa::check_pointer(ctx, a, "a"));
    FA_TRY(fa::check_pointer(ctx, b, "b"));
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      const unsigned grid = static_cast<unsigned>(fa::ceil_div(n, fa::flat_block));
      fa::add_kernel<T><<<grid, fa::flat_threads, 0, ctx->stream>>>(static_cast<T *>(out), static_cast<const T *>(a),
                                                                    static_cast<const T *>(b), n);
      return FA_LAUNCHED(ctx, "add_kernel");
    });
  });
}

extern "C" FA_EXPORT fa_status fa_dropout(fa_ctx *ctx, void *y, const void *x, int64_t n, float dropout,
                                          const uint64_t *rng, uint32_t site, int32_t dtype) {
  return entry(ctx, "fa_dropout", [&]() -> fa_status {
    FA_TRY(fa::check_flat(ctx, n, dtype));
    FA_TRY(fa::check_dropout(ctx, dropout, rng));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, y, "y"));
    FA_TRY(fa::check_pointer(ctx, x, "x"));
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      const unsigned grid = static_cast<unsigned>(fa::ceil_div(n, fa::flat_block));
      fa::dropout_kernel<T><<<grid, fa::flat_threads, 0, ctx->stream>>>(
          static_cast<T *>(y), static_cast<const T *>(x), n, fa::dropout_params(dropout, rng, site));
      return FA_LAUNCHED(ctx, "dropout_kernel");
    });
  });
}

extern "C" FA_EXPORT fa_status fa_bias_relu_dropout_forward(fa_ctx *ctx, void *y, const void *x, const void *bias,
                                                            int32_t rows, int32_t n, float dropout, const uint64_t *rng,
                                                            uint32_t site, int32_t dtype) {
  return entry(ctx, "fa_bias_relu_dropout_forward", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, n, 0, INT32_MAX, "n"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    FA_TRY(fa::check_dropout(ctx, dropout, rng));
    if (rows == 0 || n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, y, "y"));
    FA_TRY(fa::check_pointer(ctx, x, "x"));
    FA_TRY(fa::check_optional(ctx, bias, "bias"));
    const fa::ColumnGrid shape = fa::column_grid(rows, n, 0);
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(n % 8 == 0, [&](auto vector) {
        fa::bias_relu_dropout_forward_kernel<T, decltype(vector)::value><<<shape.grid, shape.block, 0, ctx->stream>>>(
            static_cast<T *>(y), static_cast<const T *>(x), static_cast<const T *>(bias), rows, n, shape.chunk,
            fa::dropout_params(dropout, rng, site));
        return FA_LAUNCHED(ctx, "bias_relu_dropout_forward_kernel");
      });
    });
  });
}

extern "C" FA_EXPORT fa_status fa_bias_relu_dropout_backward(fa_ctx *ctx, void *dx, float *dbias, const void *dy,
                                                             const void *y, int32_t rows, int32_t n, float dropout,
                                                             int32_t dtype, int32_t accumulate, void *workspace,
                                                             int64_t workspace_bytes) {
  return entry(ctx, "fa_bias_relu_dropout_backward", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, n, 0, INT32_MAX, "n"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    static const uint64_t no_rng[2] = {};  // the backward pass reads the mask off y
    FA_TRY(fa::check_dropout(ctx, dropout, no_rng));
    if (n == 0) return FA_OK;
    if (rows > 0) {
      FA_TRY(fa::check_pointer(ctx, dx, "dx"));
      FA_TRY(fa::check_pointer(ctx, dy, "dy"));
      FA_TRY(fa::check_pointer(ctx, y, "y"));
    }
    FA_TRY(fa::check_optional(ctx, dbias, "dbias", 4));
    if (rows == 0 && dbias == nullptr) return FA_OK;
    const fa::ColumnGrid shape = dbias == nullptr ? fa::column_grid(rows, n, 0) : fa::partial_grid(ctx, rows, n);
    const bool direct = shape.chunks == 1;
    if (dbias != nullptr) {
      FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, fa::partial_bytes(shape.chunks, n, 1)));
    }
    float *partial = dbias == nullptr || direct ? dbias : static_cast<float *>(workspace);
    const float scale = fa::dropout_params(dropout, no_rng, 0).scale;
    FA_TRY(fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(n % 8 == 0, [&](auto vector) {
        fa::bias_relu_dropout_backward_kernel<T, decltype(vector)::value><<<shape.grid, shape.block, 0, ctx->stream>>>(
            static_cast<T *>(dx), partial, static_cast<const T *>(dy), static_cast<const T *>(y), rows, n, shape.chunk,
            scale, direct && accumulate != 0);
        return FA_LAUNCHED(ctx, "bias_relu_dropout_backward_kernel");
      });
    }));
    if (dbias == nullptr || direct) return FA_OK;
    return fa::add_partials(ctx, dbias, nullptr, 1, partial, shape.chunks, n, accumulate != 0);
  });
}

extern "C" FA_EXPORT fa_status fa_random_uniform(fa_ctx *ctx, float *x, int64_t n, float low, float high, uint64_t seed,
                                                 uint32_t site) {
  return entry(ctx, "fa_random_uniform", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, n, 0, INT64_MAX / 8, "n"));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, x, "x", 4));
    const unsigned grid = static_cast<unsigned>(fa::ceil_div(n, 256));
    fa::random_uniform_kernel<<<grid, 256, 0, ctx->stream>>>(x, n, low, high - low, fa::philox_key(seed, 0), site);
    return FA_LAUNCHED(ctx, "random_uniform_kernel");
  });
}
