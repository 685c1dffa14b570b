// Sums over rows and over whole buffers. Work is cut by the shape alone, and the parts are added in their order: the
// result does not depend on the number of threads.
#include <math.h>
#include <string.h>

#include "ops.hpp"
#include "rows.hpp"

namespace FA_ISA {

void column_sum(float *out, const float *x, int32_t rows, int32_t n, int64_t stride, int32_t accumulate,
                float *workspace) {
  RowParts parts(rows);
  int threads = threads_for((double)rows * n / 4);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < parts.count; part++) {
    float *sums = workspace + (int64_t)part * n;
    memset(sums, 0, (size_t)n * 4);
    for (int64_t r = parts.first(part); r < parts.last(part); r++) {
      const float *row = x + r * stride;
#pragma omp simd
      for (int32_t c = 0; c < n; c++) sums[c] += row[c];
    }
  }
  add_parts(out, workspace, parts.count, n, n, accumulate);
}

void bias_relu_dropout_backward(float *dx, float *dbias, const float *dy, const float *y, int32_t rows, int32_t n,
                                float scale, int32_t accumulate, float *workspace) {
  RowParts parts(rows);
  int threads = threads_for((double)rows * n / 2);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < parts.count; part++) {
    float *sums = dbias ? workspace + (int64_t)part * n : nullptr;
    if (sums) memset(sums, 0, (size_t)n * 4);
    for (int64_t at = parts.first(part) * n; at < parts.last(part) * n; at += n) {
#pragma omp simd
      for (int32_t c = 0; c < n; c++) dx[at + c] = y[at + c] > 0 ? dy[at + c] * scale : 0;
      if (!sums) continue;
#pragma omp simd
      for (int32_t c = 0; c < n; c++) sums[c] += dx[at + c];
    }
  }
  if (dbias) add_parts(dbias, workspace, parts.count, n, n, accumulate);
}

namespace {

constexpr int PARTS = 64;
constexpr int LANES = 16;  // running sums of a part, the same for every instruction set

/// The sum of f(x[i]) in double precision, in PARTS parts.
template <class F>
FA_INLINE double sum_of(const float *x, int64_t n, F f) {
  double totals[PARTS] = {};
  int64_t size = (n + PARTS - 1) / PARTS;
  int threads = threads_for((double)n / 4);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < PARTS; part++) {
    int64_t i = part * size, end = i + size < n ? i + size : n;
    double lanes[LANES] = {};
    for (; i + LANES <= end; i += LANES) {
      for (int l = 0; l < LANES; l++) lanes[l] += f((double)x[i + l]);
    }
    double total = 0;
    for (; i < end; i++) total += f((double)x[i]);
    for (int l = 0; l < LANES; l++) total += lanes[l];
    totals[part] = total;
  }
  double total = 0;
  for (int part = 0; part < PARTS; part++) total += totals[part];
  return total;
}

}  // namespace

void sum(float *out, const float *x, int64_t n, int32_t accumulate) {
  double total = sum_of(x, n, [](double v) { return v; });
  out[0] = (float)(accumulate ? out[0] + total : total);
}

void grad_norm(float *norm, const float *grad, int64_t n, float max_norm) {
  double value = __builtin_sqrt(sum_of(grad, n, [](double v) { return v * v; }));
  norm[0] = (float)value;
  norm[1] = !__builtin_isfinite(norm[0]) ? 0 : max_norm > 0 && value > max_norm ? (float)(max_norm / value) : 1;
}

}  // namespace FA_ISA
