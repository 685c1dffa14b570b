// The gradient of an embedding's table. Each block owns some ids of the table: it looks through all rows for them, and
// writes their rows of the gradient. Ids of many rows it leaves to a second kernel, whose blocks take pieces of them.
// However often an id occurs, the work is spread evenly; there are no floating-point atomics, and every sum has the
// same order always.
#ifndef FLASHATTN_OPS_EMBEDDING_BACKWARD_CUH
#define FLASHATTN_OPS_EMBEDDING_BACKWARD_CUH

#include <algorithm>

#include "columns.cuh"
#include "../dependent.cuh"

namespace fa {
namespace {

// ---- what both kernels share ---------------------------------------------------------------------------------------

// As many threads as there are registers for.
template <class T, bool Vector>
constexpr int light_threads = Vector && sizeof(T) == 2 ? 640 : 512;
constexpr int heavy_threads = 512;
constexpr int heavy_warps = heavy_threads / 32;
constexpr int most_owned = 256;  // ids of a block of the first kernel
constexpr int most_light = 32;   // rows of an id that one warp adds up; an id of more is heavy
constexpr int piece_rows = 128;  // rows of a piece of a heavy id, about

// A heavy id of one block of the first kernel. Its pieces are cut by rows of the batch, not by occurrences.
struct HeavyId {
  int id, pieces;
  int first;  // its first piece, of the pieces of this block
};

struct EmbeddingBackward {
  const int32_t *ids;
  float *dtable;
  int2 *head;       // [owners] heavy ids and pieces of each block
  HeavyId *heavy;   // [owners][most_owned]
  int *arrived;     // [owners][most_owned][spans] pieces done
  float *partial;   // [pieces][C]
  int64_t rows, C;
  int V, skip_id, owners, spans;  // spans of 512 columns
  float scale;
  bool accumulate;

