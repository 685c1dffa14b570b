// Embedding with positions and dropout, forward and backward.
#include "embedding_backward.cuh"

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
  Pack<T> word[2];
  Pack<float> place[2];
  for_row_batches<2>(
      a.rows, a.chunk,
      [&](int64_t r, int u) {
        const int id = a.ids[r];
        const int p = a.positions == nullptr ? -1 : a.pos[r];
        word[u] = zero_pack<T>();
        place[u] = zero_pack<float>();
        if (id >= 0 && id < a.V) word[u] = load_pack<T, Vector>(table + id * a.C + column, valid);
        if (p >= 0 && p < a.P) place[u] = load_pack<float, Vector>(a.positions + p * a.C + column, valid);
      },
      [&](int64_t r, int u) {
        float x[8], y[8];
        unpack(word[u], x);
        unpack(place[u], y);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = x[i] * a.scale + y[i];
        drop_row_group<Vector>(dropout, r, a.C, column, x);
        store_pack_streaming<T, Vector>(out + r * a.C + column, valid, pack_of<T>(x));
      });
}

}  // namespace

int64_t embedding_backward_bytes(int64_t rows, int64_t C, int64_t V) {
  return V > 0 ? EmbeddingWorkspace(rows, C, std::min<int64_t>(V, INT32_MAX)).bytes : 0;
}

}  // namespace fa

using fa::check_pointer;

extern "C" FA_EXPORT fa_status fa_embedding_forward(fa_ctx *ctx, void *out, const int32_t *ids, const int32_t *pos,
                                                    const void *table, const float *positions, int32_t rows, int32_t C,
                                                    int32_t V, int32_t P, float scale, float dropout,
                                                    const uint64_t *rng, uint32_t site, int32_t dtype) {
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
    const fa::EmbeddingWorkspace layout(rows, C, V);
    FA_TRY(fa::check_workspace(ctx, workspace, workspace_bytes, layout.bytes));
    char *at = static_cast<char *>(workspace);
    const fa::DropoutParams params = fa::dropout_params(dropout, rng, site);
    const fa::EmbeddingBackward arguments{
        ids, dtable, reinterpret_cast<int2 *>(at), reinterpret_cast<fa::HeavyId *>(at + layout.heavy),
        reinterpret_cast<int *>(at + layout.arrived), reinterpret_cast<float *>(at + layout.partial), rows, C,
        V, skip_id, static_cast<int>(fa::owners_of(V)), static_cast<int>(fa::ceil_div(C, 512)),
        scale * params.scale, accumulate != 0};
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(C % 8 == 0, [&](auto vector) {
        return fa::embedding_backward<T, decltype(vector)::value>(ctx, dout, arguments, params);
      });
    });
  });
}
