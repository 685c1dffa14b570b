// The matrix product: blocked, packed and register-tiled, as Goto and van de Geijn (2008) lay it out.
//
// k is cut into chunks. Of each chunk all threads pack op(b) into panels of NR columns, which they share; then they
// take tiles of c, pack their rows of op(a) into panels of MR rows, and run the micro-kernel on pairs of panels. An
// element of c is always the sum of the same products in the same order, whatever the tiles and the number of threads.
#include <math.h>
#include <stdlib.h>

#include <new>

#include "simd.hpp"
#include "table.hpp"

namespace FA_ISA {
namespace {

// 24, 12 or 8 accumulators: what the register file holds beside two vectors of b and one of a.
constexpr int MR = W == 16 ? 12 : W == 8 ? 6 : 4;
constexpr int NR = 2 * W;
constexpr int64_t KC = 384;        // a panel of b about fills the first-level cache, a block of a sits in the second
constexpr int64_t NC = 2048;       // columns of b that are packed at once
constexpr int64_t BLOCK_M = 8 * MR;
constexpr int64_t BLOCK_N = 512;
constexpr int64_t A_FLOATS = KC * BLOCK_M + 64;
constexpr int64_t B_FLOATS = KC * NC;

FA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FA_INLINE int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// The packing buffers of a calling thread: one block of b, and one of a for each of its workers. They grow to a fixed
/// size at the first product and stay.
struct Buffers {
  float *b = nullptr, *a = nullptr;
  int threads = 0;

  void reserve(int wanted) {
    if (wanted <= threads) return;
    release();
    b = (float *)aligned_alloc(4096, (size_t)up(B_FLOATS * 4, 4096));
    a = (float *)aligned_alloc(4096, (size_t)up(A_FLOATS * 4 * wanted, 4096));
    if (!a || !b) {
      release();
      throw std::bad_alloc();
    }
    threads = wanted;
  }
  void release() {
    free(a);
    free(b);
    a = b = nullptr;
    threads = 0;
  }
  ~Buffers() { release(); }
};

thread_local Buffers buffers;

/// Transposes W vectors of W floats in registers, by log2(W) rounds of exchanging halves.
FA_INLINE void transpose(vf (&x)[W]) {
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2) {
    vi low, high;
#pragma GCC unroll 16
    for (int l = 0; l < W; l++) {
      low[l] = l & half ? W + l - half : l;
      high[l] = l & half ? W + l : l + half;
    }
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) {
      if (r & half) continue;
      vf a = x[r], b = x[r + half];
      x[r] = __builtin_shuffle(a, b, low);
      x[r + half] = __builtin_shuffle(a, b, high);
    }
  }
}

/// out[p * width + r] = x[r * stride + p] for p < W and W rows of x, or as many as fit the panel from its row `first`.
/// Writes W floats for each p, those beyond the panel to be overwritten by what is packed next.
template <int rows>
FA_INLINE void pack_tile(float *out, int width, const float *x, int64_t stride) {
  vf tile[W];
#pragma GCC unroll 16
  for (int r = 0; r < W; r++) tile[r] = r < rows ? load(x + r * stride) : vf{};
  transpose(tile);
#pragma GCC unroll 16
  for (int p = 0; p < W; p++) store(out + p * width, tile[p]);
}

/// out[p * width + r] = x[r * stride + p] for r < rows <= width, p < k; rows up to `width` are 0. May write W floats
/// past the end: panels are packed in ascending order.
template <int width>
void pack_transposed(float *out, const float *x, int64_t stride, int rows, int64_t k) {
  static_assert(width <= W || width == 2 * W, "what a second tile writes past the panel would be lost");
  int64_t p = 0;
  for (; rows == width && p + W <= k; p += W) {
    pack_tile<(width < W ? width : W)>(out + p * width, width, x + p, stride);
    if (width > W) pack_tile<W>(out + p * width + W, width, x + W * stride + p, stride);
  }
  for (; p < k; p++) {
    for (int r = 0; r < width; r++) out[p * width + r] = r < rows ? x[r * stride + p] : 0;
  }
}

