// What the three attention forms share around the arithmetic: the sequences behind the offsets, which keys a query
// sees, dropout masks, rows that belong to no sequence, and the division of work among threads.
#pragma once

#include <stdint.h>

#include "philox.hpp"
#include "simd.hpp"
#include "table.hpp"

namespace FA_ISA {

constexpr int MAX_D = 128;

// A tile is `rows` by LANES numbers at a pitch of LANES. Queries or keys lie along the lanes, so that maxima, sums and
// rescaling of softmax are plain vector operations. 48 is a multiple of every vector width and of three of them: the
// product kernel keeps three vectors of a row in registers.
constexpr int LANES = 48;
constexpr int TILE_ROWS = 64;

FA_INLINE int imin(int a, int b) { return a < b ? a : b; }
FA_INLINE int imax(int a, int b) { return a > b ? a : b; }
FA_INLINE int ceil_div(int a, int b) { return a / b + (a % b != 0); }

/// Sequence b: query rows q0 .. q0 + n, key rows k0 .. k0 + m, of which the first `keys` count.
struct Sequence {
  int q0, n, k0, m, keys;
  bool causal;

  /// Query i sees the keys below this.
  int limit(int i) const {
    if (!causal) return keys;
    int64_t end = (int64_t)i + 1 + m - n;
    return end < 0 ? 0 : end < keys ? (int)end : keys;
  }

  /// The first query, rounded down to a multiple of 16, that may see key j.
  int first_query(int j) const {
    int first = causal ? imax(0, j - (m - n)) : 0;
    return first / 16 * 16;
  }
};

/// Rows start .. start + length of sequence b, whatever the offsets hold.
FA_INLINE void clamp_range(const int32_t *offsets, int b, int rows, int longest, int &start, int &length) {
  start = imin(imax(offsets[b], 0), rows);
  int end = imin(imax(offsets[b + 1], 0), rows);
  length = imin(imax(end - start, 0), longest);
}

FA_INLINE Sequence sequence_of(const fa_attention_args &a, int b) {
  Sequence s;
  clamp_range(a.cu_q, b, a.rows_q, a.max_q, s.q0, s.n);
  clamp_range(a.cu_k, b, a.rows_k, a.max_k, s.k0, s.m);
  s.keys = a.key_len ? imin(imax(a.key_len[b], 0), s.m) : s.m;
  s.causal = a.causal != 0;
  return s;
}

/// No sequence is longer than these, whatever the caller allows for.
FA_INLINE int longest_q(const fa_attention_args &a) { return imin(a.max_q, a.rows_q); }
FA_INLINE int longest_k(const fa_attention_args &a) { return imin(a.max_k, a.rows_k); }

/// Row `row`, head h of a tensor by row stride.
FA_INLINE const float *row_at(const void *tensor, int64_t stride, int row, int h, int D) {
  return (const float *)tensor + row * stride + (int64_t)h * D;
}
FA_INLINE float *row_at(void *tensor, int64_t stride, int row, int h, int D) {
  return (float *)tensor + row * stride + (int64_t)h * D;
}

/// Calls body(i) for i < count on as many threads as `work` (nanoseconds in all) is worth.
template <class Body>
static inline void for_items(int64_t count, double work, const Body &body) {
  int threads = threads_for(work);
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; i++) body(i);
    return;
  }
  int64_t chunk = count / (threads * 16);
  if (chunk < 1) chunk = 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
  for (int64_t i = 0; i < count; i++) body(i);
}

/// Nanoseconds that `products` products of N x M x D numbers of each head take one core, roughly.
FA_INLINE double work_of(const fa_attention_args &a, int products) {
  double rows = a.rows_q < (double)a.B * a.max_q ? a.rows_q : (double)a.B * a.max_q;
  return rows * longest_k(a) * a.H * (a.D * products + 8.0) / 30;
}

/// Dropout of the scores of one call.
struct ScoreDropout {
  PhiloxKey key;
  uint32_t site, threshold;
  float scale;

  explicit operator bool() const { return threshold != 0; }
};

FA_INLINE ScoreDropout dropout_of(const fa_attention_args &a) {
  ScoreDropout d = {{0, 0}, a.site, 0, 1};
  if (a.dropout <= 0 || !a.rng) return d;
  d.threshold = (uint32_t)((double)a.dropout * 65536 + 0.5);
  if (d.threshold > 65535) d.threshold = 65535;
  d.key = philox_key(a.rng[0], a.rng[1]);
  d.scale = 65536.f / (float)(65536 - d.threshold);
  return d;
}

typedef uint32_t eight_words __attribute__((vector_size(32)));
typedef float eight_floats __attribute__((vector_size(32)));

