// imp_flash_attn: the FlashAttention-2 form (Dao 2023). One task per block of queries; the keys run past it, the output
// stays unnormalised in its tile and is divided once at the end; keys that a causal block cannot see are never touched.
// The backward pass recomputes P from lse, one task per stripe of keys: dk and dv are the stripe's own, and where batch
// and heads alone give too few tasks, each of several stripes adds up a dq of its own; these are summed in a fixed
// order.

#include <math.h>

#include "attention_tiles.hpp"

namespace FA_ISA {

namespace {

constexpr int TASKS = 16;  // enough for many cores; a constant, so that results do not depend on the number of threads

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

/// One vector of queries: exponentials of `rows` scores below the new maximum. The sum so far, and O^T with it, shrink
/// by what that changes.
inline void softmax_step(ForwardBlock &f, int v, int rows, int D, bool first) {
  const vf past = load(f.top + v);
  vf top = past;
  for (int r = 0; r < rows; r++) top = vmax(top, load(f.st + r * LANES + v));
  const vf base = top == -__builtin_inff() ? splat(0.f) : top;
  const vf shrink = exp_below(past - base);
  vf sum = load(f.sum + v) * shrink;
  for (int r = 0; r < rows; r++) {
    vf p = exp_below(load(f.st + r * LANES + v) - base);
    store(f.st + r * LANES + v, p);
    sum += p;
  }
  store(f.top + v, top);
  store(f.sum + v, sum);
  for (int d = 0; d < D && !first; d++) store(f.ot + d * LANES + v, load(f.ot + d * LANES + v) * shrink);
}

/// Lane l of the result comes from vector l / HALF % 2 of a pair: the first or the second half of its lanes' groups.
template <int HALF>
FA_INLINE vi half_lanes(int second) {
  vi from = {};
#pragma GCC unroll 16
  for (int l = 0; l < W; l++) from[l] = l % HALF + l / (2 * HALF) * 2 * HALF + l / HALF % 2 * W + second * HALF;
  return from;
}

/// Sums of the lanes of W vectors, one to a lane, by halving.
template <int HALF>
FA_INLINE vf sums_of_lanes(vf *x) {
  const vi first = half_lanes<HALF>(0), second = half_lanes<HALF>(1);
#pragma GCC unroll 8
  for (int i = 0; i < HALF; i++) {
    x[i] = __builtin_shuffle(x[i], x[i + HALF], first) + __builtin_shuffle(x[i], x[i + HALF], second);
  }
  if constexpr (HALF > 1) return sums_of_lanes<HALF / 2>(x);
  return x[0];
}

/// scores = q K^T for `rows` rows of K (V vectors each), -inf behind them up to a whole vector. Returns their maximum.
template <int V>
inline float row_scores(const vf (&q)[V], const float *k, int64_t stride, int rows, float *scores) {
  const float none = -__builtin_inff();
  vi lanes;
  for (int l = 0; l < W; l++) lanes[l] = l;
  vf tops = splat(none);
  for (int r = 0; r < rows; r += W) {
    vf products[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; l++) {
      const float *row = k + imin(r + l, rows - 1) * stride;
      products[l] = q[0] * load(row);
      for (int c = 1; c < V; c++) products[l] += q[c] * load(row + c * W);
    }
    const vf sums = sums_of_lanes<W / 2>(products);
    const vf valid = lanes < rows - r ? sums : splat(none);
    tops = vmax(tops, valid);
    store(scores + r, valid);
  }
  return hmax(tops);
}

/// One query alone, as in decoding: D lies along the lanes, so nothing is copied and no lane is idle. D is V * W.
template <int V>
void forward_row(const fa_attention_args &a, const Sequence &s, Place at, int i, const ScoreDropout &dropout) {
  alignas(64) float p[TILE_ROWS], drop[TILE_ROWS * LANES];
  const int h = at.h, D = a.D, end = s.limit(i);
  vf q[V], out[V];
  for (int c = 0; c < V; c++) {
    q[c] = load(row_at(a.q, a.q_stride, s.q0 + i, h, D) + c * W) * a.scale;
    out[c] = vf{};
  }
  float top = -__builtin_inff(), sum = 0;
  for (int j0 = 0; j0 < end; j0 += TILE_ROWS) {
    const int rows = imin(end - j0, TILE_ROWS);
    const float past = top;
    const float here = row_scores<V>(q, row_at(a.k, a.k_stride, s.k0 + j0, h, D), a.k_stride, rows, p);
    top = here > past ? here : past;
    vf sums = {};
    for (int r = 0; r < rows; r += W) {
      const vf e = exp_below(load(p + r) - top);
      sums += e;
      store(p + r, e);
    }
    const float shrink = expf(past - top);
    sum = sum * shrink + hsum(sums);
    for (int c = 0; c < V; c++) out[c] *= shrink;
    if (dropout) {
      dropout_tile<true>(dropout, (uint32_t)(at.b * a.H + h), i / 16 * 16, 16, j0, rows, drop);
      for (int r = 0; r < rows; r++) p[r] *= drop[r * LANES + i % 16];
    }
    for (int r = 0; r < rows; r++) {
      const float *v = row_at(a.v, a.v_stride, s.k0 + j0 + r, h, D);
      for (int c = 0; c < V; c++) out[c] += p[r] * load(v + c * W);
    }
  }
  const float inverse = sum > 0 ? 1 / sum : 0;
  for (int c = 0; c < V; c++) store(row_at(a.out, a.out_stride, s.q0 + i, h, D) + c * W, out[c] * inverse);
  a.lse[(int64_t)h * a.rows_q + s.q0 + i] = sum > 0 ? top + logf(sum) : -__builtin_inff();
}

/// The few queries of a short sequence one by one, where their width is a plain number of vectors. False where it is
/// not.
bool forward_rows(const fa_attention_args &a, const Sequence &s, Place at, const ScoreDropout &dropout) {
  if (s.n > W / 4) return false;
  for (int i = 0; i < s.n; i++) {
    if (a.D == W) {
      forward_row<1>(a, s, at, i, dropout);
    } else if (a.D == 2 * W) {
      forward_row<2>(a, s, at, i, dropout);
    } else if (a.D == 4 * W) {
      forward_row<4>(a, s, at, i, dropout);
    } else if (a.D == 8 * W) {
      forward_row<8>(a, s, at, i, dropout);
    } else {
      return false;
    }
  }
  return true;
}

void forward_block(const fa_attention_args &a, const Sequence &s, Place at, const ScoreDropout &dropout) {
  ForwardBlock f;
  const int D = a.D, h = at.h, i0 = at.block * LANES, ni = imin(s.n - i0, LANES), vectors = ceil_div(ni, W);
  transpose_in(row_at(a.q, a.q_stride, s.q0 + i0, h, D), a.q_stride, ni, D, a.scale, f.qt);
  fill_row(f.sum, LANES, 0);
  fill_row(f.top, LANES, -__builtin_inff());
  const int end = s.limit(i0 + ni - 1);
  if (end == 0) fill_row(f.ot, D * LANES, 0);
  for (int j0 = 0; j0 < end; j0 += TILE_ROWS) {
    const int rows = imin(end - j0, TILE_ROWS), key = s.k0 + j0;
    product<false>(rows, vectors, D, row_at(a.k, a.k_stride, key, h, D), a.k_stride, f.qt, LANES, f.st, LANES, false);
    mask_query_lanes(s, i0, ni, j0, rows, f.st);
    for (int v = 0; v < ni; v += W) softmax_step(f, v, rows, D, j0 == 0);
    if (dropout) {
      dropout_tile<true>(dropout, (uint32_t)(at.b * a.H + h), i0, vectors * W, j0, rows, f.drop);
      for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors * W; v++) f.st[r * LANES + v] *= f.drop[r * LANES + v];
      }
    }
    product<true>(D, vectors, rows, row_at(a.v, a.v_stride, key, h, D), a.v_stride, f.st, LANES, f.ot, LANES, j0 > 0);
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
  const int blocks = imax(ceil_div(longest_q(a), LANES), 1);
  for_items((int64_t)a.B * a.H * blocks, work_of(a, 2), [&](int64_t t) {
    Place at = place_of(t, a.H, blocks);
    Sequence s = sequence_of(a, at.b);
    if (at.block * LANES < s.n && !forward_rows(a, s, at, dropout)) forward_block(a, s, at, dropout);
  });
}

int imp_flash_stripes(const fa_attention_args &a) {
  const int64_t heads = imax((int)imin(a.B, TASKS) * imin(a.H, TASKS), 1);
  return imax(imin((int)(TASKS / heads), longest_k(a) / (2 * LANES)), 1);
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
    const int first = (int)((int64_t)blocks * at.block / stripes);
    const int end = (int)((int64_t)blocks * (at.block + 1) / stripes);
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
  const int rows = imax(longest_q(a), 1);
  for_items((int64_t)a.B * rows, (double)whole * stripes / 8, [&](int64_t t) {
    Sequence s = sequence_of(a, (int)(t / rows));
    const int i = (int)(t % rows);
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
