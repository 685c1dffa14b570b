// The whole backward pass of sequences of at most 128 queries and 128 keys on Hopper, on chip: one launch, each tensor
// read or written once, every sum in a fixed order. Up to 64 rows a block takes two heads of a sequence, one to each of
// its two warpgroups; beyond, both do one head, 64 keys (and for dq 64 queries) each.
//
// P^T is an operand in registers; dS^T goes to shared memory, for dk = dS^T Q and dq = dS K.
#ifndef FLASHATTN_HOPPER_BACKWARD_SHORT_CUH
#define FLASHATTN_HOPPER_BACKWARD_SHORT_CUH

#include "hopper_backward_primitives.cuh"

namespace fa::hopper {

constexpr int kShortRows = 128;

template <class T_, int D_, int Blocks_, bool Dropout_>
struct ShortConfig {
  using T = T_;
  static constexpr int D = D_, Blocks = Blocks_;
  static constexpr bool Dropout = Dropout_;
  static constexpr int Panels = D / kPanelColumns;
  static constexpr int Threads = 256;
  static constexpr int TileBytes = kGroupPanelBytes * Panels;  // 64 rows
  static constexpr int DsOffset = 8 * TileBytes, StatsOffset = DsOffset + 2 * kGroupPanelBytes;
  static constexpr int SharedBytes = StatsOffset + 4 * kGroupRows * 4 + 1024;  // 1024: room to align
};

// One warpgroup's part of a head. Tiles: of queries and of keys; with one, `group` is a head's place in the block.
template <class C, int Tiles>
struct ShortHead {
  using T = typename C::T;
  const Problem &p;
  const uint32_t base;
  const Sequence &s;
  const int b, h, group;

  __device__ __forceinline__ uint32_t tile(int kind, int set) const { return base + (kind * 2 + set) * C::TileBytes; }
  __device__ __forceinline__ uint32_t q(int set) const { return tile(0, set); }
  __device__ __forceinline__ uint32_t k(int set) const { return tile(1, set); }
  __device__ __forceinline__ uint32_t v(int set) const { return tile(2, set); }
  __device__ __forceinline__ uint32_t dout(int set) const { return tile(3, set); }
  // dS^T of the keys of `set` and query tile qt; the second takes the place of V.
  __device__ __forceinline__ uint32_t ds(int set, int qt) const {
    return qt == 0 ? base + C::DsOffset + set * kGroupPanelBytes : v(set);
  }
  __device__ __forceinline__ uint32_t lse(int set) const { return base + C::StatsOffset + set * 2 * kGroupRows * 4; }
  __device__ __forceinline__ uint32_t delta(int set) const { return lse(set) + kGroupRows * 4; }

  __device__ __forceinline__ int first_row() const { return Tiles == 2 ? group * kGroupRows : 0; }
  __device__ __forceinline__ int query_set(int qt) const { return Tiles == 2 ? qt : group; }
  __device__ __forceinline__ void sync() const {
    if constexpr (Tiles == 2) {
      named_sync(3, 256);
    } else {
      named_sync(1 + group, 128);
    }
  }

  // Rows row .. row + 63 of a tensor; zeros past `rows`.
  __device__ __forceinline__ void load(uint32_t to, const void *tensor, int64_t stride, int row0, int rows) const {
    const int thread = threadIdx.x % 128, chunk = thread % 8;
    const T *from = head_row<T>(tensor, row0 + first_row() + thread / 8, stride, h, C::D) + chunk * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = thread / 8 + i * 16;
#pragma unroll
      for (int panel = 0; panel < C::Panels; panel++) {
        copy_async_16(to + panel * kGroupPanelBytes + row * kRowBytes + (((chunk ^ row) & 7) << 4),
                      from + i * 16 * stride + panel * kPanelColumns, first_row() + row < rows ? 16 : 0);
      }
    }
  }

  // Two threads share a row: each has half of its part of out.
  __device__ __forceinline__ void load_out(uint4 (&out)[C::D / 16], float &row_lse) const {
    const int row = first_row() + threadIdx.x % 128 / 2, half = threadIdx.x % 2;
    const bool exists = row < s.nq;
    const T *from = head_row<T>(p.a.out, s.q0 + row, p.a.out_stride, h, C::D) + half * (C::D / 2);
#pragma unroll
    for (int i = 0; i < C::D / 16; i++) {
      out[i] = exists ? reinterpret_cast<const uint4 *>(from)[i] : make_uint4(0, 0, 0, 0);
    }
    row_lse = exists ? scaled_lse(p.a.lse[static_cast<int64_t>(h) * p.a.rows_q + s.q0 + row]) : INFINITY;
  }

