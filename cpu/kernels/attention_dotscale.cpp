// dotscale: attention as its formula reads. The whole N x M matrix lies in memory, and each step is a pass of its own
// over it: scores, softmax, values; backward: values, softmax, queries, keys. P stays in `saved`, before dropout.

#include <math.h>

#include "attention_tiles.hpp"

namespace FA_ISA {

namespace {

/// Row i of the N x M matrix of head h of sequence b.
inline float *matrix_row(void *matrix, const fa_attention_args &a, int b, int h, int i) {
  return (float *)matrix + (((int64_t)b * a.H + h) * a.max_q + i) * a.max_k;
}

/// Calls body(sequence, b, h, first) for the blocks of `step` rows (of queries, or of keys) of every head.
template <class Body>
void for_blocks(const fa_attention_args &a, int longest, int step, int products, const Body &body) {
  const int blocks = ceil_div(longest, step);
  for_items((int64_t)a.B * a.H * blocks, work_of(a, products), [&](int64_t t) {
    const int64_t plane = t / blocks;
    const int b = (int)(plane / a.H), h = (int)(plane % a.H);
    body(sequence_of(a, b), b, h, (int)(t % blocks) * step);
  });
}

inline void copy_row(float *to, const float *from, int n) {
  for (int i = 0; i < n; i++) to[i] = from[i];
}

/// matrix = x y^T * scale, for x of queries and y of the keys that count (q and k, or dout and v), with dropout where
/// given.
void times_transposed(const fa_attention_args &a, const void *x, int64_t x_stride, const void *y, int64_t y_stride,
                      float scale, void *matrix, const ScoreDropout &dropout) {
  for_blocks(a, longest_k(a), LANES, 1, [&](const Sequence &s, int b, int h, int j0) {
    if (j0 >= s.keys) return;
    alignas(64) float yt[MAX_D * LANES], tile[TILE_ROWS * LANES], drop[TILE_ROWS * LANES];
    const int nj = imin(s.keys - j0, LANES), vectors = ceil_div(nj, W);
    transpose_in(row_at(y, y_stride, s.k0 + j0, h, a.D), y_stride, nj, a.D, scale, yt);
    for (int i0 = 0; i0 < s.n; i0 += TILE_ROWS) {
      const int rows = imin(s.n - i0, TILE_ROWS);
      const float *from = row_at(x, x_stride, s.q0 + i0, h, a.D);
      product<false>(rows, vectors, a.D, from, x_stride, yt, LANES, tile, LANES, false);
      if (dropout) {
        dropout_tile<false>(dropout, (uint32_t)(b * a.H + h), i0, rows, j0, nj, drop);
        for (int r = 0; r < rows; r++) {
          for (int l = 0; l < nj; l++) tile[r * LANES + l] *= drop[r * LANES + l];
        }
      }
      for (int r = 0; r < rows; r++) copy_row(matrix_row(matrix, a, b, h, i0 + r) + j0, tile + r * LANES, nj);
    }
  });
}

/// Softmax over the first `limit` of m scores, 0 in the others. Returns the log-sum-exp.
float softmax_row(float *x, int limit, int m) {
  const float none = -__builtin_inff();
  vf tops = splat(none), sums = {};
  int j = 0;
  for (; j + W <= limit; j += W) tops = vmax(tops, load(x + j));
  if (j < limit) tops = vmax(tops, load_part(x + j, limit - j, none));
  const float top = hmax(tops), base = top == none ? 0 : top;
  for (j = 0; j < limit; j += W) {
    const int n = imin(limit - j, W);
    vf p = exp_below((n == W ? load(x + j) : load_part(x + j, n, none)) - base);
    sums += p;
    if (n == W) {
      store(x + j, p);
    } else {
      store_part(x + j, p, n);
    }
  }
  const float sum = hsum(sums), inverse = sum > 0 ? 1 / sum : 0;
  for (j = 0; j < limit; j++) x[j] *= inverse;
  for (j = limit; j < m; j++) x[j] = 0;
  return sum > 0 ? base + logf(sum) : none;
}

/// Rows out = matrix y * scale, for y of keys; with dropout of the matrix where it is given.
void times_rows(const fa_attention_args &a, void *matrix, const void *y, int64_t y_stride, float scale, void *out,
                int64_t out_stride, const ScoreDropout &dropout) {
  for_blocks(a, longest_q(a), TILE_ROWS, 1, [&](const Sequence &s, int b, int h, int i0) {
    if (i0 >= s.n) return;
    alignas(64) float packed[LANES * MAX_D], tile[TILE_ROWS * LANES], drop[TILE_ROWS * LANES], sum[TILE_ROWS * MAX_D];
    const int rows = imin(s.n - i0, TILE_ROWS), pitch = padded(a.D);
    fill_row(sum, rows * pitch, 0);
    for (int j0 = 0; j0 < s.keys; j0 += LANES) {
      const int nj = imin(s.keys - j0, LANES);
      pack_rows(row_at(y, y_stride, s.k0 + j0, h, a.D), y_stride, nj, a.D, packed);
      const float *p = matrix_row(matrix, a, b, h, i0) + j0;
      if (dropout) {
        dropout_tile<false>(dropout, (uint32_t)(b * a.H + h), i0, rows, j0, nj, drop);
        for (int r = 0; r < rows; r++) {
          for (int l = 0; l < nj; l++) tile[r * LANES + l] = p[(int64_t)r * a.max_k + l] * drop[r * LANES + l];
        }
        product<false>(rows, pitch / W, nj, tile, LANES, packed, pitch, sum, pitch, true);
      } else {
        product<false>(rows, pitch / W, nj, p, a.max_k, packed, pitch, sum, pitch, true);
      }
    }
    for (int r = 0; r < rows; r++) {
      float *to = row_at(out, out_stride, s.q0 + i0 + r, h, a.D);
      for (int d = 0; d < a.D; d++) to[d] = sum[r * pitch + d] * scale;
    }
  });
}

/// Rows out = matrix^T x * scale, for x of queries; with dropout of the matrix where it is given.
void transposed_times_rows(const fa_attention_args &a, void *matrix, const void *x, int64_t x_stride, float scale,
                           void *out, int64_t out_stride, const ScoreDropout &dropout) {
  for_blocks(a, longest_k(a), LANES, 1, [&](const Sequence &s, int b, int h, int j0) {
    if (j0 >= s.m) return;
    alignas(64) float sum[MAX_D * LANES], tile[TILE_ROWS * LANES], drop[TILE_ROWS * LANES];
    const int nj = imin(s.m - j0, LANES), vectors = ceil_div(nj, W);
    fill_row(sum, a.D * LANES, 0);
    for (int i0 = 0; i0 < s.n; i0 += TILE_ROWS) {
      const int rows = imin(s.n - i0, TILE_ROWS);
      if (dropout) dropout_tile<false>(dropout, (uint32_t)(b * a.H + h), i0, rows, j0, nj, drop);
      for (int r = 0; r < rows; r++) {
        copy_row(tile + r * LANES, matrix_row(matrix, a, b, h, i0 + r) + j0, nj);
        fill_row(tile + r * LANES + nj, vectors * W - nj, 0);
        for (int l = 0; dropout && l < nj; l++) tile[r * LANES + l] *= drop[r * LANES + l];
      }
      const float *from = row_at(x, x_stride, s.q0 + i0, h, a.D);
      product<true>(a.D, vectors, rows, from, x_stride, tile, LANES, sum, LANES, true);
    }
    transpose_out(sum, nj, a.D, scale, row_at(out, out_stride, s.k0 + j0, h, a.D), out_stride);
  });
}

/// dS = P (dP - sum of P dP), in place of dP.
void softmax_backward_row(float *dp, const float *p, int limit, int m) {
  vf sums = {};
  int j = 0;
  for (; j + W <= limit; j += W) sums += load(dp + j) * load(p + j);
  if (j < limit) sums += load_part(dp + j, limit - j) * load_part(p + j, limit - j);
  const float sum = hsum(sums);
  for (j = 0; j < limit; j++) dp[j] = p[j] * (dp[j] - sum);
  for (j = limit; j < m; j++) dp[j] = 0;
}

}  // namespace

void dotscale_forward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a), none = {{0, 0}, 0, 0, 1};
  times_transposed(a, a.q, a.q_stride, a.k, a.k_stride, a.scale, a.saved, none);
  for_blocks(a, longest_q(a), TILE_ROWS, 1, [&](const Sequence &s, int b, int h, int i0) {
    for (int i = i0; i < imin(i0 + TILE_ROWS, s.n); i++) {
      a.lse[(int64_t)h * a.rows_q + s.q0 + i] = softmax_row(matrix_row(a.saved, a, b, h, i), s.limit(i), s.m);
    }
  });
  times_rows(a, a.saved, a.v, a.v_stride, 1, a.out, a.out_stride, dropout);
}

void dotscale_backward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a), none = {{0, 0}, 0, 0, 1};
  transposed_times_rows(a, a.saved, a.dout, a.dout_stride, 1, a.dv, a.dv_stride, dropout);
  times_transposed(a, a.dout, a.dout_stride, a.v, a.v_stride, 1, a.workspace, dropout);
  for_blocks(a, longest_q(a), TILE_ROWS, 1, [&](const Sequence &s, int b, int h, int i0) {
    for (int i = i0; i < imin(i0 + TILE_ROWS, s.n); i++) {
      softmax_backward_row(matrix_row(a.workspace, a, b, h, i), matrix_row(a.saved, a, b, h, i), s.limit(i), s.m);
    }
  });
  times_rows(a, a.workspace, a.k, a.k_stride, a.scale, a.dq, a.dq_stride, none);
  transposed_times_rows(a, a.workspace, a.q, a.q_stride, a.scale, a.dk, a.dk_stride, none);
}

}  // namespace FA_ISA