/// out[p * width + j] = x[p * stride + j] for j < columns <= width, p < k; columns up to `width` are 0.
template <int width>
void pack_straight(float *out, const float *x, int64_t stride, int columns, int64_t k) {
  for (int64_t p = 0; p < k; p++) {
    if (columns == width) {
      for (int j = 0; j < width; j++) out[p * width + j] = x[p * stride + j];
    } else {
      for (int j = 0; j < width; j++) out[p * width + j] = j < columns ? x[p * stride + j] : 0;
    }
  }
}

/// Where a micro-tile of c lies and what becomes of it.
struct Target {
  float *c;
  int64_t ldc;
  int columns;        // at most NR
  float alpha, beta;  // c = alpha * product + beta * c
  const float *bias;  // added after that; NULL: none
  bool relu;
};

/// max(x, low); NaN stays NaN.
FA_INLINE vf at_least(vf x, vf low) { return x < low ? low : x; }

/// A tile at the right edge, element by element of what `product` [rows, NR] holds of it.
void finish_edge(int rows, const float *product, const Target &t) {
  for (int r = 0; r < rows; r++) {
    float *c = t.c + r * t.ldc;
    for (int j = 0; j < t.columns; j++) {
      float y = product[r * NR + j] * t.alpha;
      if (t.beta != 0) y += c[j] * t.beta;
      if (t.bias) y += t.bias[j];
      c[j] = t.relu && y < 0 ? 0 : y;
    }
  }
}

/// The sum over k of R rows of a (stride MR) and NR columns of b (rows b_stride apart), then the rest of it: the first
/// chunk of a product without bias and those after it are the common cases, and get code of their own.
template <int R>
void micro(int64_t k, const float *a, const float *b, int64_t b_stride, const Target &t) {
  vf acc[R][2] = {};
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    __builtin_prefetch(t.c + r * t.ldc, 1);
    __builtin_prefetch(t.c + r * t.ldc + W, 1);
  }
  for (int64_t p = 0; p < k; p++) {
    vf b0 = load(b), b1 = load(b + W);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      vf x = splat(a[r]);
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
    a += MR;
    b += b_stride;
  }
  if (t.columns < NR) {
    float product[R * NR];
    memcpy(product, acc, sizeof product);
    return finish_edge(R, product, t);
  }
  float *c = t.c;
  if (t.alpha == 1 && t.beta == 1 && !t.bias) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++, c += t.ldc) {
      store(c, load(c) + acc[r][0]);
      store(c + W, load(c + W) + acc[r][1]);
    }
    return;
  }
  vf bias0{}, bias1{}, least = splat(t.relu ? 0 : -__builtin_inff());
  if (t.bias) {
    bias0 = load(t.bias);
    bias1 = load(t.bias + W);
  }
  if (t.beta == 0) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++, c += t.ldc) {
      store(c, at_least(acc[r][0] * t.alpha + bias0, least));
      store(c + W, at_least(acc[r][1] * t.alpha + bias1, least));
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++, c += t.ldc) {
    store(c, at_least(acc[r][0] * t.alpha + load(c) * t.beta + bias0, least));
    store(c + W, at_least(acc[r][1] * t.alpha + load(c + W) * t.beta + bias1, least));
  }
}

using Micro = void (*)(int64_t, const float *, const float *, int64_t, const Target &);
#if defined(__AVX512F__)
constexpr Micro micro_rows[MR + 1] = {nullptr,  micro<1>, micro<2>, micro<3>,  micro<4>,  micro<5>, micro<6>,
                                      micro<7>, micro<8>, micro<9>, micro<10>, micro<11>, micro<12>};
#elif defined(__AVX__)
constexpr Micro micro_rows[MR + 1] = {nullptr, micro<1>, micro<2>, micro<3>, micro<4>, micro<5>, micro<6>};
#else
constexpr Micro micro_rows[MR + 1] = {nullptr, micro<1>, micro<2>, micro<3>, micro<4>};
#endif