/// Factors (0 or the scale of dropout) of scores i0 .. i0 + ni by j0 .. j0 + nj of head `plane`, into a tile whose
/// lanes are keys, or queries where QueryLanes. i0 and j0 are multiples of 16, and of 32 where keys are the rows; what
/// is written comes in whole blocks of 16 queries by 32 keys, as far as the lanes reach, so the tile needs rows for
/// that.
template <bool QueryLanes>
static inline void dropout_tile(const ScoreDropout &d, uint32_t plane, int i0, int ni, int j0, int nj, float *tile) {
  alignas(64) uint32_t x[4][64];
  for (int ti = i0 / 16; ti * 16 < i0 + ni; ti++) {
    for (int tj = j0 / 32; tj * 32 < j0 + nj; tj++) {
      for (int l = 0; l < 64; l++) {
        x[0][l] = (uint32_t)(ti * 8 + (QueryLanes ? l % 8 : l / 8));
        x[1][l] = (uint32_t)(tj * 8 + (QueryLanes ? l / 8 : l % 8));
        x[2][l] = d.site;
        x[3][l] = 1 + plane;
      }
      philox_rounds<64>(d.key, x[0], x[1], x[2], x[3]);
      // Word w holds values 2 w and 2 w + 1 of its counter: 8 queries further every two words, 8 keys further every
      // value.
      for (int value = 0; value < 8; value++) {
        const uint32_t *words = x[value / 2];
        const int shift = 16 * (value % 2);
        const int i = ti * 16 + value / 4 * 8 - i0, j = tj * 32 + value % 4 * 8 - j0;
        const int lane = QueryLanes ? i : j, row = QueryLanes ? j : i;
        if (lane < 0 || lane >= LANES) continue;
        for (int r = 0; r < 8; r++) {
          eight_words drawn;
          memcpy(&drawn, words + r * 8, sizeof drawn);
          const auto keep = ((drawn >> shift) & 0xffff) >= d.threshold;
          const eight_floats factors = keep ? d.scale - eight_floats{} : eight_floats{};
          memcpy(tile + (row + r) * LANES + lane, &factors, sizeof factors);
        }
      }
    }
  }
}

FA_INLINE void fill_row(float *row, int n, float value) {
  for (int i = 0; i < n; i++) row[i] = value;
}

/// Calls body(first, end) for the runs of rows that belong to no sequence.
template <class Body>
static inline void for_gaps(const int32_t *offsets, int B, int rows, int longest, const Body &body) {
  int covered = 0;
  for (int b = 0; b < B; b++) {
    int start, length;
    clamp_range(offsets, b, rows, longest, start, length);
    if (length == 0) continue;
    if (start > covered) body(covered, start);
    covered = imax(covered, start + length);
  }
  if (covered < rows) body(covered, rows);
}

/// out = 0 and lse = -inf where no sequence is.
static inline void clear_forward_gaps(const fa_attention_args &a) {
  for_gaps(a.cu_q, a.B, a.rows_q, a.max_q, [&](int first, int end) {
    for (int row = first; row < end; row++) fill_row(row_at(a.out, a.out_stride, row, 0, 0), a.H * a.D, 0);
    for (int h = 0; h < a.H; h++) {
      fill_row(a.lse + (int64_t)h * a.rows_q + first, end - first, -__builtin_inff());
    }
  });
}

/// dq, dk, dv = 0 where no sequence is.
static inline void clear_backward_gaps(const fa_attention_args &a) {
  int width = a.H * a.D;
  for_gaps(a.cu_q, a.B, a.rows_q, a.max_q, [&](int first, int end) {
    for (int row = first; row < end; row++) fill_row(row_at(a.dq, a.dq_stride, row, 0, 0), width, 0);
  });
  for_gaps(a.cu_k, a.B, a.rows_k, a.max_k, [&](int first, int end) {
    for (int row = first; row < end; row++) {
      fill_row(row_at(a.dk, a.dk_stride, row, 0, 0), width, 0);
      fill_row(row_at(a.dv, a.dv_stride, row, 0, 0), width, 0);
    }
  });
}

/// delta [H, rows_q] = the sums over D of dout * out: what the backward pass of softmax takes from each row.
static inline void row_deltas(const fa_attention_args &a, float *delta) {
  for_items(a.rows_q, (double)a.rows_q * a.H * a.D / 8, [&](int64_t row) {
    for (int h = 0; h < a.H; h++) {
      const float *x = row_at(a.dout, a.dout_stride, (int)row, h, a.D);
      const float *y = row_at(a.out, a.out_stride, (int)row, h, a.D);
      vf sum = {};
      int d = 0;
      for (; d + W <= a.D; d += W) sum += load(x + d) * load(y + d);
      if (d < a.D) sum += load_part(x + d, a.D - d) * load_part(y + d, a.D - d);
      delta[h * (int64_t)a.rows_q + row] = hsum(sum);
    }
  });
}

// One pair of functions for each form; attention.cpp chooses.
void dotscale_forward(const fa_attention_args &a);
void dotscale_backward(const fa_attention_args &a);
void flash_forward(const fa_attention_args &a);
void flash_backward(const fa_attention_args &a);
void imp_flash_forward(const fa_attention_args &a);
void imp_flash_backward(const fa_attention_args &a);

/// Stripes of keys in the backward pass of imp_flash_attn, from the sizes alone.
int imp_flash_stripes(const fa_attention_args &a);

}  // namespace FA_ISA
