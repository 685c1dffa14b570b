// The passes of dotscale in order; one .cu file per type instantiates them.
#ifndef FLASHATTN_DOTSCALE_CUH
#define FLASHATTN_DOTSCALE_CUH

#include "dotscale_softmax.cuh"

namespace fa::dotscale {

fa_status forward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status forward_fp16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_bf16(fa_ctx *ctx, const fa_attention_args &args);
fa_status backward_fp16(fa_ctx *ctx, const fa_attention_args &args);

// Launches on one problem; each returns the launch's status. Matrices have `pitch` elements a row.
template <class T>
struct Passes {
  fa_ctx *ctx;
  Problem p;
  int pitch;

  int64_t tiles(int length, int tile) const { return length > 0 ? ceil_div(length, tile) : 1; }
  // Blocks for every head of every sequence; `loose`: and for the rows of no sequence.
  int64_t blocks(int64_t per_head, bool loose) const {
    return per_head * p.a.H * (static_cast<int64_t>(p.a.B) + (loose ? 1 : 0));
  }

  template <int columns>
  fa_status outer_as(T *matrix, Rows left, Rows right, float alpha) const {
    const int64_t rows = tiles(p.a.max_q, 128), keys = tiles(p.a.max_k, 128), grid = blocks(rows * keys, false);
    if (grid == 0) return FA_OK;
    FA_TRY(check_grid(ctx, grid));
    constexpr int shared = OuterConfig<columns>::shared_bytes;
    auto kernel = outer_kernel<T, columns>;
    FA_TRY(allow_shared(ctx, kernel, shared));
    kernel<<<static_cast<unsigned>(grid), 256, shared, ctx->stream>>>(p, left, right, matrix, pitch, alpha,
                                                                      static_cast<int>(rows), static_cast<int>(keys));
    return FA_LAUNCHED(ctx, "dotscale scores");
  }
  fa_status outer(T *matrix, Rows left, Rows right, float alpha) const {
    return p.a.D <= 64 ? outer_as<64>(matrix, left, right, alpha) : outer_as<128>(matrix, left, right, alpha);
  }

  template <int columns, bool transposed>
  fa_status inner_as(Rows result, const T *matrix, Rows right, float alpha) const {
    const int64_t count = tiles(transposed ? p.a.max_k : p.a.max_q, 128), grid = blocks(count, true);
    FA_TRY(check_grid(ctx, grid));
    constexpr int shared = InnerConfig<columns>::shared_bytes;
    auto kernel = inner_kernel<T, columns, transposed>;
    FA_TRY(allow_shared(ctx, kernel, shared));
    kernel<<<static_cast<unsigned>(grid), 128, shared, ctx->stream>>>(p, matrix, pitch, right, result, alpha,
                                                                      static_cast<int>(count));
    return FA_LAUNCHED(ctx, "dotscale product");
  }
  template <bool transposed>
  fa_status inner(Rows result, const T *matrix, Rows right, float alpha) const {
    return p.a.D <= 64 ? inner_as<64, transposed>(result, matrix, right, alpha)
                       : inner_as<128, transposed>(result, matrix, right, alpha);
  }

  fa_status softmax(T *matrix) const {
    const int64_t count = tiles(p.a.max_q, kRowsPerBlock), grid = blocks(count, true);
    FA_TRY(check_grid(ctx, grid));
    softmax_kernel<T><<<static_cast<unsigned>(grid), 128, 0, ctx->stream>>>(p, matrix, pitch, static_cast<int>(count));
    return FA_LAUNCHED(ctx, "dotscale softmax");
  }
  fa_status softmax_gradient(const T *probabilities, T *gradient) const {
    const int64_t count = tiles(p.a.max_q, kRowsPerBlock), grid = blocks(count, false);
    if (grid == 0) return FA_OK;
    FA_TRY(check_grid(ctx, grid));
    softmax_gradient_kernel<T><<<static_cast<unsigned>(grid), 128, 0, ctx->stream>>>(p, probabilities, gradient, pitch,
                                                                                     static_cast<int>(count));
    return FA_LAUNCHED(ctx, "dotscale softmax gradient");
  }
  fa_status drop(const T *source, T *target) const {
    const int64_t count = tiles(p.a.max_q, 16), grid = blocks(count, false);
    if (grid == 0) return FA_OK;
    FA_TRY(check_grid(ctx, grid));
    drop_kernel<T><<<static_cast<unsigned>(grid), 128, 0, ctx->stream>>>(p, source, target, pitch,
                                                                         static_cast<int>(count));
    return FA_LAUNCHED(ctx, "dotscale dropout");
  }
};

template <class T>
Passes<T> make_passes(fa_ctx *ctx, const fa_attention_args &args) {
  return Passes<T>{ctx, make_problem(args), static_cast<int>(matrix_pitch(args))};
}

inline Rows rows(const void *base, int64_t stride) { return Rows{const_cast<void *>(base), stride}; }

template <class T>
fa_status forward(fa_ctx *ctx, const fa_attention_args &a) {
  const Passes<T> passes = make_passes<T>(ctx, a);
  T *matrix = static_cast<T *>(a.saved);
  const T *factor = matrix;
  FA_TRY(passes.outer(matrix, rows(a.q, a.q_stride), rows(a.k, a.k_stride), a.scale));
  FA_TRY(passes.softmax(matrix));
  if (passes.p.dropout.threshold != 0) {
    FA_TRY(passes.drop(matrix, static_cast<T *>(a.workspace)));
    factor = static_cast<const T *>(a.workspace);
  }
  return passes.template inner<false>(rows(a.out, a.out_stride), factor, rows(a.v, a.v_stride), passes.p.dropout.scale);
}

template <class T>
fa_status backward(fa_ctx *ctx, const fa_attention_args &a) {
  const Passes<T> passes = make_passes<T>(ctx, a);
  const T *probabilities = static_cast<const T *>(a.saved);
  T *gradient = static_cast<T *>(a.workspace);
  const T *factor = probabilities;
  const bool dropout = passes.p.dropout.threshold != 0;
  const float kept_scale = passes.p.dropout.scale;
  const Rows dout = rows(a.dout, a.dout_stride);
  if (dropout) {
    // The matrix of gradients comes later: until then its place holds the probabilities that were kept.
    FA_TRY(passes.drop(probabilities, gradient));
    factor = gradient;
  }
  FA_TRY(passes.template inner<true>(rows(a.dv, a.dv_stride), factor, dout, kept_scale));
  FA_TRY(passes.outer(gradient, dout, rows(a.v, a.v_stride), kept_scale));
  if (dropout) FA_TRY(passes.drop(gradient, gradient));
  FA_TRY(passes.softmax_gradient(probabilities, gradient));
  FA_TRY(passes.template inner<false>(rows(a.dq, a.dq_stride), gradient, rows(a.k, a.k_stride), a.scale));
  return passes.template inner<true>(rows(a.dk, a.dk_stride), gradient, rows(a.q, a.q_stride), a.scale);
}

}  // namespace fa::dotscale

#endif
