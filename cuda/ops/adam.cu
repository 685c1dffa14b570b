// Adam with decoupled weight decay over flat buffers: one pass, 30 bytes a parameter with 16-bit weights.
#include "../types.cuh"

namespace fa {
namespace {

struct AdamConstants {
  float beta1, beta2, eps, weight_decay;
};

struct AdamStep {
  float rate, correction1, correction2, clip;

  __device__ __forceinline__ float update(float p, float &m, float &v, float g, const AdamConstants &c) const {
    g *= clip;
    m = c.beta1 * m + (1.0f - c.beta1) * g;
    v = c.beta2 * v + (1.0f - c.beta2) * g * g;
    const float direction = m * correction1 / (sqrtf(v * correction2) + c.eps);
    return p - rate * (direction + c.weight_decay * p);
  }
};

template <class T, bool Vector>
__device__ __forceinline__ void adam_group(T *weights, float *master, float *m, float *v, const float *grad,
                                           int64_t first, int valid, const AdamStep &step,
                                           const AdamConstants &constants) {
  const Pack<float> loaded[4] = {load_pack<float, Vector>(grad + first, valid),
                                 load_pack<float, Vector>(m + first, valid), load_pack<float, Vector>(v + first, valid),
                                 load_pack<float, Vector>(master + first, valid)};
  float g[8], mean[8], square[8], p[8];
  unpack(loaded[0], g);
  unpack(loaded[1], mean);
  unpack(loaded[2], square);
  unpack(loaded[3], p);
#pragma unroll
  for (int i = 0; i < 8; i++) p[i] = step.update(p[i], mean[i], square[i], g[i], constants);
  store_pack<float, Vector>(m + first, valid, pack_of<float>(mean));
  store_pack<float, Vector>(v + first, valid, pack_of<float>(square));
  store_pack<float, Vector>(master + first, valid, pack_of<float>(p));
  store_pack<T, Vector>(weights + first, valid, pack_of<T>(p));
}

template <class T>
__global__ __launch_bounds__(256) void adam_kernel(T *weights, float *master, float *m, float *v, const float *grad,
                                                   int64_t n, const float *hyper, const float *norm,
                                                   AdamConstants constants) {
  const float clip = norm == nullptr ? 1.0f : norm[1];
  if (clip == 0.0f) return;  // the gradient is not finite
  const AdamStep step{hyper[0], hyper[1], hyper[2], clip};
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8;
  if (first + 8 <= n) {
    adam_group<T, true>(weights, master, m, v, grad, first, 8, step, constants);
  } else if (first < n) {
    adam_group<T, false>(weights, master, m, v, grad, first, static_cast<int>(n - first), step, constants);
  }
}

}  // namespace
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_adam(fa_ctx *ctx, void *weights, float *master, float *m, float *v, const float *grad,
                                       int64_t n, const float *hyper, const float *norm, float beta1, float beta2,
                                       float eps, float weight_decay, int32_t dtype) {
  return fa::entry(ctx, "fa_adam", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, n, 0, INT64_MAX / 8, "n"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    if (n == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, weights, "weights"));
    FA_TRY(fa::check_pointer(ctx, master, "master"));
    FA_TRY(fa::check_pointer(ctx, m, "m"));
    FA_TRY(fa::check_pointer(ctx, v, "v"));
    FA_TRY(fa::check_pointer(ctx, grad, "grad"));
    FA_TRY(fa::check_pointer(ctx, hyper, "hyper", 4));
    FA_TRY(fa::check_optional(ctx, norm, "norm", 4));
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      const unsigned grid = static_cast<unsigned>(fa::ceil_div(n, 8 * 256));
      fa::adam_kernel<T><<<grid, 256, 0, ctx->stream>>>(static_cast<T *>(weights), master, m, v, grad, n, hyper, norm,
                                                        fa::AdamConstants{beta1, beta2, eps, weight_decay});
      return FA_LAUNCHED(ctx, "adam_kernel");
    });
  });
}
