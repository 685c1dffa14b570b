// flash_attn: FlashAttention-1 (Dao et al. 2022, algorithms 1 and 4). One task per batch and head; blocks of keys
// outside, blocks of queries inside. The output and its log-sum-exp go back to memory, normalised, after every block of
// keys and come back for the next. Backward the same way round: dk and dv stay in their tile, dq is added up in memory,
// in a fixed order.

#include <math.h>

#include "attention_tiles.hpp"

namespace FA_ISA {

namespace {

constexpr int KEY_ROWS = 128;  // keys of a forward block: longer than the query block, as in the original

struct ForwardTile {
  alignas(64) float qt[MAX_D * LANES];     // Q^T * scale
  alignas(64) float ot[MAX_D * LANES];     // O^T, normalised over the keys so far
  alignas(64) float st[KEY_ROWS * LANES];  // scores, then probabilities: rows are keys
  alignas(64) float drop[KEY_ROWS * LANES];
  alignas(64) float lse[LANES], base[LANES], total[LANES];
};

/// One vector of queries: exponentials of this block's scores; O^T shrinks to its share of the new sum.
inline void softmax_block(ForwardTile &f, int v, int rows, int D) {
  const vf past = load(f.lse + v);
  vf top = past;
  for (int r = 0; r < rows; r++) top = vmax(top, load(f.st + r * LANES + v));
  const vf base = top == -__builtin_inff() ? splat(0.f) : top;
  const vf weight = exp_below(past - base);
  vf sum = weight;
  for (int r = 0; r < rows; r++) {
    vf p = exp_below(load(f.st + r * LANES + v) - base);
    store(f.st + r * LANES + v, p);
    sum += p;
  }
  store(f.base + v, base);
  store(f.total + v, sum);
  for (int d = 0; d < D; d++) store(f.ot + d * LANES + v, load(f.ot + d * LANES + v) * weight);
}

/// Takes keys j0 .. j0 + rows into the output of queries i0 .. i0 + ni.
void forward_tile(ForwardTile &f, const fa_attention_args &a, const Sequence &s, int b, int h, int j0, int rows, int i0,
                  const ScoreDropout &dropout) {
  const int D = a.D, ni = imin(s.n - i0, LANES), vectors = ceil_div(ni, W), row = s.q0 + i0, key = s.k0 + j0;
  float *lse = a.lse + (int64_t)h * a.rows_q + row, *out = row_at(a.out, a.out_stride, row, h, D);
  transpose_in(row_at(a.q, a.q_stride, row, h, D), a.q_stride, ni, D, a.scale, f.qt);
  fill_row(f.lse, LANES, -__builtin_inff());
  if (j0 == 0) {
    fill_row(f.ot, D * LANES, 0);
  } else {
    transpose_in(out, a.out_stride, ni, D, 1, f.ot);
    for (int i = 0; i < ni; i++) f.lse[i] = lse[i];
  }
  if (rows > 0) {
    product<false>(rows, vectors, D, row_at(a.k, a.k_stride, key, h, D), a.k_stride, f.qt, LANES, f.st, LANES, false);
    mask_query_lanes(s, i0, ni, j0, rows, f.st);
  }
  for (int v = 0; v < ni; v += W) softmax_block(f, v, rows, D);
  if (dropout && rows > 0) {
    dropout_tile<true>(dropout, (uint32_t)(b * a.H + h), i0, vectors * W, j0, rows, f.drop);
    for (int r = 0; r < rows; r++) {
      for (int v = 0; v < vectors * W; v++) f.st[r * LANES + v] *= f.drop[r * LANES + v];
    }
  }
  if (rows > 0) {
    product<true>(D, vectors, rows, row_at(a.v, a.v_stride, key, h, D), a.v_stride, f.st, LANES, f.ot, LANES, true);
  }
  for (int i = 0; i < ni; i++) {
    float inverse = f.total[i] > 0 ? 1 / f.total[i] : 0;
    lse[i] = f.total[i] > 0 ? f.base[i] + logf(f.total[i]) : -__builtin_inff();
    for (int d = 0; d < D; d++) out[i * a.out_stride + d] = f.ot[d * LANES + i] * inverse;
  }
}

void forward_head(const fa_attention_args &a, const Sequence &s, int b, int h, const ScoreDropout &dropout) {
  ForwardTile f;
  // The first block runs even without keys: it writes the rows that see none.
  for (int j0 = 0; j0 == 0 || j0 < s.keys; j0 += KEY_ROWS) {
    const int rows = imin(s.keys - j0, KEY_ROWS);
    const int first = j0 == 0 ? 0 : s.first_query(j0) / LANES * LANES;
    for (int i0 = first; i0 < s.n; i0 += LANES) forward_tile(f, a, s, b, h, j0, rows, i0, dropout);
  }
}

}  // namespace

void flash_forward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a);
  for_items((int64_t)a.B * a.H, work_of(a, 2), [&](int64_t t) {
    int b = (int)(t / a.H), h = (int)(t % a.H);
    Sequence s = sequence_of(a, b);
    if (s.n > 0) forward_head(a, s, b, h, dropout);
  });
}

void flash_backward(const fa_attention_args &a) {
  const ScoreDropout dropout = dropout_of(a);
  float *delta = (float *)a.workspace;
  row_deltas(a, delta);
  for_items((int64_t)a.B * a.H, work_of(a, 5), [&](int64_t t) {
    int b = (int)(t / a.H), h = (int)(t % a.H);
    Sequence s = sequence_of(a, b);
    float *dq = row_at(a.dq, a.dq_stride, s.q0, h, a.D);
    backward_sweep(a, s, b, h, 0, imax(ceil_div(s.m, LANES), 1), delta, dropout, dq, a.dq_stride);
  });
}

}  // namespace FA_ISA
