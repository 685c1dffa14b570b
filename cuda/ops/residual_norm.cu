// Residual + dropout + layer norm, forward and backward. A team of threads, a warp or the whole block, holds a row in
// registers; the statistics are two-pass over the values as they are stored, so that the backward pass sees the same.
#include <algorithm>

#include "columns.cuh"
#include "../dependent.cuh"

namespace fa {
namespace {

constexpr int norm_threads = 256;

template <int Team>
constexpr int teams = norm_threads / Team;

// The groups of eight columns of one thread: i = 0 .. Groups - 1 is column (i * Team + lane) * 8.
template <int Team, int Groups, bool Vector>
struct RowShape {
  int lane, C;
  __device__ __forceinline__ explicit RowShape(int columns) : lane(threadIdx.x % Team), C(columns) {}
  __device__ __forceinline__ int column(int i) const { return (i * Team + lane) * 8; }
  __device__ __forceinline__ int valid(int i) const { return max(0, min(8, C - column(i))); }
};

template <class T, int Team, int Groups, bool Vector>
__global__ __launch_bounds__(norm_threads) void residual_norm_forward_kernel(T *sum, T *out, float *mean_out,
                                                                             float *rstd_out, const T *x,
                                                                             const T *branch, const T *gamma,
                                                                             const T *beta, int rows, int C, float eps,
                                                                             DropoutParams params) {
  __shared__ float scratch[norm_threads / 32];
  const RowShape<Team, Groups, Vector> shape(C);
  const int64_t r = static_cast<int64_t>(blockIdx.x) * teams<Team> + threadIdx.x / Team;
  if (r >= rows) return;
  const int64_t base = r * C;
  Pack<T> packs[Groups], branches[Groups];
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    packs[i] = zero_pack<T>();
    if (shape.valid(i) > 0) packs[i] = load_pack<T, Vector>(x + base + shape.column(i), shape.valid(i));
  }
  if (branch != nullptr) {
    const Dropout dropout(params);
#pragma unroll
    for (int i = 0; i < Groups; i++) {
      if (shape.valid(i) > 0) branches[i] = load_pack<T, Vector>(branch + base + shape.column(i), shape.valid(i));
    }
    uint4 random[Groups];
#pragma unroll
    for (int i = 0; i < Groups; i++) random[i] = draw_row_group<Vector>(dropout, r, C, shape.column(i));
#pragma unroll
    for (int i = 0; i < Groups; i++) {
      if (shape.valid(i) == 0) continue;
      float a[8], b[8];
      unpack(packs[i], a);
      unpack(branches[i], b);
      drop_drawn<Vector>(dropout, random[i], r, C, shape.column(i), b);
#pragma unroll
      for (int j = 0; j < 8; j++) a[j] += b[j];
      packs[i] = pack_of<T>(a);
    }
  }
  if (sum != nullptr) {
#pragma unroll
    for (int i = 0; i < Groups; i++) {
      if (shape.valid(i) > 0) store_pack<T, Vector>(sum + base + shape.column(i), shape.valid(i), packs[i]);
    }
  }
  if (out == nullptr) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    float a[8];
    unpack(packs[i], a);  // columns past C are 0
#pragma unroll
    for (int j = 0; j < 8; j++) total += a[j];
  }
  const float mean = team_sum<Team>(total, scratch) / C;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    float a[8];
    unpack(packs[i], a);
    const int valid = shape.valid(i);
#pragma unroll
    for (int j = 0; j < 8; j++) squares += j < valid ? (a[j] - mean) * (a[j] - mean) : 0.0f;
  }
  const float rstd = rsqrtf(team_sum<Team>(squares, scratch) / C + eps);
  if (shape.lane == 0) {
    if (mean_out != nullptr) mean_out[r] = mean;
    if (rstd_out != nullptr) rstd_out[r] = rstd;
  }
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    if (shape.valid(i) == 0) continue;
    float a[8], scale[8], shift[8];
    unpack(packs[i], a);
    unpack(load_pack<T, Vector>(gamma + shape.column(i), shape.valid(i)), scale);
    unpack(load_pack<T, Vector>(beta + shape.column(i), shape.valid(i)), shift);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = (a[j] - mean) * rstd * scale[j] + shift[j];
    store_pack<T, Vector>(out + base + shape.column(i), shape.valid(i), pack_of<T>(a));
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// What the backward pass reads of one row.
template <class T, int Groups>
struct NormRow {
  Pack<T> dout[Groups], dsum[Groups], sum[Groups];
  float mean, rstd;
};

