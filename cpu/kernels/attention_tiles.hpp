// Tile arithmetic of the attention kernels: the block product in registers, transposed copies in and out, masks.
//
// Every product has the form C [rows, lanes] += A [rows, depth] B [depth, lanes]. A is read in place, one number at a
// time (any row stride, transposed or not), so that K, V, Q and dO need no copy on that side; B and C are tiles.
#pragma once

#include <stddef.h>

#include "attention_common.hpp"

namespace FA_ISA {

#if defined(__AVX512F__)
constexpr int BLOCK_ROWS = 8;  // 8 x 3 sums, 3 vectors of B: 27 of 32 registers, A from memory
#else
constexpr int BLOCK_ROWS = 4;  // 4 x 3 sums of 16 registers
#endif

/// e^x for x <= 0 (or little above), 0 below -86: vexp without what it does for large x.
FA_INLINE vf exp_below(vf x) {
  const vf low = splat(-86.f);
  vi n;
  const vf p = exp_parts(x < low ? low : x, n);
  const vf y = p * (vf)((n + 127) << 23);
  return x < low ? splat(0.f) : y;
}

/// R rows by N vectors of C, kept in registers over the whole depth.
template <int N, int R, bool TransA>
FA_INLINE void product_block(int depth, const float *__restrict a, ptrdiff_t lda, const float *__restrict b, int ldb,
                             float *__restrict c, int ldc, bool add) {
  vf sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) sum[r][n] = vf{};
  }
  for (int k = 0; k < depth; k++) {
    vf row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) row[n] = load(b + (ptrdiff_t)k * ldb + n * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float x = TransA ? a[k * lda + r] : a[r * lda + k];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sum[r][n] += x * row[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      float *out = c + r * ldc + n * W;
      store(out, add ? load(out) + sum[r][n] : sum[r][n]);
    }
  }
}

template <int N, bool TransA>
static inline void product_panel(int rows, int depth, const float *a, ptrdiff_t lda, const float *b, int ldb, float *c,
                                 int ldc, bool add) {
  const ptrdiff_t step = TransA ? 1 : lda;
  int r = 0;
  for (; r + BLOCK_ROWS <= rows; r += BLOCK_ROWS) {
    product_block<N, BLOCK_ROWS, TransA>(depth, a + r * step, lda, b, ldb, c + r * ldc, ldc, add);
  }
  if (BLOCK_ROWS > 4 && r + 4 <= rows) {
    product_block<N, 4, TransA>(depth, a + r * step, lda, b, ldb, c + r * ldc, ldc, add);
    r += 4;
  }
  for (; r < rows; r++) product_block<N, 1, TransA>(depth, a + r * step, lda, b, ldb, c + r * ldc, ldc, add);
}

/// C [rows, vectors * W] = (add: +=) A [rows, depth] B. A is a [rows, lda], or the transpose of a [depth, lda].
template <bool TransA>
static inline void product(int rows, int vectors, int depth, const float *a, ptrdiff_t lda, const float *b, int ldb,
                           float *c, int ldc, bool add) {
  while (vectors > 0) {
    int n = vectors == 4 ? 2 : imin(vectors, 3);
    if (n == 3) {
      product_panel<3, TransA>(rows, depth, a, lda, b, ldb, c, ldc, add);
    } else if (n == 2) {
      product_panel<2, TransA>(rows, depth, a, lda, b, ldb, c, ldc, add);
    } else {
      product_panel<1, TransA>(rows, depth, a, lda, b, ldb, c, ldc, add);
    }
    vectors -= n;
    b += n * W;
    c += n * W;
  }
}

/// tile [D][LANES] = the transpose of `rows` rows of D, times scale; lanes from `rows` up to whole vectors are 0.
static inline void transpose_in(const float *x, int64_t stride, int rows, int D, float scale, float *tile) {
  for (int r = 0; r < rows; r++) {
    const float *from = x + r * stride;
    for (int d = 0; d < D; d++) tile[d * LANES + r] = from[d] * scale;
  }
  int end = ceil_div(rows, W) * W;
  for (int d = 0; d < D; d++) {
    for (int r = rows; r < end; r++) tile[d * LANES + r] = 0;
  }
}

