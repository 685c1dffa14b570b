// The softmax of one step, on the accumulator registers of a warpgroup.
//
// The row maximum is taken in the first step of a tile and in steps with masked scores alone. Softmax needs no more
// than a reference m per row that keeps 2^(s - m) in range, so a later step goes by the reference it finds and looks
// at the sum of its exponentials: where that has left the range, the step is done again from its scores, which are
// still there, with their maximum. The result is the same; a quarter of the work of nearly every step is gone. Where
// a maximum is taken, the reference moves only if that has grown by more than 8 (base 2), so that O is seldom
// rescaled.
#ifndef FLASHATTN_HOPPER_FORWARD_SOFTMAX_CUH
#define FLASHATTN_HOPPER_FORWARD_SOFTMAX_CUH

#include "hopper_primitives.cuh"
#include "problem.cuh"

namespace fa::hopper {

constexpr float kNoMaximum = -1e30f;  // reference of a row that has seen no key
constexpr float kMaximumSlack = 8.0f;

// Largest sum of a thread's exponentials of a step that is taken as it is: well inside the range of P's type.
template <class T>
constexpr float kSumLimit = std::is_same_v<T, __half> ? 32768.0f : 16777216.0f;

// State of the two rows of a thread.
struct SoftmaxRows {
  float reference[2];  // in units of log2
  float sum[2];        // this thread's share
  float rescale[2];
};

template <int Keys>
__device__ __forceinline__ void mask_scores(float (&s)[Keys / 2], int limit0, int limit1) {
#pragma unroll
  for (int j = 0; j < Keys / 8; j++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      if (8 * j + c >= limit0) s[4 * j + c] = -INFINITY;
      if (8 * j + c >= limit1) s[4 * j + 2 + c] = -INFINITY;
    }
  }
}

// Moves the references up where a row's maximum asks for it. True (for the whole warp): O must be rescaled.
template <int Keys>
__device__ __forceinline__ bool update_reference(const float (&s)[Keys / 2], SoftmaxRows &rows, float scale_log2) {
  float top[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float chain[4] = {s[2 * r], s[2 * r + 1], s[4 + 2 * r], s[5 + 2 * r]};
#pragma unroll
    for (int j = 2; j < Keys / 8; j++) {
#pragma unroll
      for (int c = 0; c < 2; c++) chain[j % 2 * 2 + c] = fmaxf(chain[j % 2 * 2 + c], s[4 * j + 2 * r + c]);
    }
    top[r] = fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2)) * scale_log2;
  }
  const bool grown = top[0] > rows.reference[0] + kMaximumSlack || top[1] > rows.reference[1] + kMaximumSlack;
  if (!__any_sync(0xffffffffu, grown)) return false;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float reference = fmaxf(rows.reference[r], top[r]);
    rows.rescale[r] = exp2_fast(rows.reference[r] - reference);
    rows.reference[r] = reference;
    rows.sum[r] *= rows.rescale[r];
  }
  return true;
}

// p = 2^(s * scale - reference), packed; sums: those of the exponentials per row. `dropout` zeros what it drops of p,
// not of the sums; the scale of what is kept is applied to O at the end. `row`: the thread's first row in the
// sequence, `column`: its first key of this step, with dropout a multiple of 32 plus 0 to 6.
template <class C, int Keys>
__device__ __forceinline__ void exponentials(const float (&s)[Keys / 2], uint32_t (&p)[Keys / 4], float (&sums)[2],
                                             const SoftmaxRows &rows, float scale_log2, const Dropout &dropout, int row,
                                             int column, int head) {
  float partial[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  uint4 words[2];
#pragma unroll
  for (int j = 0; j < Keys / 8; j++) {
    if constexpr (C::Dropout) {
      if (j % 4 == 0) {
        words[0] = dropout.score_group(row, column + 8 * j, head);
        words[1] = dropout.score_group(row, column + 8 * j + 1, head);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float e[2];
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const float x = fmaf(s[4 * j + 2 * r + c], scale_log2, -rows.reference[r]);
        e[c] = exp2_fast(x);
        partial[r][c] += e[c];
        if constexpr (C::Dropout) {
          if (!dropout.keep(words[c], 4 * r + j % 4)) e[c] = 0.0f;
        }
      }
      p[2 * j + r] = Half2<typename C::T>::pack(e[0], e[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) sums[r] = partial[r][0] + partial[r][1];
}

}  // namespace fa::hopper

#endif