// Pointers of the backward pass; dout and dsum may be NULL.
template <class T>
struct NormInputs {
  const T *dout, *dsum, *sum, *gamma;
  const float *mean, *rstd;
};

template <class T, int Team, int Groups, bool Vector>
__device__ __forceinline__ void load_row(NormRow<T, Groups> &row, const RowShape<Team, Groups, Vector> &shape,
                                         int64_t r, int rows, const NormInputs<T> &in) {
  const int64_t base = r * shape.C;
  const bool inside = r < rows;
  row.mean = inside && in.dout != nullptr ? in.mean[r] : 0.0f;
  row.rstd = inside && in.dout != nullptr ? in.rstd[r] : 0.0f;
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    row.dout[i] = row.dsum[i] = row.sum[i] = zero_pack<T>();
    const int valid = shape.valid(i);
    if (valid == 0 || !inside) continue;
    const int64_t at = base + shape.column(i);
    if (in.dout != nullptr) {
      row.dout[i] = load_pack<T, Vector>(in.dout + at, valid);
      row.sum[i] = load_pack<T, Vector>(in.sum + at, valid);
    }
    if (in.dsum != nullptr) row.dsum[i] = load_pack<T, Vector>(in.dsum + at, valid);
  }
}

// Both sums over a team, the same in all its threads; all threads of the block must call. `scratch` has a place for
// each warp and is not the one of the call before, so that one barrier is enough.
template <int Team>
__device__ __forceinline__ float2 team_sum2(float2 x, float2 *scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const float a = __shfl_xor_sync(0xffffffffu, x.x, offset), b = __shfl_xor_sync(0xffffffffu, x.y, offset);
    x.x += a;
    x.y += b;
  }
  if constexpr (Team > 32) {
    const int team = threadIdx.x / Team, warps = Team / 32;
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < warps; w++) {
      const float2 part = scratch[team * warps + w];
      x.x += part.x;
      x.y += part.y;
    }
  }
  return x;
}

// Adds the teams' column sums in their order and writes the block's partial row: dgamma, then dbeta.
template <int Team, int Groups, bool Vector>
__device__ __forceinline__ void store_norm_partials(float *dgamma, float *dbeta, int64_t stride,
                                                    const RowShape<Team, Groups, Vector> &shape, bool accumulate,
                                                    const float (&scale)[Groups][8], const float (&shift)[Groups][8]) {
  extern __shared__ float4 column_memory[];  // [teams][2][C]
  float *sums = reinterpret_cast<float *>(column_memory);
  const int C = shape.C;
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    if (shape.valid(i) == 0) continue;
    float *at = sums + static_cast<int>(threadIdx.x) / Team * 2 * C + shape.column(i);
    store_pack<float, Vector>(at, shape.valid(i), pack_of<float>(scale[i]));
    store_pack<float, Vector>(at + C, shape.valid(i), pack_of<float>(shift[i]));
  }
  __syncthreads();
  for (int c = threadIdx.x; c < 2 * C; c += norm_threads) {
    float *at = c < C ? dgamma : dbeta;
    if (at == nullptr) continue;
    at += blockIdx.x * stride + (c < C ? c : c - C);
    float x = accumulate ? *at : 0.0f;
#pragma unroll
    for (int t = 0; t < teams<Team>; t++) x += sums[t * 2 * C + c];
    *at = x;
  }
}