/// `rows` rows of D = the transpose of tile [D][LANES], times scale.
static inline void transpose_out(const float *tile, int rows, int D, float scale, float *x, int64_t stride) {
  for (int r = 0; r < rows; r++) {
    float *to = x + r * stride;
    for (int d = 0; d < D; d++) to[d] = tile[d * LANES + r] * scale;
  }
}

/// Pitch of rows of D that whole vectors can read.
FA_INLINE int padded(int D) { return ceil_div(D, W) * W; }

/// packed [rows][padded(D)] = rows of D, 0 behind them.
static inline void pack_rows(const float *x, int64_t stride, int rows, int D, float *packed) {
  int pitch = padded(D);
  for (int r = 0; r < rows; r++) {
    for (int d = 0; d < D; d++) packed[r * pitch + d] = x[r * stride + d];
    for (int d = D; d < pitch; d++) packed[r * pitch + d] = 0;
  }
}

/// Scores whose lanes are queries i0 ..: -inf where key j0 + row is not seen.
static inline void mask_query_lanes(const Sequence &s, int i0, int ni, int j0, int rows, float *tile) {
  if (s.limit(i0) >= j0 + rows) return;
  alignas(64) int32_t limit[LANES];
  for (int lane = 0; lane < LANES; lane++) limit[lane] = s.limit(i0 + imin(lane, ni - 1)) - j0;
  for (int v = 0; v < ni; v += W) {
    vi limits;
    memcpy(&limits, limit + v, sizeof limits);
    for (int r = 0; r < rows; r++) {
      float *at = tile + r * LANES + v;
      store(at, limits > r ? load(at) : splat(-__builtin_inff()));
    }
  }
}

/// Scores whose lanes are keys j0 .. and whose rows are queries i0 ..: -inf where not seen, and in the lanes behind the
/// keys.
static inline void mask_key_lanes(const Sequence &s, int i0, int rows, int j0, int vectors, float *tile) {
  if (s.limit(i0) >= j0 + vectors * W) return;
  alignas(64) int32_t lane[LANES];
  for (int l = 0; l < LANES; l++) lane[l] = j0 + l;
  for (int v = 0; v < vectors; v++) {
    vi keys;
    memcpy(&keys, lane + v * W, sizeof keys);
    for (int r = 0; r < rows; r++) {
      float *at = tile + r * LANES + v * W;
      store(at, keys < s.limit(i0 + r) ? load(at) : splat(-__builtin_inff()));
    }
  }
}

/// What the backward pass knows of a row: lse (0 where no key is seen: all its scores are masked) and delta.
FA_INLINE float finite_lse(float lse) { return lse == -__builtin_inff() ? 0.f : lse; }

/// One block of keys in the backward pass, keys along the lanes.
struct KeyBlock {
  alignas(64) float kt[MAX_D * LANES];   // K^T * scale
  alignas(64) float vt[MAX_D * LANES];   // V^T
  alignas(64) float dkt[MAX_D * LANES];  // dK^T / scale
  alignas(64) float dvt[MAX_D * LANES];
  alignas(64) float p[TILE_ROWS * LANES];   // scores, then probabilities after dropout
  alignas(64) float ds[TILE_ROWS * LANES];  // gradients of the probabilities, then of the scores
  alignas(64) float drop[TILE_ROWS * LANES];
  int j0, nj, vectors;  // keys j0 .. j0 + nj count; none after them is read
  int written;          // keys whose gradients this block writes

  void open(const fa_attention_args &a, const Sequence &s, int h, int first) {
    j0 = first;
    nj = imax(imin(s.keys - first, LANES), 0);
    written = imin(s.m - first, LANES);
    vectors = ceil_div(nj, W);
    transpose_in(row_at(a.k, a.k_stride, s.k0 + j0, h, a.D), a.k_stride, nj, a.D, a.scale, kt);
    transpose_in(row_at(a.v, a.v_stride, s.k0 + j0, h, a.D), a.v_stride, nj, a.D, 1, vt);
    fill_row(dkt, a.D * LANES, 0);
    fill_row(dvt, a.D * LANES, 0);
  }

