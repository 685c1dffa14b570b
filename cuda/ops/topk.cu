// The k best classes of each row, for beam search. One block a row; each thread keeps the best of the columns it owns,
// the block takes the best of those k times, and the thread that lost its best looks for the next one.
#include "row.cuh"

namespace fa {
namespace {

constexpr int topk_threads = 256;
constexpr int most_k = 64;

// Orders by value, then by lower id; unique for each id. NaN counts as -inf.
__device__ __forceinline__ uint64_t sort_key(float x, int id) {
  if (x != x) x = -INFINITY;
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 ties with 0
  const uint32_t ordered = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ __forceinline__ float key_value(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ int key_id(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

// The best key of the thread's columns below `limit`; 0: none is left.
template <class Row>
__device__ __forceinline__ uint64_t best_below(const Row &row, uint64_t limit) {
  uint64_t best = 0;
  for (int g = threadIdx.x; g < row.groups; g += topk_threads) {
    float x[8];
    row.get(g, x);
    const int valid = row.valid(g);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint64_t key = sort_key(x[i], g * 8 + i);
      if (i < valid && key < limit && key > best) best = key;
    }
  }
  return best;
}

// `shared` alternates between rounds, so that one barrier a round is enough.
__device__ __forceinline__ uint64_t block_best(uint64_t key, uint64_t *shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const uint64_t other = __shfl_xor_sync(0xffffffffu, key, offset);
    key = key > other ? key : other;
  }
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = key;
  __syncthreads();
  key = shared[0];
#pragma unroll
  for (int w = 1; w < topk_threads / 32; w++) key = key > shared[w] ? key : shared[w];
  return key;
}

template <class T, bool Vector, bool Cached>
__global__ __launch_bounds__(topk_threads) void topk_kernel(float *scores, int32_t *ids, const T *all_logits, int V,
                                                            int64_t stride, int k) {
  extern __shared__ uint4 shared_row[];
  __shared__ SoftmaxPart parts[topk_threads / 32];
  __shared__ uint64_t keys[2][topk_threads / 32];
  const int64_t r = blockIdx.x;
  const LogitRow<T, Vector, Cached> row(all_logits + r * stride, shared_row, V);
  row.wait();
  const SoftmaxPart part = row_softmax<topk_threads, false>(row, parts);
  const float lse = part.maximum + logf(part.sum);
  uint64_t mine = best_below(row, ~uint64_t{0});
  for (int i = 0; i < k; i++) {
    const uint64_t best = block_best(mine, keys[i & 1]);
    if (threadIdx.x == 0) {
      scores[r * k + i] = key_value(best) - lse;
      ids[r * k + i] = key_id(best);
    }
    if (best == mine && i + 1 < k) mine = best_below(row, best);
  }
}

template <class T, bool Vector, bool Cached>
fa_status launch(fa_ctx *ctx, float *scores, int32_t *ids, const void *logits, int rows, int V, int64_t stride, int k,
                 size_t shared) {
  constexpr auto kernel = topk_kernel<T, Vector, Cached>;
  FA_TRY(prefer_shared(ctx, kernel, shared));
  kernel<<<rows, topk_threads, shared, ctx->stream>>>(scores, ids, static_cast<const T *>(logits), V, stride, k);
  return FA_LAUNCHED(ctx, "topk_kernel");
}

}  // namespace
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_topk(fa_ctx *ctx, float *scores, int32_t *ids, const void *logits, int32_t rows,
                                       int32_t V, int64_t stride, int32_t k, int32_t dtype) {
  return fa::entry(ctx, "fa_topk", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, V, 1, INT32_MAX - 4096, "V"));
    FA_TRY(fa::check_range(ctx, stride, V, INT64_MAX / 8, "stride"));
    FA_TRY(fa::check_range(ctx, k, 1, V < fa::most_k ? V : fa::most_k, "k"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    if (rows == 0) return FA_OK;
    FA_TRY(fa::check_pointer(ctx, scores, "scores", 4));
    FA_TRY(fa::check_pointer(ctx, ids, "ids", 4));
    FA_TRY(fa::check_pointer(ctx, logits, "logits", dtype == FA_F32 ? 4 : 2));
    return fa::by_dtype(dtype, [&](auto type) -> fa_status {
      using T = decltype(type);
      const bool vector = reinterpret_cast<uintptr_t>(logits) % 16 == 0 && stride % 8 == 0;
      const size_t shared = fa::row_cache_bytes<T>(ctx, V);
      if (shared == 0) return fa::launch<T, false, false>(ctx, scores, ids, logits, rows, V, stride, k, 0);
      return vector ? fa::launch<T, true, true>(ctx, scores, ids, logits, rows, V, stride, k, shared)
                    : fa::launch<T, false, true>(ctx, scores, ids, logits, rows, V, stride, k, shared);
    });
  });
}
