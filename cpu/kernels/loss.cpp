// Softmax cross-entropy with label smoothing, and top-k: one pass over a row of logits for its maximum, one for the
// rest.
#include <string.h>

#include "ops.hpp"

namespace FA_ISA {
namespace {

// Floats of a row that are summed in single precision before they go to a double.
constexpr int32_t BLOCK = 64 * W;

FA_INLINE float row_max(const float *x, int32_t n) {
  vf best = splat(-__builtin_inff());
  int32_t i = 0;
  for (; i + W <= n; i += W) best = vmax(load(x + i), best);
  float value = hmax(best);
  for (; i < n; i++) value = x[i] > value ? x[i] : value;
  return value;
}

struct RowSums {
  double exponentials, values;  // of e^(x - max), of x - max
};

FA_INLINE RowSums row_sums(const float *x, int32_t n, float max) {
  RowSums sums{0, 0};
  for (int32_t first = 0; first < n; first += BLOCK) {
    int32_t end = first + BLOCK < n ? first + BLOCK : n, i = first;
    vf exponentials{}, values{};
    for (; i + W <= end; i += W) {
      vf v = load(x + i) - max;
      values += v;
      exponentials += vexp(v);
    }
    sums.exponentials += (double)hsum(exponentials);
    sums.values += (double)hsum(values);
    if (i < end) {
      // Lanes past the end hold the maximum, so that they add 0 to the one sum and are not read for the other.
      vf v = load_part(x + i, end - i, max) - max;
      vf e = vexp(v);
      sums.values += (double)hsum(v);
      for (int l = 0; l < end - i; l++) sums.exponentials += (double)e[l];
    }
  }
  return sums;
}

/// x = e^(x - max) * scale - shift
FA_INLINE void row_gradient(float *x, int32_t n, float max, float scale, float shift) {
  int32_t i = 0;
  for (; i + W <= n; i += W) store(x + i, vexp(load(x + i) - max) * scale - shift);
  if (i < n) store_part(x + i, vexp(load_part(x + i, n - i, max) - max) * scale - shift, n - i);
}

FA_INLINE bool is_arg_max(const float *x, int32_t target, float max) {
  if (!(x[target] >= max)) return false;
  for (int32_t i = 0; i < target; i++) {
    if (x[i] == max) return false;
  }
  return true;
}

void cross_entropy_row(const fa::CrossEntropy &c, int64_t r) {
  float *x = c.logits + r * c.stride;
  int32_t target = c.targets[r];
  if (target == c.pad_id || target < 0 || target >= c.V) {
    c.loss[r] = c.nll[r] = 0;
    if (c.correct) c.correct[r] = 0;
    if (c.with_gradient) memset(x, 0, (size_t)c.stride * 4);
    return;
  }
  float max = row_max(x, c.V);
  RowSums sums = row_sums(x, c.V, max);
  double log_sum = __builtin_log(sums.exponentials), at_target = (double)x[target] - (double)max;
  double e = (double)c.smoothing;
  c.nll[r] = (float)(log_sum - at_target);
  c.loss[r] = (float)(log_sum - (1 - e) * at_target - (e > 0 ? e / c.V * sums.values : 0));
  if (c.correct) c.correct[r] = is_arg_max(x, target, max);
  if (!c.with_gradient) return;
  double scale = (double)c.grad_scale[0];
  row_gradient(x, c.V, max, (float)(scale / sums.exponentials), (float)(scale * e / c.V));
  x[target] -= (float)(scale * (1 - e));
  memset(x + c.V, 0, (size_t)(c.stride - c.V) * 4);
}

constexpr int MOST = 64;

/// The k best so far, best first; among equals the one that came first.
struct Best {
  float values[MOST];
  int32_t ids[MOST];
  int count;

  void offer(float value, int32_t id, int k) {
    value = value == value ? value : -__builtin_inff();
    if (count == k && !(value > values[k - 1])) return;
    int at = count < k ? count++ : k - 1;
    for (; at > 0 && value > values[at - 1]; at--) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = value;
    ids[at] = id;
  }
};

void topk_row(float *scores, int32_t *ids, const float *x, int32_t V, int32_t k) {
  constexpr int STEP = 4 * W;
  Best best;
  best.count = 0;
  int32_t i = 0;
  for (; i < k; i++) best.offer(x[i], i, k);
  for (; i + STEP <= V; i += STEP) {
    vf most = vmax(vmax(load(x + i), load(x + i + W)), vmax(load(x + i + 2 * W), load(x + i + 3 * W)));
    // A NaN may hide its neighbours in `most`; it does not compare, so that `!(<=)` looks closer.
    if (!lane_bits(~(vi)(most <= best.values[k - 1]))) continue;
    for (int32_t at = i; at < i + STEP; at += W) {
      uint32_t better = lane_bits((vi)(load(x + at) > best.values[k - 1]));
      for (; better; better &= better - 1) best.offer(x[at + __builtin_ctz(better)], at + __builtin_ctz(better), k);
    }
  }
  for (; i < V; i++) best.offer(x[i], i, k);
  float max = best.values[0];
  double log_sum = __builtin_log(row_sums(x, V, max).exponentials);
  for (int j = 0; j < k; j++) {
    scores[j] = (float)((double)best.values[j] - (double)max - log_sum);
    ids[j] = best.ids[j];
  }
}

}  // namespace

void cross_entropy(const fa::CrossEntropy &c) {
  int threads = threads_for((double)c.rows * c.V);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < c.rows; r++) cross_entropy_row(c, r);
}

void topk(float *scores, int32_t *ids, const float *logits, int32_t rows, int32_t V, int64_t stride, int32_t k) {
  int threads = threads_for((double)rows * V);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < rows; r++) topk_row(scores + r * k, ids + r * k, logits + r * stride, V, k);
}

}  // namespace FA_ISA
