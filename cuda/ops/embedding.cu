// Embedding with positions and dropout, forward and backward. The backward pass gives each block a range of the table: it
// lists the rows of that range in their order and adds them up, so no two blocks write the same place and no sum depends
// on timing.
#include <algorithm>

#include "columns.cuh"

namespace fa {
namespace {

struct EmbeddingForward {
  const int32_t *ids, *pos;
  const float *positions;
  int64_t rows, C;
  int V, P, chunk;
  float scale;
};

template <class T, bool Vector>
__global__ __launch_bounds__(256) void embedding_forward_kernel(T *out, const T *table, EmbeddingForward a,
                                                                DropoutParams params) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (column >= a.C) return;
  const int valid = static_cast<int>(min(static_cast<int64_t>(8), a.C - column));
  const Dropout dropout(params);
  const int64_t last = min((static_cast<int64_t>(blockIdx.y) + 1) * a.chunk, a.rows);
  const auto fetch = [&](int64_t r, Pack<T> &word, Pack<float> &place) {
    const int id = a.ids[r];
    const int p = a.positions == nullptr ? -1 : a.pos[r];
    word = zero_pack<T>();
    place = zero_pack<float>();
    if (id >= 0 && id < a.V) word = load_pack<T, Vector>(table + id * a.C + column, valid);
    if (p >= 0 && p < a.P) place = load_pack<float, Vector>(a.positions + p * a.C + column, valid);
  };
  const auto finish = [&](int64_t r, const Pack<T> &word, const Pack<float> &place) {
    float x[8], y[8];
    unpack(word, x);
    unpack(place, y);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = x[i] * a.scale + y[i];
    drop_row_group<Vector>(dropout, r, a.C, column, x);
    store_pack<T, Vector>(out + r * a.C + column, valid, pack_of<T>(x));
  };
  const int64_t step = blockDim.y;
  int64_t r = static_cast<int64_t>(blockIdx.y) * a.chunk + threadIdx.y;
  for (; r + step < last; r += 2 * step) {
    Pack<T> word[2];
    Pack<float> place[2];
    fetch(r, word[0], place[0]);
    fetch(r + step, word[1], place[1]);
    finish(r, word[0], place[0]);
    finish(r + step, word[1], place[1]);
  }
  for (; r < last; r += step) {
    Pack<T> word;
    Pack<float> place;
    fetch(r, word, place);
    finish(r, word, place);
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

constexpr int gather_threads = 256;
constexpr int gather_warps = gather_threads / 32;
constexpr int list_capacity = 4096;           // rows listed before they are added up
constexpr int rows_a_round = 4 * gather_threads;
constexpr int batch = 8;                      // rows in flight in a warp

struct EmbeddingBackward {
  const int32_t *ids;
  int64_t rows, C;
  int V, skip_id, span;  // span: table rows of a block
  float scale;
  bool accumulate;
};

struct RowList {
  int row[list_capacity];
  int id[list_capacity];  // within the block's range
  int warp_count[2][gather_warps];
};

// Appends, in order, the rows of a round whose id falls in [first, last); returns the new length. Thread t looks at rows
// base + 4 t .. base + 4 t + 3.
__device__ __forceinline__ int append_rows(RowList &list, int length, int64_t base, const EmbeddingBackward &a, int first,
                                           int last, int parity) {
  const int64_t start = base + threadIdx.x * 4;
  int id[4] = {-1, -1, -1, -1};
  if (start + 4 <= a.rows) {
    const int4 four = *reinterpret_cast<const int4 *>(a.ids + start);
    id[0] = four.x, id[1] = four.y, id[2] = four.z, id[3] = four.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (start + i < a.rows) id[i] = a.ids[start + i];
    }
  }
  int count = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (id[i] < first || id[i] >= last || id[i] == a.skip_id) id[i] = -1;
    count += id[i] >= 0;
  }
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int before = count;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int other = __shfl_up_sync(0xffffffffu, before, offset);
    if (lane >= offset) before += other;
  }
  if (lane == 31) list.warp_count[parity][warp] = before;
  __syncthreads();
  int at = length + before - count;
#pragma unroll
  for (int w = 0; w < gather_warps; w++) {
    if (w < warp) at += list.warp_count[parity][w];
    length += list.warp_count[parity][w];
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (id[i] < 0) continue;
    list.row[at] = static_cast<int>(start) + i;
    list.id[at] = id[i] - first;
    at++;
  }
  return length;
}