template <class T, int Team, int Groups, bool Vector>
__global__ __launch_bounds__(norm_threads, Groups > 1 ? 1 : sizeof(T) == 4 ? 2 : 3) void residual_norm_backward_kernel(
    T *dx, T *dbranch, float *dgamma, float *dbeta, int64_t partial_stride, NormInputs<T> in, int rows, int C,
    DropoutParams params, bool accumulate) {
  __shared__ float2 scratch[2][norm_threads / 32];
  let_dependent_start();
  const RowShape<Team, Groups, Vector> shape(C);
  const Dropout dropout(params);
  const float per_column = 1.0f / C;
  float scale_sum[Groups][8] = {}, shift_sum[Groups][8] = {};
  Pack<T> weight[Groups];
#pragma unroll
  for (int i = 0; i < Groups; i++) {
    weight[i] = zero_pack<T>();
    if (in.dout != nullptr && shape.valid(i) > 0)
      weight[i] = load_pack<T, Vector>(in.gamma + shape.column(i), shape.valid(i));
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * teams<Team>;
  int64_t r = static_cast<int64_t>(blockIdx.x) * teams<Team> + threadIdx.x / Team;
  constexpr bool prefetch = Vector && Groups == 1;  // more would spill
  NormRow<T, Groups> row, next;
  if (prefetch) load_row(next, shape, r, rows, in);
  // The teams of a block go on together, as they meet at barriers: those past the end hold zeros.
  int parity = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams<Team>; first < rows; first += step, r += step) {
    const bool inside = r < rows;
    if constexpr (prefetch) {
      row = next;
      load_row(next, shape, r + step, rows, in);
    } else {
      load_row(row, shape, r, rows, in);
    }
    uint4 random[Groups];  // drawn while the rows are under way
#pragma unroll
    for (int i = 0; i < Groups; i++) random[i] = draw_row_group<Vector>(dropout, r, C, shape.column(i));
    const float offset = -row.mean * row.rstd;
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < Groups; i++) {
      float d[8], s[8], w[8];
      unpack(row.dout[i], d);
      unpack(row.sum[i], s);
      unpack(weight[i], w);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float normed = fmaf(s[j], row.rstd, offset);
        scale_sum[i][j] = fmaf(d[j], normed, scale_sum[i][j]);
        shift_sum[i][j] += d[j];
        sums.x = fmaf(d[j], w[j], sums.x);
        sums.y = fmaf(d[j] * w[j], normed, sums.y);
      }
    }
    sums = team_sum2<Team>(sums, scratch[parity]);
    parity ^= 1;
    if (!inside) continue;
    const float mean_g = sums.x * per_column, mean_gx = sums.y * per_column;
#pragma unroll
    for (int i = 0; i < Groups; i++) {
      const int valid = shape.valid(i);
      if (valid == 0) continue;
      const int64_t at = r * C + shape.column(i);
      float d[8], s[8], w[8], g[8];
      unpack(row.dout[i], d);
      unpack(row.sum[i], s);
      unpack(weight[i], w);
      unpack(row.dsum[i], g);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float normed = fmaf(s[j], row.rstd, offset);
        g[j] = fmaf(row.rstd, fmaf(d[j], w[j], -fmaf(normed, mean_gx, mean_g)), g[j]);
      }
      store_pack<T, Vector>(dx + at, valid, pack_of<T>(g));
      if (dbranch == nullptr) continue;
      drop_drawn<Vector>(dropout, random[i], r, C, shape.column(i), g);
      store_pack<T, Vector>(dbranch + at, valid, pack_of<T>(g));
    }
  }
  if (dgamma != nullptr || dbeta != nullptr) {
    store_norm_partials(dgamma, dbeta, partial_stride, shape, accumulate, scale_sum, shift_sum);
  }
}

constexpr int most_columns = 8192;  // the whole block on a row, four groups a thread

