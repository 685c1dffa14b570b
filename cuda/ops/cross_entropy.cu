// Softmax cross-entropy with label smoothing; the gradient takes the place of the logits. One block a row: the logits
// are read once and written once.
#include "row.cuh"

namespace fa {
namespace {

constexpr int loss_threads = 512;

struct LossArguments {
  float *loss, *nll;
  int32_t *correct;
  const int32_t *targets;
  const float *grad_scale;
  int64_t stride;
  float smoothing;
  int V, pad_id;
  bool with_gradient;
};

// Zeroes the columns first .. stride of a row.
template <class T, bool Vector>
__device__ __forceinline__ void zero_row(T *row, int64_t first, int64_t stride) {
  for (int64_t c = first + threadIdx.x * 8; c < stride; c += loss_threads * 8) {
    store_pack<T, Vector>(row + c, static_cast<int>(min(static_cast<int64_t>(8), stride - c)), zero_pack<T>());
  }
}

template <class T, bool Vector, class Row>
__device__ __forceinline__ void store_gradient(T *logits, const Row &row, const LossArguments &a, float maximum,
                                               float log_sum, int target) {
  const float scale = a.grad_scale[0];
  const float even = a.smoothing / a.V * scale;
  const float shift = log_sum * log2_e;
#pragma unroll 2
  for (int g = threadIdx.x; g < row.groups; g += loss_threads) {
    float x[8];
    row.get(g, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = fmaf(power_of_two(fmaf(x[i] - maximum, log2_e, -shift)), scale, -even);
    // A subtraction for each element: a choice among them would be an index, which moves x to local memory.
    const float peak = target >> 3 == g ? (1.0f - a.smoothing) * scale : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] -= i == (target & 7) ? peak : 0.0f;
    const int valid = row.valid(g);
    if (valid < 8) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (i >= valid) x[i] = 0.0f;
      }
    }
    const int64_t stored = Vector ? 8 : a.stride - static_cast<int64_t>(g) * 8;
    store_pack<T, Vector>(logits + static_cast<int64_t>(g) * 8, stored < 8 ? static_cast<int>(stored) : 8,
                          pack_of<T>(x));
  }
  zero_row<T, Vector>(logits, static_cast<int64_t>(row.groups) * 8, a.stride);
}

template <class T, bool Vector, bool Cached>
__global__ __launch_bounds__(loss_threads, 3) void cross_entropy_kernel(T *all_logits, LossArguments a) {
  extern __shared__ uint4 shared_row[];
  __shared__ SoftmaxPart parts[loss_threads / 32];
  const int64_t r = blockIdx.x;
  T *logits = all_logits + r * a.stride;
  const int target = a.targets[r];
  if (target == a.pad_id || target < 0 || target >= a.V) {
    if (threadIdx.x == 0) {
      a.loss[r] = 0.0f;
      a.nll[r] = 0.0f;
      if (a.correct != nullptr) a.correct[r] = 0;
    }
    if (a.with_gradient) zero_row<T, Vector>(logits, 0, a.stride);
    return;
  }
  const LogitRow<T, Vector, Cached> row(logits, shared_row, a.V);
  const float at_target = to_float(logits[target]);
  row.wait();
  const SoftmaxPart part = row_softmax<loss_threads, true>(row, parts);
  // The maximum is taken off before the logarithm is added: of large logits little else would be left.
  const float log_sum = logf(part.sum);
  if (threadIdx.x == 0) {
    const float nll = part.maximum - at_target + log_sum;
    a.nll[r] = nll;
    a.loss[r] = (1.0f - a.smoothing) * nll + a.smoothing * (part.maximum - part.total / a.V + log_sum);
  }
  // The owner of the first group with the maximum knows which of its columns has it first.
  if (a.correct != nullptr && static_cast<int>(threadIdx.x) == part.group % loss_threads) {
    float x[8];
    int best = -1;
    if (part.group < row.groups) {
      row.get(part.group, x);
#pragma unroll
      for (int i = 7; i >= 0; i--) {
        if (x[i] == part.maximum) best = part.group * 8 + i;
      }
    }
    a.correct[r] = best == target ? 1 : 0;
  }
  if (!a.with_gradient) return;
  if constexpr (!Cached) __syncthreads();
  store_gradient<T, Vector>(logits, row, a, part.maximum, log_sum, target);
}

template <class T, bool Vector, bool Cached>
fa_status launch(fa_ctx *ctx, void *logits, const LossArguments &arguments, int rows, size_t shared) {
  constexpr auto kernel = cross_entropy_kernel<T, Vector, Cached>;
  FA_TRY(prefer_shared(ctx, kernel, shared));
  kernel<<<rows, loss_threads, shared, ctx->stream>>>(static_cast<T *>(logits), arguments);
  return FA_LAUNCHED(ctx, "cross_entropy_kernel");
}

}  // namespace
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_cross_entropy(fa_ctx *ctx, float *loss, float *nll, int32_t *correct, void *logits,
                                                const int32_t *targets, int32_t rows, int32_t V, int64_t stride,
                                                float smoothing, int32_t pad_id, const float *grad_scale,
                                                int32_t with_gradient, int32_t dtype) {
  return fa::entry(ctx, "fa_cross_entropy", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, V, 1, INT32_MAX - 4096, "V"));
    FA_TRY(fa::check_range(ctx, stride, V, INT64_MAX / 8, "stride"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    if (!(smoothing >= 0.0f && smoothing < 1.0f)) {
      return fa::fail(ctx, FA_INVALID, "smoothing must be in [0, 1): current value is %g",
                      static_cast<double>(smoothing));
    }
    if (rows == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, loss, "loss", 4));
    FA_TRY(fa::check_pointer(ctx, nll, "nll", 4));
    FA_TRY(fa::check_optional(ctx, correct, "correct", 4));
    FA_TRY(fa::check_pointer(ctx, logits, "logits", dtype == FA_F32 ? 4 : 2));
    FA_TRY(fa::check_pointer(ctx, targets, "targets", 4));
    if (with_gradient != 0) FA_TRY(fa::check_pointer(ctx, grad_scale, "grad_scale", 4));
    const fa::LossArguments arguments{loss,      nll, correct, targets,           grad_scale, stride,
                                      smoothing, V,   pad_id,  with_gradient != 0};
    return fa::by_dtype(dtype, [&](auto type) -> fa_status {
      using T = decltype(type);
      // Whole groups are read, so the row must hold V rounded up to eight.
      const bool vector = reinterpret_cast<uintptr_t>(logits) % 16 == 0 && stride % 8 == 0;
      const size_t shared = fa::row_cache_bytes<T>(ctx, V);
      if (shared == 0) return fa::launch<T, false, false>(ctx, logits, arguments, rows, 0);
      return vector ? fa::launch<T, true, true>(ctx, logits, arguments, rows, shared)
                    : fa::launch<T, false, true>(ctx, logits, arguments, rows, shared);
    });
  });
}