// Adds the listed rows of table row `local` to `sum`, for the eight columns at `column`; returns whether there was one.
template <class T, bool Vector>
__device__ __forceinline__ bool add_listed(float (&sum)[8], const RowList &list, int length, int local, const T *dout,
                                           const EmbeddingBackward &a, const Dropout &dropout, int64_t column, int valid) {
  bool any = false;
  const int lane = threadIdx.x & 31;
  for (int i = 0; i < length; i += 32) {
    unsigned mask = __ballot_sync(0xffffffffu, i + lane < length && list.id[i + lane] == local);
    any = any || mask != 0;
    while (mask != 0) {
      Pack<T> pack[batch];
      int row[batch];
      const int count = min(batch, __popc(mask));
#pragma unroll
      for (int u = 0; u < batch; u++) {
        if (u >= count) break;
        row[u] = list.row[i + __ffs(mask) - 1];
        mask &= mask - 1;
        if (valid > 0) pack[u] = load_pack<T, Vector>(dout + int64_t{row[u]} * a.C + column, valid);
      }
      if (valid <= 0) continue;
#pragma unroll
      for (int u = 0; u < batch; u++) {
        if (u >= count) break;
        float x[8];
        unpack(pack[u], x);
        drop_row_group<Vector>(dropout, row[u], a.C, column, x);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += x[j];
      }
    }
  }
  return any;
}

// One warp per table row and 256 columns.
template <class T, bool Vector>
__device__ __forceinline__ void add_list(float *dtable, const RowList &list, int length, int first, int last, const T *dout,
                                         const EmbeddingBackward &a, const Dropout &dropout, bool overwrite) {
  const int slabs = static_cast<int>((a.C + 255) / 256);
  const int items = (last - first) * slabs;
  for (int item = threadIdx.x >> 5; item < items; item += gather_warps) {
    const int local = item / slabs;
    const int64_t column = static_cast<int64_t>(item % slabs) * 256 + (threadIdx.x & 31) * 8;
    const int valid = static_cast<int>(max(static_cast<int64_t>(0), min(static_cast<int64_t>(8), a.C - column)));
    float sum[8] = {};
    const bool any = add_listed<T, Vector>(sum, list, length, local, dout, a, dropout, column, valid);
    if (valid == 0 || (!any && !overwrite)) continue;
    float *at = dtable + (static_cast<int64_t>(first) + local) * a.C + column;
    float old[8] = {};
    if (!overwrite) unpack(load_pack<float, Vector>(at, valid), old);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] = sum[i] * a.scale + old[i];
    store_pack<float, Vector>(at, valid, pack_of<float>(sum));
  }
}

template <class T, bool Vector>
__global__ __launch_bounds__(gather_threads, 3) void embedding_backward_kernel(float *dtable, const T *dout,
                                                                            EmbeddingBackward a, DropoutParams params) {
  __shared__ RowList list;
  const Dropout dropout(params);
  const int first = blockIdx.x * a.span;
  const int last = min(first + a.span, a.V);
  bool overwrite = !a.accumulate;
  int length = 0, parity = 0;
  for (int64_t base = 0; base < a.rows; base += rows_a_round) {
    length = append_rows(list, length, base, a, first, last, parity);
    parity ^= 1;
    if (length + rows_a_round <= list_capacity) continue;
    __syncthreads();
    add_list<T, Vector>(dtable, list, length, first, last, dout, a, dropout, overwrite);
    __syncthreads();
    length = 0;
    overwrite = false;
  }
  __syncthreads();
  add_list<T, Vector>(dtable, list, length, first, last, dout, a, dropout, overwrite);
}

}  // namespace
}  // namespace fa