// Calls f(team, groups, vector) with the compile-time shape that fits rows of C.
template <int Value>
struct Int {
  static constexpr int value = Value;
};
template <class F>
fa_status forward_shape(int C, F &&f) {
  if (C % 8 != 0) return f(Int<256>{}, Int<4>{}, Bool<false>{});
  if (C <= 256) return f(Int<32>{}, Int<1>{}, Bool<true>{});
  if (C <= 512) return f(Int<32>{}, Int<2>{}, Bool<true>{});
  if (C <= 1024) return f(Int<32>{}, Int<4>{}, Bool<true>{});
  return f(Int<256>{}, Int<4>{}, Bool<true>{});
}
int forward_teams(int C) { return C % 8 == 0 && C <= 1024 ? 8 : 1; }

// The backward pass keeps column sums as well: one group a thread, and more threads on a row. The last form, for any C,
// is the slow one: rows that long are not what this library is for.
template <class F>
fa_status backward_shape(int C, F &&f) {
  if (C % 8 != 0 || C > 2048) return f(Int<256>{}, Int<4>{}, Bool<false>{});
  if (C <= 256) return f(Int<32>{}, Int<1>{}, Bool<true>{});
  if (C <= 512) return f(Int<64>{}, Int<1>{}, Bool<true>{});
  if (C <= 1024) return f(Int<128>{}, Int<1>{}, Bool<true>{});
  return f(Int<256>{}, Int<1>{}, Bool<true>{});
}
int backward_teams(int C) { return C % 8 != 0 || C > 1024 ? 1 : C > 512 ? 2 : C > 256 ? 4 : 8; }

int norm_backward_blocks(const fa_ctx *ctx, int64_t rows, int C) {
  const int64_t wanted = ceil_div(rows, backward_teams(C) * int64_t{4});
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(wanted, 3 * int64_t{ctx->sm_count})));
}

fa_status check_norm(fa_ctx *ctx, int32_t rows, int32_t C, int32_t dtype, float dropout, const uint64_t *rng) {
  FA_TRY(check_range(ctx, rows, 0, INT32_MAX, "rows"));
  FA_TRY(check_range(ctx, C, 1, INT32_MAX, "C"));
  if (C > most_columns) return fail(ctx, FA_UNSUPPORTED, "C must be at most %d: current value is %d", most_columns, C);
  FA_TRY(check_dtype(ctx, dtype, true));
  return check_dropout(ctx, dropout, rng);
}

}  // namespace

int64_t norm_backward_bytes(const fa_ctx *ctx, int64_t rows, int64_t C) {
  if (C < 1 || C > most_columns) return 0;
  return partial_bytes(norm_backward_blocks(ctx, rows, static_cast<int>(C)), C, 2);
}

}  // namespace fa

using fa::check_optional;
using fa::check_pointer;

extern "C" FA_EXPORT fa_status fa_residual_norm_forward(fa_ctx *ctx, void *sum, void *out, float *mean, float *rstd,
                                                        const void *x, const void *branch, const void *gamma,
                                                        const void *beta, int32_t rows, int32_t C, float eps,
                                                        float dropout, const uint64_t *rng, uint32_t site,
                                                        int32_t dtype) {
  return fa::entry(ctx, "fa_residual_norm_forward", [&]() -> fa_status {
    FA_TRY(fa::check_norm(ctx, rows, C, dtype, dropout, rng));
    if (rows == 0) return FA_OK;
    FA_TRY(check_pointer(ctx, x, "x"));
    FA_TRY(check_optional(ctx, branch, "branch"));
    if (branch != nullptr || out == nullptr) FA_TRY(check_pointer(ctx, sum, "sum"));
    FA_TRY(check_optional(ctx, sum, "sum"));
    FA_TRY(check_optional(ctx, out, "out"));
    if (out != nullptr) {
      FA_TRY(check_pointer(ctx, gamma, "gamma"));
      FA_TRY(check_pointer(ctx, beta, "beta"));
      FA_TRY(check_optional(ctx, mean, "mean", 4));
      FA_TRY(check_optional(ctx, rstd, "rstd", 4));
    }
    const fa::DropoutParams params = fa::dropout_params(dropout, rng, site);
    const unsigned grid = static_cast<unsigned>(fa::ceil_div(rows, fa::forward_teams(C)));
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::forward_shape(C, [&](auto team, auto groups, auto vector) {
        fa::residual_norm_forward_kernel<T, decltype(team)::value, decltype(groups)::value, decltype(vector)::value>
            <<<grid, fa::norm_threads, 0, ctx->stream>>>(static_cast<T *>(sum), static_cast<T *>(out), mean, rstd,
                                                         static_cast<const T *>(x), static_cast<const T *>(branch),
                                                         static_cast<const T *>(gamma), static_cast<const T *>(beta),
                                                         rows, C, eps, params);
        return FA_LAUNCHED(ctx, "residual_norm_forward_kernel");
      });
    });
  });
}

