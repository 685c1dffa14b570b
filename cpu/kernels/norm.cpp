// Embedding, and layer norm with the residual sum before it (Ba et al. 2016).
#include <string.h>

#include "dropout.hpp"
#include "ops.hpp"
#include "rows.hpp"

namespace FA_ISA {
namespace {

FA_INLINE int part_of(int32_t C, int32_t c) { return C - c < PHILOX_ELEMENTS ? C - c : PHILOX_ELEMENTS; }

}  // namespace

void embedding_forward(const fa::Embedding &e) {
  Mask mask = make_mask(e.dropout);
  int threads = threads_for((double)e.rows * e.C);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < e.rows; r++) {
    int32_t id = e.ids[r], position = e.positions ? e.pos[r] : -1;
    const float *row = id >= 0 && id < e.V ? e.table + (int64_t)id * e.C : nullptr;
    const float *place = position >= 0 && position < e.P ? e.positions + (int64_t)position * e.C : nullptr;
    float *out = e.out + r * e.C;
    if (row) {
#pragma omp simd
      for (int32_t c = 0; c < e.C; c++) out[c] = row[c] * e.scale;
    } else {
      memset(out, 0, (size_t)e.C * 4);
    }
    if (place) {
#pragma omp simd
      for (int32_t c = 0; c < e.C; c++) out[c] += place[c];
    }
    for (int32_t c = 0; mask.on && c < e.C; c += PHILOX_ELEMENTS) {
      float factors[PHILOX_ELEMENTS];
      int count = part_of(e.C, c);
      dropout_factors(mask, (uint64_t)(r * e.C + c), count, factors);
#pragma omp simd
      for (int i = 0; i < count; i++) out[c + i] *= factors[i];
    }
  }
}

void embedding_backward(const fa::Embedding &e) {
  Mask mask = make_mask(e.dropout);
  int threads = threads_for((double)e.rows * e.C);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    if (!e.accumulate) {
#pragma omp for schedule(static)
      for (int64_t id = 0; id < e.V; id++) memset(e.dtable + id * e.C, 0, (size_t)e.C * 4);
    }
    // A table row belongs to one thread, which adds in the order of the rows; hashed, as frequent ids lie together.
    uint32_t team = (uint32_t)omp_get_num_threads(), me = (uint32_t)omp_get_thread_num();
    for (int64_t r = 0; r < e.rows; r++) {
      int32_t id = e.ids[r];
      if (id < 0 || id >= e.V || id == e.skip_id || ((uint32_t)id * 0x9E3779B1u >> 16) % team != me) continue;
      const float *from = e.dout + r * e.C;
      float *to = e.dtable + (int64_t)id * e.C;
      for (int32_t c = 0; c < e.C; c += PHILOX_ELEMENTS) {
        float factors[PHILOX_ELEMENTS];
        int count = part_of(e.C, c);
        if (mask.on) dropout_factors(mask, (uint64_t)(r * e.C + c), count, factors);
#pragma omp simd
        for (int i = 0; i < count; i++) to[c + i] += from[c + i] * (mask.on ? factors[i] * e.scale : e.scale);
      }
    }
  }
}

namespace {

/// to = x + dropout(branch) of row r; both may be the same memory.
FA_INLINE void residual_row(const fa::ResidualNorm &n, const Mask &mask, int64_t r, float *to) {
  const float *x = n.x + r * n.C, *branch = n.branch + r * n.C;
  for (int32_t c = 0; c < n.C; c += PHILOX_ELEMENTS) {
    float factors[PHILOX_ELEMENTS];
    int count = part_of(n.C, c);
    if (mask.on) {
      dropout_factors(mask, (uint64_t)(r * n.C + c), count, factors);
#pragma omp simd
      for (int i = 0; i < count; i++) to[c + i] = x[c + i] + branch[c + i] * factors[i];
    } else {
#pragma omp simd
      for (int i = 0; i < count; i++) to[c + i] = x[c + i] + branch[c + i];
    }
  }
}

FA_INLINE float row_sum(const float *x, int32_t C) {
  vf total{};
  int32_t c = 0;
  for (; c + W <= C; c += W) total += load(x + c);
  float sum = hsum(total);
  for (; c < C; c++) sum += x[c];
  return sum;
}

FA_INLINE float row_squares(const float *x, float mean, int32_t C) {
  vf total{};
  int32_t c = 0;
  for (; c + W <= C; c += W) {
    vf d = load(x + c) - mean;
    total += d * d;
  }
  float sum = hsum(total);
  for (; c < C; c++) sum += (x[c] - mean) * (x[c] - mean);
  return sum;
}

}  // namespace

