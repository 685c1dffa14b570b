// What every attention kernel is given, and where one sequence of the batch lies.
#ifndef FLASHATTN_PROBLEM_CUH
#define FLASHATTN_PROBLEM_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../context.cuh"
#include "../philox.cuh"

namespace fa {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

struct Problem {
  fa_attention_args a;
  DropoutParams dropout;
  float scale_log2;  // scale * log2(e): exponents are base 2
};

inline Problem make_problem(const fa_attention_args &args) {
  return Problem{args, dropout_params(args.dropout, args.rng, args.site), args.scale * kLog2e};
}

// Rows of one sequence after clamping: nothing read through it lies outside the tensors.
struct Sequence {
  int q0, nq;  // query rows
  int k0, nk;  // key rows, by the offsets
  int keys;    // those that count
  int shift;   // causal: query i sees keys j <= i + shift
};

__device__ __forceinline__ int clamp_int(int x, int low, int high) { return min(max(x, low), high); }

// b == B is the rows of no sequence: queries without a key, keys without a query. Their number may exceed max_q or
// max_k.
__device__ __forceinline__ Sequence find_sequence(const fa_attention_args &a, int b) {
  Sequence s;
  s.q0 = clamp_int(a.cu_q[b], 0, a.rows_q);
  s.k0 = clamp_int(a.cu_k[b], 0, a.rows_k);
  if (b == a.B) {
    s.nq = a.rows_q - s.q0;
    s.nk = a.rows_k - s.k0;
    s.keys = 0;
    s.shift = 0;
    return s;
  }
  s.nq = min(clamp_int(a.cu_q[b + 1], s.q0, a.rows_q) - s.q0, a.max_q);
  s.nk = min(clamp_int(a.cu_k[b + 1], s.k0, a.rows_k) - s.k0, a.max_k);
  s.keys = a.key_len != nullptr ? clamp_int(a.key_len[b], 0, s.nk) : s.nk;
  s.shift = s.nk - s.nq;
  return s;
}

// A value of which the compiler does not know that it is x: what is derived from it is made anew, not kept in registers
// that sums need.
template <class X>
__device__ __forceinline__ X fresh(X x) {
  asm volatile("" : "+r"(x));
  return x;
}

// The same as find_sequence for b < B (and for no sequence at all, B = 0): every number is read before the first is
// looked at, one wait rather than two.
__device__ __forceinline__ Sequence read_sequence(const fa_attention_args &a, int b) {
  const int next = min(b + 1, a.B);
  const int q_begin = a.cu_q[b], q_end = a.cu_q[next], k_begin = a.cu_k[b], k_end = a.cu_k[next];
  const int key_len = a.key_len != nullptr && next > b ? a.key_len[b] : INT32_MAX;
  Sequence s;
  s.q0 = clamp_int(q_begin, 0, a.rows_q);
  s.k0 = clamp_int(k_begin, 0, a.rows_k);
  s.nq = min(clamp_int(q_end, s.q0, a.rows_q) - s.q0, a.max_q);
  s.nk = min(clamp_int(k_end, s.k0, a.rows_k) - s.k0, a.max_k);
  s.keys = clamp_int(key_len, 0, s.nk);
  s.shift = s.nk - s.nq;
  return s;
}

// The sequence read again: kept through a walk, it would push accumulators out to memory.
__device__ __forceinline__ Sequence find_sequence_again(const fa_attention_args &a, int b) {
  return find_sequence(a, fresh(b));
}

// Keys that query i sees: those below the result (which may be <= 0).
__device__ __forceinline__ int visible_keys(const fa_attention_args &a, const Sequence &s, int i) {
  return a.causal ? min(s.keys, i + s.shift + 1) : s.keys;
}

// Element pointers of one head. Strides are in elements of 16 bits.
template <class T>
__device__ __forceinline__ T *head_row(const void *base, int64_t row, int64_t stride, int h, int D) {
  return static_cast<T *>(const_cast<void *>(base)) + row * stride + static_cast<int64_t>(h) * D;
}

inline int64_t heads_of(const fa_attention_args &a) { return static_cast<int64_t>(a.B) * a.H; }

// Grid of `tiles` x H x (B + 1) blocks in one dimension; empty problems launch nothing.
inline fa_status check_grid(fa_ctx *ctx, int64_t blocks) {
  if (blocks <= INT32_MAX) return FA_OK;
  return fail(ctx, FA_UNSUPPORTED, "batch * heads * length gives %lld blocks, more than a grid holds",
              static_cast<long long>(blocks));
}

}  // namespace fa

#endif