  __device__ __forceinline__ bool counts(int id) const { return id >= 0 && id < V && id != skip_id; }
};

// The columns of this lane in a span of 512: two groups of eight.
struct Span {
  int64_t first;
  int valid[2];
  __device__ __forceinline__ Span(int64_t C, int span)
      : first(static_cast<int64_t>(span) * 512 + (threadIdx.x & 31) * 8) {
#pragma unroll
    for (int g = 0; g < 2; g++)
      valid[g] = static_cast<int>(max(static_cast<int64_t>(0), min(static_cast<int64_t>(8), C - column(g))));
  }
  __device__ __forceinline__ int64_t column(int g) const { return first + g * 256; }
};

// One row of a span, that of lane i: loaded, its dropout drawn, and what is kept added to the sums. The scale of the
// dropout is part of that of the table.
template <class T, bool Vector>
__device__ __forceinline__ void load_span(Pack<T> (&pack)[2], const T *dout, int row, int i, int count,
                                          const Span &span, int64_t C) {
  const int64_t r = __shfl_sync(0xffffffffu, row, i);
#pragma unroll
  for (int g = 0; g < 2; g++) {
    pack[g] = zero_pack<T>();
    if (i < count && span.valid[g] > 0) pack[g] = load_pack<T, Vector>(dout + r * C + span.column(g), span.valid[g]);
  }
}
template <bool Vector>
__device__ __forceinline__ void draw_span(uint4 (&random)[2], int row, int i, const Span &span, int64_t C,
                                          const Dropout &dropout) {
  const int64_t r = __shfl_sync(0xffffffffu, row, i);
#pragma unroll
  for (int g = 0; g < 2; g++) random[g] = draw_row_group<Vector>(dropout, r, C, span.column(g));
}
template <class T, bool Vector>
__device__ __forceinline__ void add_span(float (&sum)[2][8], const Pack<T> (&pack)[2], const uint4 (&random)[2],
                                         int row, int i, const Span &span, int64_t C, const Dropout &dropout) {
  const int64_t r = __shfl_sync(0xffffffffu, row, i);
#pragma unroll
  for (int g = 0; g < 2; g++) {
    float x[8];
    unpack(pack[g], x);
    const uint64_t element = static_cast<uint64_t>(r) * C + span.column(g);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const bool keep = Vector ? dropout.keep(random[g], j) : dropout.keep_element(element + j);
      sum[g][j] += keep ? x[j] : 0.0f;
    }
  }
}

// Adds the rows `from` .. `count` - 1 of dout in their order; lane i has the i-th.
template <class T, bool Vector>
__device__ __forceinline__ void add_rows(float (&sum)[2][8], const T *dout, int row, int from, int count,
                                         const Span &span, int64_t C, const Dropout &dropout) {
  constexpr int batch = Vector && sizeof(T) == 2 ? 2 : 1;
  for (int i = from; i < count; i += batch) {
    Pack<T> pack[batch][2];
    uint4 random[batch][2];
#pragma unroll
    for (int u = 0; u < batch; u++) load_span<T, Vector>(pack[u], dout, row, i + u, count, span, C);
#pragma unroll
    for (int u = 0; u < batch; u++) draw_span<Vector>(random[u], row, i + u, span, C, dropout);
#pragma unroll
    for (int u = 0; u < batch; u++) {
      if (i + u < count) add_span<T, Vector>(sum, pack[u], random[u], row, i + u, span, C, dropout);
    }
  }
}

// Writes eight columns of a table row; dout is still wanted in the L2 cache.
template <bool Vector>
__device__ __forceinline__ void store_table(const EmbeddingBackward &a, int64_t id, int64_t column, int valid,
                                            const float (&sum)[8]) {
  float *at = a.dtable + id * a.C + column;
  float x[8];
  if (a.accumulate) {
    unpack(load_pack<float, Vector>(at, valid), x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = fmaf(sum[i], a.scale, x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = sum[i] * a.scale;
  }
  store_pack_streaming<float, Vector>(at, valid, pack_of<float>(x));
}

// ---- the first kernel ----------------------------------------------------------------------------------------------

// Block b owns the ids b, b + owners, b + 2 owners, ...: frequent ids are often neighbours, and so land in different
// blocks. The number of owners is a power of two.
struct OwnerShared {
  int count[most_owned];
  int row[most_owned][most_light];                      // the first of an id to come, in any order
  int heavy[most_owned / 32], pieces[most_owned / 32];  // of the warps, for the scan
  int taken;                                            // ids that warps have taken
};

// Calls f(row, local id) for all rows whose id the block owns. Each block begins elsewhere, so that not all ask for the
// same lines at once.
template <class F>
__device__ __forceinline__ void for_owned(const EmbeddingBackward &a, F &&f) {
  constexpr int batch = 10;
  const int mask = a.owners - 1, block = static_cast<int>(blockIdx.x), shift = __popc(mask);
  const auto look = [&](int row, int id) {
    if (((id ^ block) & mask) != 0) return;
    if (a.counts(id)) f(row, id >> shift);
  };
  const int fours = static_cast<int>(a.rows / 4);
  const int start = static_cast<int>(static_cast<int64_t>(fours) * block / a.owners);
  const auto turned = [&](int i) { return i + start < fours ? i + start : i + start - fours; };
  int first = 0;
  do {
    int4 four[batch];
#pragma unroll
    for (int u = 0; u < batch; u++) {
      const int i = first + u * blockDim.x + threadIdx.x;
      four[u] = i < fours ? reinterpret_cast<const int4 *>(a.ids)[turned(i)] : make_int4(-1, -1, -1, -1);
    }
#pragma unroll
    for (int u = 0; u < batch; u++) {
      const int row = turned(first + u * blockDim.x + threadIdx.x) * 4;
      look(row, four[u].x);
      look(row + 1, four[u].y);
      look(row + 2, four[u].z);
      look(row + 3, four[u].w);
    }
    first += batch * blockDim.x;
  } while (first < fours);
  if (threadIdx.x < a.rows % 4) look(fours * 4 + threadIdx.x, a.ids[fours * 4 + threadIdx.x]);
}

// Lists the heavy ids for the second kernel. All threads must call.
__device__ __forceinline__ void list_heavy(OwnerShared &shared, const EmbeddingBackward &a) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, local = threadIdx.x;
  const int count = local < most_owned ? shared.count[local] : 0;
  const bool heavy = count > most_light;
  const int own_pieces = heavy ? (count + piece_rows - 1) / piece_rows : 0;
  const unsigned heavies = __ballot_sync(0xffffffffu, heavy);
  int pieces = warp_inclusive_scan(own_pieces);
  if (lane == 31 && local < most_owned) shared.heavy[warp] = __popc(heavies), shared.pieces[warp] = pieces;
  __syncthreads();
  if (local >= most_owned) return;
  int listed = __popc(heavies & ((1u << lane) - 1u));
  for (int w = 0; w < warp; w++) listed += shared.heavy[w], pieces += shared.pieces[w];
  if (heavy) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * most_owned + listed;
    a.heavy[at] = HeavyId{local * a.owners + static_cast<int>(blockIdx.x), own_pieces, pieces - own_pieces};
    for (int s = 0; s < a.spans; s++) a.arrived[at * a.spans + s] = 0;
  }
  if (local == most_owned - 1) a.head[blockIdx.x] = make_int2(listed + heavy, pieces);
}

// An id that a warp adds up; lane i has the i-th of its rows in their order.
struct OwnedId {
  int64_t id;  // -1: none is left
  int count, row;
};

// The next id of the block, as long as there are some. All lanes must call.
__device__ __forceinline__ OwnedId take_id(OwnerShared &shared, const EmbeddingBackward &a) {
  const int lane = threadIdx.x & 31;
  while (true) {
    int local = 0;
    if (lane == 0) local = atomicAdd(&shared.taken, 1);
    local = __shfl_sync(0xffffffffu, local, 0);
    const int64_t id = static_cast<int64_t>(local) * a.owners + blockIdx.x;
    if (local >= most_owned || id >= a.V) return OwnedId{-1, 0, 0};
    const int count = shared.count[local];
    if (count > most_light || (count == 0 && a.accumulate)) continue;
    if (count == 0) return OwnedId{id, 0, 0};
    int *entry = shared.row[local];
    int row = lane < count ? entry[lane] : 0;
    if (count > 1) {
      int rank = 0;
      for (int i = 0; i < count; i++) rank += __shfl_sync(0xffffffffu, row, i) < row;
      __syncwarp();
      if (lane < count) entry[rank] = row;
      __syncwarp();
      if (lane < count) row = entry[lane];
    }
    return OwnedId{id, count, row};
  }
}

// All ids but the heavy ones. The entries of an id come in any order, and its warp sorts them by row.
template <class T, bool Vector>
__global__ __launch_bounds__(light_threads<T, Vector>) void embedding_light_kernel(const T *dout, EmbeddingBackward a,
                                                                           DropoutParams params) {
  __shared__ OwnerShared shared;
  let_dependent_start();
  for (int i = threadIdx.x; i < most_owned; i += blockDim.x) shared.count[i] = 0;
  if (threadIdx.x == 0) shared.taken = 0;
  __syncthreads();
  for_owned(a, [&](int row, int local) {
    const int rank = atomicAdd(&shared.count[local], 1);
    if (rank < most_light) shared.row[local][rank] = row;
  });
  __syncthreads();
  list_heavy(shared, a);
  const Dropout dropout(params);
  // The first row of the next id is under way while that of this one is added.
  OwnedId next = take_id(shared, a);
  Pack<T> first[2];
  load_span<T, Vector>(first, dout, next.row, 0, next.count, Span(a.C, 0), a.C);
  while (next.id >= 0) {
    const OwnedId own = next;
    Pack<T> pack[2] = {first[0], first[1]};
    next = take_id(shared, a);
    load_span<T, Vector>(first, dout, next.row, 0, next.count, Span(a.C, 0), a.C);
    for (int s = 0; s < a.spans; s++) {
      const Span span(a.C, s);
      float sum[2][8] = {};
      if (own.count > 0) {
        uint4 random[2];
        draw_span<Vector>(random, own.row, 0, span, a.C, dropout);
        if (s > 0) load_span<T, Vector>(pack, dout, own.row, 0, own.count, span, a.C);
        add_span<T, Vector>(sum, pack, random, own.row, 0, span, a.C, dropout);
        add_rows<T, Vector>(sum, dout, own.row, 1, own.count, span, a.C, dropout);
      }
#pragma unroll
      for (int g = 0; g < 2; g++) {
        if (span.valid[g] > 0) store_table<Vector>(a, own.id, span.column(g), span.valid[g], sum[g]);
      }
    }
  }
}

// ---- the second kernel ---------------------------------------------------------------------------------------------

// One piece of a heavy id.
struct Piece {
  int64_t id;
  int64_t partial;  // its partial row
  int64_t arrived;  // index of the id's counters
  int index, count; // it is the index-th of count
};

struct HeavyShared {
  int before[heavy_warps];
  int owner, local;             // of the piece looked for: its block, and its number among that block's
  Piece piece;
  bool last;                    // this block did the last piece of an id
  int list[heavy_warps][64];    // rows found, by warp
  alignas(16) float sum[heavy_warps][256];
};

// The pieces of the owners this thread looks after, of those before it and of all.
struct PieceCount {
  int first_owner, last_owner, begin, mine, total;
};
__device__ __forceinline__ PieceCount count_pieces(HeavyShared &shared, const EmbeddingBackward &a) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int each = (a.owners + heavy_threads - 1) / heavy_threads;
  PieceCount c{static_cast<int>(threadIdx.x) * each, 0, 0, 0, 0};
  c.last_owner = min(c.first_owner + each, a.owners);
  for (int o = c.first_owner; o < c.last_owner; o++) c.mine += a.head[o].y;
  const int inclusive = warp_inclusive_scan(c.mine);
  if (lane == 31) shared.before[warp] = inclusive;
  __syncthreads();
  c.begin = inclusive - c.mine;
  for (int w = 0; w < heavy_warps; w++) {
    if (w < warp) c.begin += shared.before[w];
    c.total += shared.before[w];
  }
  return c;
}