extern "C" FA_EXPORT fa_status fa_residual_norm_backward(fa_ctx *ctx, void *dx, void *dbranch, float *dgamma,
                                                         float *dbeta, const void *dout, const void *dsum,
                                                         const void *sum, const float *mean, const float *rstd,
                                                         const void *gamma, int32_t rows, int32_t C, float dropout,
                                                         const uint64_t *rng, uint32_t site, int32_t dtype,
                                                         int32_t accumulate, void *workspace, int64_t workspace_bytes) {
  return fa::entry(ctx, "fa_residual_norm_backward", [&]() -> fa_status {
    FA_TRY(fa::check_norm(ctx, rows, C, dtype, dropout, rng));
    if (rows > 0) {
      FA_TRY(check_pointer(ctx, dx, "dx"));
      FA_TRY(check_optional(ctx, dbranch, "dbranch"));
      FA_TRY(check_optional(ctx, dsum, "dsum"));
      if (dout != nullptr) {
        FA_TRY(check_pointer(ctx, dout, "dout"));
        FA_TRY(check_pointer(ctx, sum, "sum"));
        FA_TRY(check_pointer(ctx, gamma, "gamma"));
        FA_TRY(check_pointer(ctx, mean, "mean", 4));
        FA_TRY(check_pointer(ctx, rstd, "rstd", 4));
      }
    }
    FA_TRY(check_optional(ctx, dgamma, "dgamma", 4));
    FA_TRY(check_optional(ctx, dbeta, "dbeta", 4));
    const bool sums = dgamma != nullptr || dbeta != nullptr;
    const int blocks = fa::norm_backward_blocks(ctx, rows, C);
    const bool direct = blocks == 1;
    if (sums) FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, fa::partial_bytes(blocks, C, 2)));
    if (rows == 0 && !sums) return FA_OK;
    float *partial = static_cast<float *>(workspace);
    float *scale_out = dgamma == nullptr || direct ? dgamma : partial;
    float *shift_out = dbeta == nullptr || direct ? dbeta : partial + C;
    const fa::DropoutParams params = fa::dropout_params(dropout, rng, site);
    const size_t shared = sums ? 2 * static_cast<size_t>(C) * sizeof(float) * fa::backward_teams(C) : 0;
    FA_TRY(fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::backward_shape(C, [&](auto team, auto groups, auto vector) -> fa_status {
        constexpr auto kernel = fa::residual_norm_backward_kernel<T, decltype(team)::value, decltype(groups)::value,
                                                                  decltype(vector)::value>;
        FA_TRY(fa::allow_shared(ctx, kernel, shared));
        const fa::NormInputs<T> in{static_cast<const T *>(dout),
                                   static_cast<const T *>(dsum),
                                   static_cast<const T *>(sum),
                                   static_cast<const T *>(gamma),
                                   mean,
                                   rstd};
        kernel<<<blocks, fa::norm_threads, shared, ctx->stream>>>(
            static_cast<T *>(dx), static_cast<T *>(dbranch), scale_out, shift_out, int64_t{2} * C, in, rows, C, params,
            direct && accumulate != 0);
        return FA_LAUNCHED(ctx, "residual_norm_backward_kernel");
      });
    }));
    if (direct || !sums) return FA_OK;
    return fa::add_partials(ctx, dgamma, dbeta, 2, partial, blocks, C, accumulate != 0);
  });
}