using fa::check_pointer;

extern "C" FA_EXPORT fa_status fa_embedding_forward(fa_ctx *ctx, void *out, const int32_t *ids, const int32_t *pos,
                                                    const void *table, const float *positions, int32_t rows, int32_t C,
                                                    int32_t V, int32_t P, float scale, float dropout, const uint64_t *rng,
                                                    uint32_t site, int32_t dtype) {
  return fa::entry(ctx, "fa_embedding_forward", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, C, 0, INT32_MAX, "C"));
    FA_TRY(fa::check_range(ctx, V, 0, INT32_MAX, "V"));
    FA_TRY(fa::check_range(ctx, P, 0, INT32_MAX, "P"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    FA_TRY(fa::check_dropout(ctx, dropout, rng));
    if (rows == 0 || C == 0) return FA_OK;
    FA_TRY(check_pointer(ctx, out, "out"));
    FA_TRY(check_pointer(ctx, ids, "ids", 4));
    FA_TRY(check_pointer(ctx, table, "table"));
    FA_TRY(fa::check_optional(ctx, positions, "positions"));
    if (positions != nullptr) FA_TRY(check_pointer(ctx, pos, "pos", 4));
    const fa::ColumnGrid shape = fa::column_grid(rows, C, 0);
    const fa::EmbeddingForward arguments{ids, pos, positions, rows, C, V, P, shape.chunk, scale};
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(C % 8 == 0, [&](auto vector) {
        fa::embedding_forward_kernel<T, decltype(vector)::value><<<shape.grid, shape.block, 0, ctx->stream>>>(
            static_cast<T *>(out), static_cast<const T *>(table), arguments, fa::dropout_params(dropout, rng, site));
        return FA_LAUNCHED(ctx, "embedding_forward_kernel");
      });
    });
  });
}

extern "C" FA_EXPORT fa_status fa_embedding_backward(fa_ctx *ctx, float *dtable, const int32_t *ids, const void *dout,
                                                     int32_t rows, int32_t C, int32_t V, int32_t skip_id, float scale,
                                                     float dropout, const uint64_t *rng, uint32_t site, int32_t dtype,
                                                     int32_t accumulate, void *workspace, int64_t workspace_bytes) {
  (void)workspace;
  (void)workspace_bytes;
  return fa::entry(ctx, "fa_embedding_backward", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT32_MAX, "rows"));
    FA_TRY(fa::check_range(ctx, C, 0, INT32_MAX, "C"));
    FA_TRY(fa::check_range(ctx, V, 0, INT32_MAX, "V"));
    FA_TRY(fa::check_dtype(ctx, dtype, true));
    FA_TRY(fa::check_dropout(ctx, dropout, rng));
    if (C == 0 || V == 0) return FA_OK;
    FA_TRY(check_pointer(ctx, dtable, "dtable"));
    if (rows > 0) {
      FA_TRY(check_pointer(ctx, ids, "ids"));
      FA_TRY(check_pointer(ctx, dout, "dout"));
    }
    // Every block reads all ids, so there are only as many blocks as are resident at once.
    const int span = static_cast<int>(std::max<int64_t>(8, fa::ceil_div(V, 3 * int64_t{ctx->sm_count})));
    const unsigned grid = static_cast<unsigned>(fa::ceil_div(V, span));
    const fa::EmbeddingBackward arguments{ids, rows, C, V, skip_id, span, scale, accumulate != 0};
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(C % 8 == 0, [&](auto vector) {
        fa::embedding_backward_kernel<T, decltype(vector)::value><<<grid, fa::gather_threads, 0, ctx->stream>>>(
            dtable, static_cast<const T *>(dout), arguments, fa::dropout_params(dropout, rng, site));
        return FA_LAUNCHED(ctx, "embedding_backward_kernel");
      });
    });
  });
}
