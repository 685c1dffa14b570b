// imp_flash_attn: the FlashAttention-2 form (Dao 2023). One task per block of queries; the keys run past it, the output stays
// unnormalised in its tile and is divided once at the end; keys that a causal block cannot see are never touched.
// The backward pass recomputes P from lse, one task per stripe of keys: dk and dv are the stripe's own, and where batch and
// heads alone give too few tasks, each of several stripes adds up a dq of its own; these are summed in a fixed order.

#include <math.h>

#include "attention_tiles.hpp"

namespace FA_ISA {

namespace {

constexpr int TASKS = 32;  // enough for many cores; a constant, so that results do not depend on the number of threads

/// Where task t of (batch, head, block) is.
struct Place {
  int b, h, block;
};

inline Place place_of(int64_t t, int H, int blocks) {
  int64_t plane = t / blocks;
  return {(int)(plane / H), (int)(plane % H), (int)(t % blocks)};
}

struct ForwardBlock {
  alignas(64) float qt[MAX_D * LANES];          // Q^T * scale
  alignas(64) float ot[MAX_D * LANES];          // O^T, not normalised
  alignas(64) float st[TILE_ROWS * LANES];      // scores, then probabilities: rows are keys
  alignas(64) float drop[TILE_ROWS * LANES];
  alignas(64) float top[LANES], sum[LANES];     // running maximum and sum of each query
};

/// One vector of queries: exponentials of `rows` scores below the new maximum, and the factor by which the past shrinks.
inline void softmax_step(ForwardBlock &f, int v, int rows, int D) {
  const vf past = load(f.top + v);
  vf top = past;
  for (int r = 0; r < rows; r++) top = vmax(top, load(f.st + r * LANES + v));
  const vf base = top == -__builtin_inff() ? splat(0.f) : top;
  const vf shrink = vexp(past - base);
  vf sum = load(f.sum + v) * shrink;
  for (int r = 0; r < rows; r++) {
    vf p = vexp(load(f.st + r * LANES + v) - base);
    store(f.st + r * LANES + v, p);
    sum += p;
  }
  store(f.top + v, top);
  store(f.sum + v, sum);
  for (int d = 0; d < D; d++) store(f.ot + d * LANES + v, load(f.ot + d * LANES + v) * shrink);
}

void forward_block(const fa_attention_args &a, const Sequence &s, Place at, const ScoreDropout &dropout) {
  ForwardBlock f;
  const int D = a.D, h = at.h, i0 = at.block * LANES, ni = imin(s.n - i0, LANES), vectors = ceil_div(ni, W);
  transpose_in(row_at(a.q, a.q_stride, s.q0 + i0, h, D), a.q_stride, ni, D, a.scale, f.qt);
  fill_row(f.ot, D * LANES, 0);
  fill_row(f.sum, LANES, 0);
  fill_row(f.top, LANES, -__builtin_inff());
  const int end = s.limit(i0 + ni - 1);
  for (int j0 = 0; j0 < end; j0 += TILE_ROWS) {
    const int rows = imin(end - j0, TILE_ROWS), key = s.k0 + j0;
    product<false>(rows, vectors, D, row_at(a.k, a.k_stride, key, h, D), a.k_stride, f.qt, LANES, f.st, LANES, false);
    mask_query_lanes(s, i0, ni, j0, rows, f.st);
    for (int v = 0; v < ni; v += W) softmax_step(f, v, rows, D);
    if (dropout) {
      dropout_tile<true>(dropout, (uint32_t)(at.b * a.H + h), i0, vectors * W, j0, rows, f.drop);
      for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors * W; v++) f.st[r * LANES + v] *= f.drop[r * LANES + v];
      }
    }
    product<true>(D, vectors, rows, row_at(a.v, a.v_stride, key, h, D), a.v_stride, f.st, LANES, f.ot, LANES, true);
  }
  float *lse = a.lse + (int64_t)h * a.rows_q + s.q0 + i0;
  for (int i = 0; i < ni; i++) {
    lse[i] = f.sum[i] > 0 ? f.top[i] + logf(f.sum[i]) : -__builtin_inff();
    float inverse = f.sum[i] > 0 ? 1 / f.sum[i] : 0;
    float *out = row_at(a.out, a.out_stride, s.q0 + i0 + i, h, D);
    for (int d = 0; d < D; d++) out[d] = f.ot[d * LANES + i] * inverse;
  }
}

}  // namespace

void imp_flash_forward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a);
  const int blocks = imax(ceil_div(a.max_q, LANES), 1);
  for_items((int64_t)a.B * a.H * blocks, work_of(a, 2), [&](int64_t t) {
    Place at = place_of(t, a.H, blocks);
    Sequence s = sequence_of(a, at.b);
    if (at.block * LANES < s.n) forward_block(a, s, at, dropout);
  });
}

int imp_flash_stripes(const fa_attention_args &a) {
  const int64_t heads = imax((int)imin(a.B, TASKS) * imin(a.H, TASKS), 1);
  return imax(imin((int)(TASKS / heads), a.max_k / (2 * LANES)), 1);
}

void imp_flash_backward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a);
  const int stripes = imp_flash_stripes(a), D = a.D;
  const int64_t pitch = (int64_t)a.H * D, whole = a.rows_q * pitch;
  float *delta = (float *)a.workspace, *parts = delta + (int64_t)a.H * a.rows_q;
  row_deltas(a, delta);
  for_items((int64_t)a.B * a.H * stripes, work_of(a, 5), [&](int64_t t) {
    Place at = place_of(t, a.H, stripes);
    Sequence s = sequence_of(a, at.b);
    const int blocks = imax(ceil_div(s.m, LANES), 1);
    const int first = (int)((int64_t)blocks * at.block / stripes), end = (int)((int64_t)blocks * (at.block + 1) / stripes);
    if (stripes == 1) {
      float *dq = row_at(a.dq, a.dq_stride, s.q0, at.h, D);
      backward_sweep(a, s, at.b, at.h, first, end, delta, dropout, dq, a.dq_stride);
      return;
    }
    float *dq = parts + at.block * whole + s.q0 * pitch + (int64_t)at.h * D;
    for (int i = 0; first == end && i < s.n; i++) fill_row(dq + i * pitch, D, 0);
    backward_sweep(a, s, at.b, at.h, first, end, delta, dropout, dq, pitch);
  });
  if (stripes == 1) return;
  for_items((int64_t)a.B * a.max_q, (double)whole * stripes / 8, [&](int64_t t) {
    Sequence s = sequence_of(a, (int)(t / a.max_q));
    const int i = (int)(t % a.max_q);
    if (i >= s.n) return;
    float *to = row_at(a.dq, a.dq_stride, s.q0 + i, 0, D);
    const float *from = parts + (s.q0 + i) * pitch;
    for (int64_t c = 0; c < pitch; c++) {
      float sum = from[c];
      for (int stripe = 1; stripe < stripes; stripe++) sum += from[stripe * whole + c];
      to[c] = sum;
    }
  });
}

}  // namespace FA_ISA