void pack_b(const fa_gemm_args &g, float *out, int64_t column, int64_t columns, int64_t p, int64_t k) {
  const float *b = (const float *)g.b;
  if (g.trans_b) {
    pack_transposed<NR>(out, b + column * g.ldb + p, g.ldb, (int)columns, k);
  } else {
    pack_straight<NR>(out, b + p * g.ldb + column, g.ldb, (int)columns, k);
  }
}

void pack_a(const fa_gemm_args &g, float *out, int64_t row, int64_t rows, int64_t p, int64_t k) {
  const float *a = (const float *)g.a;
  int64_t whole = g.trans_a ? rows / MR * MR : 0;
  // Of a transposed a whole rows are read: a few floats here and there would waste cache lines and address
  // translations.
  for (int64_t q = 0; q < k && whole > 0; q++) {
    const float *from = a + (p + q) * g.lda + row;
    for (int64_t r = 0; r < whole; r += MR) memcpy(out + r * k + q * MR, from + r, MR * sizeof(float));
  }
  for (int64_t r = whole; r < rows; r += MR) {
    int count = (int)least(MR, rows - r);
    if (g.trans_a) {
      pack_straight<MR>(out + r * k, a + p * g.lda + row + r, g.lda, count, k);
    } else {
      pack_transposed<MR>(out + r * k, a + (row + r) * g.lda + p, g.lda, count, k);
    }
  }
}

/// One chunk of k for the columns first .. last of c.
struct Chunk {
  int64_t first, last;  // columns
  int64_t p, k;
  bool direct;  // b is read where it lies
  float *packed;
};

/// c[row .. row + rows, column .. column + columns] takes in one chunk; `a` is this thread's buffer.
void tile(const fa_gemm_args &g, const Chunk &chunk, int64_t row, int64_t rows, int64_t column, int64_t columns,
          float *a) {
  bool last = chunk.p + chunk.k == g.k;
  bool bias = last && (g.epilogue == FA_EPILOGUE_BIAS || g.epilogue == FA_EPILOGUE_BIAS_RELU);
  pack_a(g, a, row, rows, chunk.p, chunk.k);
  Target t{};
  t.ldc = g.ldc;
  t.alpha = g.alpha;
  t.beta = chunk.p == 0 ? g.beta : 1;
  t.relu = last && g.epilogue == FA_EPILOGUE_BIAS_RELU;
  for (int64_t j = column; j < column + columns; j += NR) {
    t.columns = (int)least(NR, column + columns - j);
    t.bias = bias ? (const float *)g.bias + j : nullptr;
    bool direct = chunk.direct && t.columns == NR;
    const float *b = direct ? (const float *)g.b + chunk.p * g.ldb + j : chunk.packed + (j - chunk.first) * chunk.k;
    for (int64_t i = 0; i < rows; i += MR) {
      t.c = (float *)g.c + (row + i) * g.ldc + j;
      micro_rows[least(MR, rows - i)](chunk.k, a + i * chunk.k, b, direct ? g.ldb : NR, t);
    }
  }
}

/// The part of one thread in one chunk: its share of the panels of b, then tiles of c as long as there are any.
void work_on(const fa_gemm_args &g, const Chunk &chunk, int64_t block_m, int64_t block_n, float *a) {
  int64_t columns = chunk.last - chunk.first, panels = (columns + NR - 1) / NR;
#pragma omp for schedule(static)
  for (int64_t panel = 0; panel < panels; panel++) {
    int64_t at = panel * NR, count = least(NR, columns - at);
    if (chunk.direct && count == NR) continue;
    pack_b(g, chunk.packed + at * chunk.k, chunk.first + at, count, chunk.p, chunk.k);
  }
  int64_t rows = (g.m + block_m - 1) / block_m, tiles = rows * ((columns + block_n - 1) / block_n);
#pragma omp for schedule(dynamic, 1)
  for (int64_t index = 0; index < tiles; index++) {
    int64_t row = index % rows * block_m, column = index / rows * block_n;
    tile(g, chunk, row, least(block_m, g.m - row), chunk.first + column, least(block_n, columns - column), a);
  }
}