  /// Recomputes p and ds of queries i0 .. i0 + rows from lse and adds their share to dk and dv.
  void add_queries(const fa_attention_args &a, const Sequence &s, int b, int h, int i0, int rows, const float *delta,
                   const ScoreDropout &dropout) {
    const int row = s.q0 + i0, D = a.D;
    const float *q = row_at(a.q, a.q_stride, row, h, D), *dout = row_at(a.dout, a.dout_stride, row, h, D);
    product<false>(rows, vectors, D, q, a.q_stride, kt, LANES, p, LANES, false);
    product<false>(rows, vectors, D, dout, a.dout_stride, vt, LANES, ds, LANES, false);
    mask_key_lanes(s, i0, rows, j0, vectors, p);
    if (dropout) dropout_tile<false>(dropout, (uint32_t)(b * a.H + h), i0, rows, j0, vectors * W, drop);
    for (int r = 0; r < rows; r++) {
      const int64_t at = (int64_t)h * a.rows_q + row + r;
      const float lse = finite_lse(a.lse[at]), d = delta[at];
      for (int l = r * LANES; l < r * LANES + vectors * W; l += W) {
        vf probability = exp_below(load(p + l) - lse), gradient = load(ds + l);
        vf factor = dropout ? load(drop + l) : splat(1.f);
        store(p + l, probability * factor);
        store(ds + l, probability * (gradient * factor - d));
      }
    }
    product<true>(D, vectors, rows, dout, a.dout_stride, p, LANES, dvt, LANES, true);
    product<true>(D, vectors, rows, q, a.q_stride, ds, LANES, dkt, LANES, true);
  }

  void close(const fa_attention_args &a, const Sequence &s, int h) {
    transpose_out(dkt, written, a.D, a.scale, row_at(a.dk, a.dk_stride, s.k0 + j0, h, a.D), a.dk_stride);
    transpose_out(dvt, written, a.D, 1, row_at(a.dv, a.dv_stride, s.k0 + j0, h, a.D), a.dv_stride);
  }
};

/// The backward pass of one head over key blocks first .. end: writes their dk and dv, and dq as far as it comes from
/// them, into rows `dq` of `dq_stride` (the first is query 0 of the sequence).
static inline void backward_sweep(const fa_attention_args &a, const Sequence &s, int b, int h, int first, int end,
                                  const float *delta, const ScoreDropout &dropout, float *dq, int64_t dq_stride) {
  KeyBlock f;
  alignas(64) float k[LANES * MAX_D], part[TILE_ROWS * MAX_D];
  const int D = a.D, pitch = padded(D), start = s.first_query(first * LANES);
  for (int i = 0; i < imin(start, s.n); i++) fill_row(dq + i * dq_stride, D, 0);
  for (int block = first; block < end; block++) {
    const int j0 = block * LANES;
    f.open(a, s, h, j0);
    pack_rows(row_at(a.k, a.k_stride, s.k0 + j0, h, D), a.k_stride, f.nj, D, k);
    // The first block runs even where none of its keys count: it is the one that sets dq.
    for (int i0 = s.first_query(j0); i0 < s.n && (block == first || j0 < s.keys); i0 += TILE_ROWS) {
      const int rows = imin(s.n - i0, TILE_ROWS);
      f.add_queries(a, s, b, h, i0, rows, delta, dropout);
      product<false>(rows, pitch / W, f.nj, f.ds, LANES, k, pitch, part, pitch, false);
      for (int r = 0; r < rows; r++) {
        float *to = dq + (i0 + r) * dq_stride;
        const float *from = part + r * pitch;
        if (block == first) {
          for (int d = 0; d < D; d++) to[d] = from[d] * a.scale;
        } else {
          for (int d = 0; d < D; d++) to[d] += from[d] * a.scale;
        }
      }
    }
    f.close(a, s, h);
  }
}

}  // namespace FA_ISA
