// imp_flash_attn: the FlashAttention-2 form (Dao 2023). One task per block of queries; the keys run past it, the output stays
// unnormalised in its tile and is divided once at the end; keys that a causal block cannot see are never touched.
// The backward pass recomputes P from lse in two sweeps, one over query blocks for dq and one over key blocks for dk and dv:
// parallel over the sequence, every number written by one task. A sequence whose keys fit one block needs only the second.

#include <math.h>

#include "attention_tiles.hpp"

namespace FA_ISA {

namespace {

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

struct QueryBlock {
  alignas(64) float qt[MAX_D * LANES];      // Q^T * scale
  alignas(64) float dot[MAX_D * LANES];     // dO^T
  alignas(64) float dqt[MAX_D * LANES];     // dQ^T / scale
  alignas(64) float st[TILE_ROWS * LANES];  // scores, then their gradients: rows are keys
  alignas(64) float dp[TILE_ROWS * LANES];
  alignas(64) float drop[TILE_ROWS * LANES];
  alignas(64) float lse[LANES], delta[LANES];
};

/// dq of one block of queries.
void backward_queries(const fa_attention_args &a, const Sequence &s, Place at, const float *delta,
                      const ScoreDropout &dropout) {
  QueryBlock f;
  const int D = a.D, h = at.h, i0 = at.block * LANES, ni = imin(s.n - i0, LANES), vectors = ceil_div(ni, W);
  const int row = s.q0 + i0;
  transpose_in(row_at(a.q, a.q_stride, row, h, D), a.q_stride, ni, D, a.scale, f.qt);
  transpose_in(row_at(a.dout, a.dout_stride, row, h, D), a.dout_stride, ni, D, 1, f.dot);
  fill_row(f.dqt, D * LANES, 0);
  for (int i = 0; i < LANES; i++) {
    int64_t from = (int64_t)h * a.rows_q + row + imin(i, ni - 1);
    f.lse[i] = finite_lse(a.lse[from]);
    f.delta[i] = delta[from];
  }
  const int end = s.limit(i0 + ni - 1);
  for (int j0 = 0; j0 < end; j0 += TILE_ROWS) {
    const int rows = imin(end - j0, TILE_ROWS);
    const float *k = row_at(a.k, a.k_stride, s.k0 + j0, h, D), *v = row_at(a.v, a.v_stride, s.k0 + j0, h, D);
    product<false>(rows, vectors, D, k, a.k_stride, f.qt, LANES, f.st, LANES, false);
    product<false>(rows, vectors, D, v, a.v_stride, f.dot, LANES, f.dp, LANES, false);
    mask_query_lanes(s, i0, ni, j0, rows, f.st);
    if (dropout) dropout_tile<true>(dropout, (uint32_t)(at.b * a.H + h), i0, vectors * W, j0, rows, f.drop);
    for (int r = 0; r < rows; r++) {
      for (int l = 0; l < vectors * W; l += W) {
        const int e = r * LANES + l;
        vf gradient = load(f.dp + e);
        if (dropout) gradient *= load(f.drop + e);
        store(f.st + e, vexp(load(f.st + e) - load(f.lse + l)) * (gradient - load(f.delta + l)));
      }
    }
    product<true>(D, vectors, rows, k, a.k_stride, f.st, LANES, f.dqt, LANES, true);
  }
  transpose_out(f.dqt, ni, D, a.scale, row_at(a.dq, a.dq_stride, row, h, D), a.dq_stride);
}

/// dk and dv of one block of keys; dq as well where these are all the keys.
void backward_keys(const fa_attention_args &a, const Sequence &s, Place at, const float *delta,
                   const ScoreDropout &dropout) {
  KeyBlock f;
  alignas(64) float k[LANES * MAX_D], dq[TILE_ROWS * MAX_D];
  const int D = a.D, h = at.h, pitch = padded(D);
  const bool only = s.m <= LANES;
  f.open(a, s, h, at.block * LANES);
  if (only) pack_rows(row_at(a.k, a.k_stride, s.k0, h, D), a.k_stride, f.nj, D, k);
  for (int i0 = only ? 0 : s.first_query(f.j0); i0 < s.n && (only || f.j0 < s.keys); i0 += TILE_ROWS) {
    const int rows = imin(s.n - i0, TILE_ROWS);
    f.add_queries(a, s, at.b, h, i0, rows, delta, dropout);
    if (!only) continue;
    product<false>(rows, pitch / W, f.nj, f.ds, LANES, k, pitch, dq, pitch, false);
    for (int r = 0; r < rows; r++) {
      float *to = row_at(a.dq, a.dq_stride, s.q0 + i0 + r, h, D);
      for (int d = 0; d < D; d++) to[d] = dq[r * pitch + d] * a.scale;
    }
  }
  f.close(a, s, h);
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

void imp_flash_backward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a);
  float *delta = (float *)a.workspace;
  row_deltas(a, delta);
  const int query_blocks = imax(ceil_div(a.max_q, LANES), 1), key_blocks = imax(ceil_div(a.max_k, LANES), 1);
  if (a.max_k > LANES) {
    for_items((int64_t)a.B * a.H * query_blocks, work_of(a, 3), [&](int64_t t) {
      Place at = place_of(t, a.H, query_blocks);
      Sequence s = sequence_of(a, at.b);
      if (s.m > LANES && at.block * LANES < s.n) backward_queries(a, s, at, delta, dropout);
    });
  }
  for_items((int64_t)a.B * a.H * key_blocks, work_of(a, 4), [&](int64_t t) {
    Place at = place_of(t, a.H, key_blocks);
    Sequence s = sequence_of(a, at.b);
    if (at.block == 0 || at.block * LANES < s.m) backward_keys(a, s, at, delta, dropout);
  });
}

}  // namespace FA_ISA