// Finds piece number `wanted`. All threads must call.
__device__ __forceinline__ Piece find_piece(HeavyShared &shared, const EmbeddingBackward &a, const PieceCount &c,
                                            int wanted) {
  if (wanted >= c.begin && wanted < c.begin + c.mine) {
    int owner = c.first_owner, local = wanted - c.begin;
    while (local >= a.head[owner].y) local -= a.head[owner++].y;
    shared.owner = owner;
    shared.local = local;
  }
  __syncthreads();
  const int owner = shared.owner, local = shared.local, listed = a.head[owner].x;
  static_assert(most_owned <= heavy_threads && heavy_threads == 512, "a thread for each listed id and column");
  if (static_cast<int>(threadIdx.x) < listed) {
    const int64_t at = static_cast<int64_t>(owner) * most_owned + threadIdx.x;
    const HeavyId heavy = a.heavy[at];
    const int index = local - heavy.first;
    if (index >= 0 && index < heavy.pieces) shared.piece = Piece{heavy.id, wanted, at, index, heavy.pieces};
  }
  __syncthreads();
  return shared.piece;
}

// Adds the rows of this warp's share of the piece that have its id, always in the same order.
template <class T, bool Vector>
__device__ __forceinline__ void add_piece(float (&sum)[2][8], int *list, const T *dout, const EmbeddingBackward &a,
                                          const Piece &piece, const Span &span, const Dropout &dropout) {
  constexpr int batch = 4;
  const int lane = threadIdx.x & 31;
  const int64_t share = static_cast<int64_t>(piece.index) * heavy_warps + (threadIdx.x >> 5);
  const int64_t shares = static_cast<int64_t>(piece.count) * heavy_warps;
  const int64_t fours = (a.rows + 3) / 4, end = fours * (share + 1) / shares;
  int found = 0;
  for (int64_t first = fours * share / shares + lane; first - lane < end; first += batch * 32) {
    int id[batch][4];
#pragma unroll
    for (int u = 0; u < batch; u++) {
      const int64_t i = first + u * 32;
#pragma unroll
      for (int j = 0; j < 4; j++) id[u][j] = -1;
      if (i < end && i * 4 + 4 <= a.rows) {
        const int4 four = reinterpret_cast<const int4 *>(a.ids)[i];
        id[u][0] = four.x, id[u][1] = four.y, id[u][2] = four.z, id[u][3] = four.w;
      } else if (i < end) {
        for (int j = 0; j < 4; j++) id[u][j] = i * 4 + j < a.rows ? a.ids[i * 4 + j] : -1;
      }
    }
#pragma unroll
    for (int u = 0; u < batch; u++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const bool match = id[u][j] == piece.id;
        const unsigned matches = __ballot_sync(0xffffffffu, match);
        if (matches == 0) continue;
        if (match) list[found + __popc(matches & ((1u << lane) - 1u))] = static_cast<int>((first + u * 32) * 4 + j);
        found += __popc(matches);
        __syncwarp();
        if (found < 32) continue;
        add_rows<T, Vector>(sum, dout, list[lane], 0, 32, span, a.C, dropout);
        found -= 32;
        const int rest = list[32 + lane];
        __syncwarp();
        list[lane] = rest;
        __syncwarp();
      }
    }
  }
  __syncwarp();
  add_rows<T, Vector>(sum, dout, list[lane], 0, found, span, a.C, dropout);
}