  __device__ __forceinline__ void store_statistics(const uint4 (&out)[C::D / 16], float row_lse) const {
    const int row = threadIdx.x % 128 / 2, half = threadIdx.x % 2;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < C::D / 16; i++) {
      const int chunk = half * (C::D / 16) + i;
      sum += dot8<T>(out[i], load_shared16(dout(group) + chunk / 8 * kGroupPanelBytes + row * kRowBytes +
                                           (((chunk ^ row) & 7) << 4)));
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    if (half == 0) {
      store_shared_float(lse(group) + row * 4, row_lse);
      store_shared_float(delta(group) + row * 4, row_lse == INFINITY ? 0.0f : sum);
    }
  }

  __device__ __forceinline__ void mask(float (&x)[kGroupRows / 2], int qt) const {
    const Sequence s = find_sequence_again(p.a, b);
    const bool causal = p.a.causal;
    if (!causal && first_row() + kGroupRows <= s.keys) return;
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int key = first_row() + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * r;
      limit[r] = key >= s.keys ? INT32_MAX / 2 : causal ? key - s.shift - qt * kGroupRows - threadIdx.x % 4 * 2 : 0;
    }
    mask_until<kGroupRows>(x, limit[0], limit[1]);
  }

  __device__ __forceinline__ void start_dq(float (&dq)[C::D / 2]) const {
    product_begin();
#pragma unroll
    for (int kt = 0; kt < Tiles; kt++) {
      const int set = Tiles == 2 ? kt : group;
      const uint64_t a = descriptor_mn_major(ds(set, Tiles == 2 ? group : 0), kGroupPanelBytes);
      const uint64_t b = descriptor_mn_major(k(set), kGroupPanelBytes);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        product_ss<T, C::D, 1, 1>(dq, advance(a, i * 16 * kRowBytes), advance(b, i * 16 * kRowBytes), kt > 0 || i > 0);
      }
    }
    product_commit();
  }

  __device__ __forceinline__ void start_dk(float (&dk)[C::D / 2]) const {
    product_begin();
#pragma unroll
    for (int qt = 0; qt < Tiles; qt++) {
      const uint64_t a = descriptor_k_major(ds(group, qt)), b = descriptor_mn_major(q(query_set(qt)), kGroupPanelBytes);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        product_ss<T, C::D, 0, 1>(dk, advance(a, i * 32), advance(b, i * 16 * kRowBytes), 1);
      }
    }
    product_commit();
  }

  // Query tile qt: P^T packed to pt, dS^T to shared memory as it lies, rows keys and columns queries.
  __device__ __forceinline__ void differentiate(uint32_t (&pt)[kGroupRows / 4], const Dropout &dropout, int qt) const {
    float x[kGroupRows / 2], dp[kGroupRows / 2];
    start_scores_product<T, C::D, kGroupRows>(x, k(group), q(query_set(qt)));
    start_scores_product<T, C::D, kGroupRows>(dp, v(group), dout(query_set(qt)));
    KeptBits<kGroupRows> kept;
    if constexpr (C::Dropout) {
      find_kept_transposed<kGroupRows>(dropout, qt * kGroupRows, first_row(), b * p.a.H + h, kept);
    }
    product_wait<0>();
    keep(x);
    keep(dp);
    if (qt == 1) named_sync(1 + group, 128);  // every warp is done with V
    mask(x, qt);
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = lane % 16;
    const uint32_t mine = ds(group, qt) + (warp * 16 + row) * kRowBytes;
    uint32_t dst[kGroupRows / 4];
#pragma unroll
    for (int j = 0; j < kGroupRows / 8; j++) {
      probabilities_at<T, kGroupRows, C::Dropout>(j, x, pt, lse(query_set(qt)), p.scale_log2, kept);
      differentiate_at<T, kGroupRows, C::Dropout>(j, x, dp, dst, delta(query_set(qt)), kept, dropout.scale);
      if (j % 2 == 1) {
        const int chunk = j - 1 + lane / 16;
        const uint32_t *y = dst + 2 * (j - 1);
        store_matrices(mine + ((chunk ^ (row & 7)) << 4), y[0], y[1], y[2], y[3]);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    uint4 out[C::D / 16];
    float row_lse;
    load(q(group), p.a.q, p.a.q_stride, s.q0, s.nq);
    load(k(group), p.a.k, p.a.k_stride, s.k0, s.keys);
    load(v(group), p.a.v, p.a.v_stride, s.k0, s.keys);
    load(dout(group), p.a.dout, p.a.dout_stride, s.q0, s.nq);
    load_out(out, row_lse);
    commit_async();
    wait_async<0>();
    fence_async_proxy();
    sync();
    const Dropout dropout(p.dropout);
    const uint32_t stage = dout(group);
    float dv[C::D / 2];
    {
      uint32_t pt[Tiles][kGroupRows / 4];
      store_statistics(out, row_lse);
      sync();
#pragma unroll
      for (int qt = 0; qt < Tiles; qt++) differentiate(pt[qt], dropout, qt);
#pragma unroll
      for (int i = 0; i < C::D / 2; i++) dv[i] = 0.0f;
      keep(dv);
#pragma unroll
      for (int qt = 0; qt < Tiles; qt++) start_sum_product<T, C::D, kGroupRows>(dv, pt[qt], dout(query_set(qt)));
      fence_async_proxy();
      product_wait<0>();
      keep(dv);
      sync();  // dS^T is whole, dO done with: it carries the results out
    }
    const Sequence s = find_sequence_again(p.a, b);
    const int existing = s.nk - first_row(), valid = s.keys - first_row();
    write_gradient<T, C::D>(dv, p.dropout.scale, stage, head_row<T>(p.a.dv, s.k0 + first_row(), p.a.dv_stride, h, C::D),
                            p.a.dv_stride, existing, valid);
    float dk[C::D / 2], dq[C::D / 2];
#pragma unroll
    for (int i = 0; i < C::D / 2; i++) dk[i] = 0.0f;
    keep(dk);
    start_dk(dk);
    start_dq(dq);
    product_wait<1>();
    keep(dk);
    write_gradient<T, C::D>(dk, p.a.scale, stage, head_row<T>(p.a.dk, s.k0 + first_row(), p.a.dk_stride, h, C::D),
                            p.a.dk_stride, existing, valid);
    product_wait<0>();
    keep(dq);
    write_gradient<T, C::D>(dq, p.a.scale, stage, head_row<T>(p.a.dq, s.q0 + first_row(), p.a.dq_stride, h, C::D),
                            p.a.dq_stride, s.nq - first_row(), s.nq - first_row());
  }
};

template <class C>
__global__ void __launch_bounds__(C::Threads, C::Blocks)
    hopper_backward_short_kernel(const __grid_constant__ Problem p, int heads) {
  extern __shared__ char dynamic_shared[];
  using T = typename C::T;
  const uint32_t base = (shared_address(dynamic_shared) + 1023) & ~1023u;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int b = blockIdx.x / p.a.H, h = blockIdx.x - b * p.a.H;
  if (b < p.a.B && heads > 0) {
    const Sequence s = read_sequence(p.a, b);
    if (s.nq <= kGroupRows && s.nk <= kGroupRows) {  // every second block, for two heads
      if (h % 2 == 0 && h + group < p.a.H && (s.nq > 0 || s.nk > 0)) {
        ShortHead<C, 1>{p, base, s, b, h + group, group}.run();
      }
    } else {
      ShortHead<C, 2>{p, base, s, b, h, group}.run();
    }
  }
  const int begin_q = clamp_int(p.a.cu_q[p.a.B], 0, p.a.rows_q), begin_k = clamp_int(p.a.cu_k[p.a.B], 0, p.a.rows_k);
  const int columns = p.a.H * C::D;
  clear_rows_past<T>(p.a.dq, p.a.dq_stride, begin_q, p.a.rows_q, columns, threadIdx.x, C::Threads);
  clear_rows_past<T>(p.a.dk, p.a.dk_stride, begin_k, p.a.rows_k, columns, threadIdx.x, C::Threads);
  clear_rows_past<T>(p.a.dv, p.a.dv_stride, begin_k, p.a.rows_k, columns, threadIdx.x, C::Threads);
}

template <class C>
fa_status launch_backward_short(fa_ctx *ctx, const Problem &p) {
  const fa_attention_args &a = p.a;
  if (a.rows_q == 0 && a.rows_k == 0) return FA_OK;
  const int64_t blocks = std::max<int64_t>(1, heads_of(a));
  FA_TRY(check_grid(ctx, blocks));
  auto kernel = hopper_backward_short_kernel<C>;
  FA_TRY(allow_shared(ctx, kernel, C::SharedBytes));
  kernel<<<static_cast<unsigned>(blocks), C::Threads, C::SharedBytes, ctx->stream>>>(p, static_cast<int>(heads_of(a)));
  return FA_LAUNCHED(ctx, "Hopper attention backward, short sequences");
}

}  // namespace fa::hopper

#endif