void product(const fa_gemm_args &g) {
  double flops = 2.0 * g.m * g.n * g.k;
  int threads = flops < 4e6 ? 1 : omp_get_max_threads();
  buffers.reserve(threads);
  // Tiles small enough that every thread gets several, yet large enough to be worth packing.
  int64_t block_m = BLOCK_M, block_n = BLOCK_N, columns = least(g.n, NC);
  while (threads > 1 && ((g.m + block_m - 1) / block_m) * ((columns + block_n - 1) / block_n) < 4 * threads) {
    if (block_n > 4 * NR) {
      block_n /= 2;
    } else if (block_m > 2 * MR) {
      block_m /= 2;
    } else {
      break;
    }
  }
  bool direct = !g.trans_b && g.m <= 2 * MR;
  float *a = buffers.a, *b = buffers.b;
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < g.n; first += NC) {
    for (int64_t p = 0; p < g.k; p += KC) {
      Chunk chunk{first, least(g.n, first + NC), p, least(KC, g.k - p), direct, b};
      work_on(g, chunk, block_m, block_n, a + omp_get_thread_num() * A_FLOATS);
    }
  }
}

/// k = 0: c = beta * c, then the epilogue.
void scale_only(const fa_gemm_args &g) {
  bool bias = g.epilogue == FA_EPILOGUE_BIAS || g.epilogue == FA_EPILOGUE_BIAS_RELU;
  for (int64_t i = 0; i < g.m; i++) {
    float *c = (float *)g.c + i * g.ldc;
    for (int64_t j = 0; j < g.n; j++) {
      float y = g.beta == 0 ? 0 : g.beta * c[j];
      if (bias) y += ((const float *)g.bias)[j];
      c[j] = g.epilogue == FA_EPILOGUE_BIAS_RELU && y < 0 ? 0 : y;
    }
  }
}

/// bias_grad = sums of op(b) over k: of 64 columns at a time, in blocks of 64 rows.
void bias_gradient(const fa_gemm_args &g) {
  constexpr int64_t BLOCK = 64;
  const float *b = (const float *)g.b;
  int threads = threads_for((double)g.k * g.n / 8);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < g.n; first += BLOCK) {
    int64_t columns = least(BLOCK, g.n - first);
    float total[BLOCK] = {};
    for (int64_t p = 0; p < g.k; p += BLOCK) {
      float part[BLOCK] = {};
      int64_t end = least(g.k, p + BLOCK);
      if (g.trans_b) {
        for (int64_t j = 0; j < columns; j++) {
          for (int64_t q = p; q < end; q++) part[j] += b[(first + j) * g.ldb + q];
        }
      } else if (columns == BLOCK) {
        for (int64_t q = p; q < end; q++) {
          for (int64_t j = 0; j < BLOCK; j++) part[j] += b[q * g.ldb + first + j];
        }
      } else {
        for (int64_t q = p; q < end; q++) {
          for (int64_t j = 0; j < columns; j++) part[j] += b[q * g.ldb + first + j];
        }
      }
      for (int64_t j = 0; j < BLOCK; j++) total[j] += part[j];
    }
    for (int64_t j = 0; j < columns; j++)
      g.bias_grad[first + j] = total[j] + (g.beta != 0 ? g.bias_grad[first + j] : 0);
  }
}

}  // namespace

void gemm(const fa_gemm_args &g) {
  if (g.epilogue == FA_EPILOGUE_BIAS_GRAD) bias_gradient(g);
  if (g.m == 0 || g.n == 0) return;
  if (g.k == 0) {
    scale_only(g);
  } else {
    product(g);
  }
}

}  // namespace FA_ISA