// The block's sum of one group of each lane goes to the piece's partial row, or to the table where it is the only
// piece. All threads must call.
__device__ __forceinline__ void store_piece(HeavyShared &shared, const EmbeddingBackward &a, const Piece &piece,
                                            int64_t first_column, const float (&sum)[8]) {
  store_pack<float, true>(shared.sum[threadIdx.x >> 5] + (threadIdx.x & 31) * 8, 8, pack_of<float>(sum));
  __syncthreads();
  const int64_t column = first_column + threadIdx.x;
  if (threadIdx.x < 256 && column < a.C) {
    float x = 0.0f;
#pragma unroll 8
    for (int w = 0; w < heavy_warps; w++) x += shared.sum[w][threadIdx.x];
    if (piece.count == 1) {
      float *at = a.dtable + piece.id * a.C + column;
      *at = fmaf(x, a.scale, a.accumulate ? *at : 0.0f);
    } else {
      a.partial[piece.partial * a.C + column] = x;
    }
  }
  __syncthreads();
}

// The block that finishes the last piece of an id adds them all up, in their order.
__device__ __forceinline__ void join_pieces(HeavyShared &shared, const EmbeddingBackward &a, const Piece &piece,
                                            int span) {
  if (piece.count == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    shared.last = atomicAdd(&a.arrived[piece.arrived * a.spans + span], 1) == piece.count - 1;
  __syncthreads();
  const int64_t column = static_cast<int64_t>(span) * 512 + threadIdx.x;
  if (!shared.last || column >= a.C) return;
  __threadfence();
  const float *from = a.partial + (piece.partial - piece.index) * a.C + column;
  float x = 0.0f;
#pragma unroll 8
  for (int i = 0; i < piece.count; i++) x += __ldcg(from + i * a.C);
  float *at = a.dtable + piece.id * a.C + column;
  *at = fmaf(x, a.scale, a.accumulate ? *at : 0.0f);
}

template <class T, bool Vector>
__global__ __launch_bounds__(heavy_threads) void embedding_heavy_kernel(const T *dout, EmbeddingBackward a,
                                                                           DropoutParams params) {
  __shared__ HeavyShared shared;
  wait_for_previous();
  const PieceCount pieces = count_pieces(shared, a);
  if (pieces.total == 0) return;
  const Dropout dropout(params);
  const int64_t items = static_cast<int64_t>(pieces.total) * a.spans;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int s = static_cast<int>(item % a.spans);
    const Piece piece = find_piece(shared, a, pieces, static_cast<int>(item / a.spans));
    const Span span(a.C, s);
    float sum[2][8] = {};
    add_piece<T, Vector>(sum, shared.list[threadIdx.x >> 5], dout, a, piece, span, dropout);
#pragma unroll
    for (int g = 0; g < 2; g++) store_piece(shared, a, piece, static_cast<int64_t>(s) * 512 + g * 256, sum[g]);
    join_pieces(shared, a, piece, s);
  }
}