void residual_norm_forward(const fa::ResidualNorm &n) {
  Mask mask = make_mask(n.dropout);
  int threads = threads_for((double)n.rows * n.C);
  int32_t C = n.C;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < n.rows; r++) {
    const float *x = n.x + r * C;
    if (n.branch) {
      residual_row(n, mask, r, n.sum + r * C);
      x = n.sum + r * C;
    } else if (n.sum && n.sum != n.x) {
      memcpy(n.sum + r * C, x, (size_t)C * 4);
    }
    if (!n.out) continue;
    float mean = row_sum(x, C) / (float)C;
    float rstd = 1 / __builtin_sqrtf(row_squares(x, mean, C) / (float)C + n.eps);
    n.mean[r] = mean;
    n.rstd[r] = rstd;
    float *out = n.out + r * C;
    const float *gamma = n.gamma, *beta = n.beta;
#pragma omp simd
    for (int32_t c = 0; c < C; c++) out[c] = (x[c] - mean) * rstd * gamma[c] + beta[c];
  }
}

namespace {

/// The two row means of the layer norm's gradient: of g = dout * gamma, and of g * normalised.
FA_INLINE void gradient_means(const float *dout, const float *gamma, const float *x, float mean, float rstd, int32_t C,
                              float *mean_g, float *mean_gx) {
  vf total{}, total_x{};
  int32_t c = 0;
  for (; c + W <= C; c += W) {
    vf g = load(dout + c) * load(gamma + c);
    total += g;
    total_x += g * ((load(x + c) - mean) * rstd);
  }
  float sum = hsum(total), sum_x = hsum(total_x);
  for (; c < C; c++) {
    float g = dout[c] * gamma[c];
    sum += g;
    sum_x += g * ((x[c] - mean) * rstd);
  }
  *mean_g = sum / (float)C;
  *mean_gx = sum_x / (float)C;
}

/// dx of row r, and the row's share of dgamma and dbeta (NULL: not wanted).
FA_INLINE void norm_gradient_row(const fa::ResidualNormGrad &n, int64_t r, float *dgamma, float *dbeta) {
  int32_t C = n.C;
  const float *dout = n.dout + r * C, *x = n.sum + r * C, *gamma = n.gamma;
  const float *dsum = n.dsum ? n.dsum + r * C : nullptr;
  float *dx = n.dx + r * C;
  float mean = n.mean[r], rstd = n.rstd[r], mean_g, mean_gx;
  gradient_means(dout, gamma, x, mean, rstd, C, &mean_g, &mean_gx);
  if (dgamma) {
#pragma omp simd
    for (int32_t c = 0; c < C; c++) {
      dgamma[c] += dout[c] * ((x[c] - mean) * rstd);
      dbeta[c] += dout[c];
    }
  }
#pragma omp simd
  for (int32_t c = 0; c < C; c++) {
    float g = rstd * (dout[c] * gamma[c] - mean_g - (x[c] - mean) * rstd * mean_gx);
    dx[c] = dsum ? dsum[c] + g : g;
  }
}

FA_INLINE void branch_gradient_row(const fa::ResidualNormGrad &n, const Mask &mask, int64_t r) {
  const float *dx = n.dx + r * n.C;
  float *dbranch = n.dbranch + r * n.C;
  for (int32_t c = 0; c < n.C; c += PHILOX_ELEMENTS) {
    float factors[PHILOX_ELEMENTS];
    int count = part_of(n.C, c);
    dropout_factors(mask, (uint64_t)(r * n.C + c), count, factors);
#pragma omp simd
    for (int i = 0; i < count; i++) dbranch[c + i] = dx[c + i] * factors[i];
  }
}

}  // namespace

void residual_norm_backward(const fa::ResidualNormGrad &n) {
  Mask mask = make_mask(n.dropout);
  int32_t C = n.C;
  RowParts parts(n.rows);
  bool sums = n.dgamma || n.dbeta;
  int threads = threads_for((double)n.rows * C);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < parts.count; part++) {
    float *dgamma = sums ? n.workspace + (int64_t)part * 2 * C : nullptr;
    if (sums) memset(dgamma, 0, (size_t)C * 8);
    for (int64_t r = parts.first(part); r < parts.last(part); r++) {
      float *dx = n.dx + r * C;
      if (n.dout) {
        norm_gradient_row(n, r, dgamma, dgamma + C);
      } else if (!n.dsum) {
        memset(dx, 0, (size_t)C * 4);
      } else if (n.dsum != n.dx) {
        memcpy(dx, n.dsum + r * C, (size_t)C * 4);
      }
      if (!n.dbranch) continue;
      if (mask.on) {
        branch_gradient_row(n, mask, r);
      } else if (n.dbranch != n.dx) {
        memcpy(n.dbranch + r * C, dx, (size_t)C * 4);
      }
    }
  }
  if (n.dgamma) add_parts(n.dgamma, n.workspace, parts.count, 2 * (int64_t)C, C, n.accumulate);
  if (n.dbeta) add_parts(n.dbeta, n.workspace + C, parts.count, 2 * (int64_t)C, C, n.accumulate);
}

}  // namespace FA_ISA