int64_t owners_of(int64_t V) {
  int64_t owners = 128;
  while (owners * most_owned < V) owners *= 2;
  return owners;
}

// Where the parts of the workspace lie, and its size.
struct EmbeddingWorkspace {
  int64_t heavy, arrived, partial, bytes;
  EmbeddingWorkspace(int64_t rows, int64_t C, int64_t V) {
    const int64_t ids = owners_of(V) * most_owned;
    const int64_t pieces = rows / piece_rows + rows / (most_light + 1) + 1;  // each heavy id rounds up
    heavy = align_up(owners_of(V) * static_cast<int64_t>(sizeof(int2)), 256);
    arrived = heavy + align_up(ids * static_cast<int64_t>(sizeof(HeavyId)), 256);
    partial = arrived + align_up(ids * ceil_div(C, 512) * 4, 256);
    bytes = partial + align_up(pieces * C * 4, 256);
  }
};

template <class T, bool Vector>
fa_status embedding_backward(fa_ctx *ctx, const void *dout, const EmbeddingBackward &a, const DropoutParams &params) {
  embedding_light_kernel<T, Vector><<<static_cast<unsigned>(a.owners), light_threads<T, Vector>, 0, ctx->stream>>>(
      static_cast<const T *>(dout), a, params);
  FA_TRY(FA_LAUNCHED(ctx, "embedding_light_kernel"));
  if (a.rows <= most_light) return FA_OK;
  return launch_dependent(ctx, embedding_heavy_kernel<T, Vector>, static_cast<unsigned>(ctx->sm_count),
                          heavy_threads, 0, static_cast<const T *>(dout), a, params);
}

}  // namespace
}  // namespace fa

#endif
