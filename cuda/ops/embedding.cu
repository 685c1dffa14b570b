// Embedding with positions and dropout, forward and backward. The backward pass sorts the rows by id, stably and
// without floating-point atomics, adds runs of equal ids in chunks of sorted rows, and joins the runs that cross
// chunks: however often an id occurs, the work is spread evenly, and every sum has the same order always.
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
        store_pack<T, Vector>(out + r * a.C + column, valid, pack_of<T>(x));
      });
}

// ---- backward: the sorted order -----------------------------------------------------------------------------------

constexpr int sort_threads = 1024;
constexpr int sort_warps = sort_threads / 32;
constexpr int most_owned = 2048;               // ids of a block
constexpr int window = 4 * sort_threads;       // rows looked at between two barriers

// What the sort leaves in the workspace.
struct SortedRows {
  int2 *entry;   // {row, id}, by owner of the id, then id, then row
  int *start;    // [V] first entry of an id
  int *count;    // [V]
  int *total;    // [1] entries
};

struct SortArguments {
  const int32_t *ids;
  int64_t rows;
  int V, skip_id;
};

// Block b owns the ids b, b + grid, b + 2 grid, ...: frequent ids are often neighbours, and so land in different
// blocks. The number of blocks is a power of two.
struct Ownership {
  unsigned blocks, block;
  __device__ __forceinline__ unsigned owner(int id) const { return static_cast<unsigned>(id) & (blocks - 1); }
  __device__ __forceinline__ int local(int id) const { return id >> (__ffs(static_cast<int>(blocks)) - 1); }
};

// Four ids from row `first` on; -1 for what counts nothing.
__device__ __forceinline__ void load_ids(int (&id)[4], const SortArguments &a, int64_t first) {
#pragma unroll
  for (int i = 0; i < 4; i++) id[i] = -1;
  if (first + 4 <= a.rows) {
    const int4 four = *reinterpret_cast<const int4 *>(a.ids + first);
    id[0] = four.x, id[1] = four.y, id[2] = four.z, id[3] = four.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (first + i < a.rows) id[i] = a.ids[first + i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (id[i] < 0 || id[i] >= a.V || id[i] == a.skip_id) id[i] = -1;
  }
}

// Sum of x over the threads before this one; `sum` is that of all.
__device__ __forceinline__ int exclusive_scan(int x, int *warp_sums, int &sum) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int inclusive = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int before = inclusive - x;
  sum = 0;
#pragma unroll
  for (int w = 0; w < sort_warps; w++) {
    if (w < warp) before += warp_sums[w];
    sum += warp_sums[w];
  }
  return before;
}

struct SortShared {
  int cursor[most_owned];  // counts, then the next free entry of each owned id
  int2 listed[2][window];  // {row, local id} of a window, in the order of rows
  int warp_sums[2][sort_warps];
};

// Counts the owned ids and returns the entries of the blocks before this one.
__device__ __forceinline__ int count_ids(SortShared &shared, const SortArguments &a, const Ownership &own) {
  for (int i = threadIdx.x; i < most_owned; i += sort_threads) shared.cursor[i] = 0;
  __syncthreads();
  int before = 0;
#pragma unroll 4
  for (int64_t first = threadIdx.x * 4; first < a.rows; first += window) {
    int id[4];
    load_ids(id, a, first);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (id[i] < 0) continue;
      const unsigned owner = own.owner(id[i]);
      if (owner == own.block) atomicAdd(&shared.cursor[own.local(id[i])], 1);
      before += owner < own.block;
    }
  }
  int sum = 0;
  exclusive_scan(before, shared.warp_sums[0], sum);
  return sum;
}

// Turns counts into first entries; returns the block's entries.
__device__ __forceinline__ int place_ids(SortShared &shared, const SortedRows &sorted, const SortArguments &a,
                                         const Ownership &own, int base) {
  constexpr int each = most_owned / sort_threads;
  int count[each], mine = 0, sum = 0;
#pragma unroll
  for (int i = 0; i < each; i++) mine += count[i] = shared.cursor[threadIdx.x * each + i];
  int at = base + exclusive_scan(mine, shared.warp_sums[1], sum);
#pragma unroll
  for (int i = 0; i < each; i++) {
    const int local = threadIdx.x * each + i;
    shared.cursor[local] = at;
    const int64_t id = static_cast<int64_t>(local) * own.blocks + own.block;
    if (id < a.V) {
      sorted.start[id] = at;
      sorted.count[id] = count[i];
    }
    at += count[i];
  }
  return sum;
}

// One warp appends a window's list to the entries; equal ids keep their order.
__device__ __forceinline__ void append_listed(SortShared &shared, const int2 *listed, int length,
                                              const SortedRows &sorted, const Ownership &own) {
  const int lane = threadIdx.x & 31;
  for (int i = lane; i - lane < length; i += 32) {
    const bool in = i < length;
    const unsigned active = __ballot_sync(0xffffffffu, in);
    if (in) {
      const int2 item = listed[i];
      const unsigned same = __match_any_sync(active, item.y);
      const int rank = __popc(same & ((1u << lane) - 1u));
      const int at = shared.cursor[item.y] + rank;
      sorted.entry[at] = make_int2(item.x, static_cast<int>(item.y * own.blocks + own.block));
      __syncwarp(active);
      if (rank == 0) shared.cursor[item.y] += __popc(same);
    }
    __syncwarp();
  }
}

__global__ __launch_bounds__(sort_threads) void sort_rows_kernel(SortedRows sorted, SortArguments a) {
  extern __shared__ uint4 sort_memory[];
  SortShared &shared = *reinterpret_cast<SortShared *>(sort_memory);
  const Ownership own{gridDim.x, blockIdx.x};
  const int base = count_ids(shared, a, own);
  const int sum = place_ids(shared, sorted, a, own, base);
  if (own.block == own.blocks - 1 && threadIdx.x == 0) sorted.total[0] = base + sum;
  __syncthreads();
  int parity = 0;
  int next[4];
  load_ids(next, a, threadIdx.x * 4);
  for (int64_t base_row = 0; base_row < a.rows; base_row += window) {
    const int64_t first = base_row + threadIdx.x * 4;
    int id[4] = {next[0], next[1], next[2], next[3]}, mine = 0, length = 0;
    load_ids(next, a, first + window);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (id[i] >= 0 && own.owner(id[i]) != own.block) id[i] = -1;
      mine += id[i] >= 0;
    }
    int at = exclusive_scan(mine, shared.warp_sums[parity], length);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (id[i] >= 0) shared.listed[parity][at++] = make_int2(static_cast<int>(first) + i, own.local(id[i]));
    }
    // The next window's barriers come before these lists are written again, as the two alternate.
    __syncthreads();
    if (threadIdx.x < 32) append_listed(shared, shared.listed[parity], length, sorted, own);
    parity ^= 1;
  }
}

// ---- backward: the sums --------------------------------------------------------------------------------------------

constexpr int chunk_rows = 24;  // sorted rows of a warp, with two more lanes for the neighbours
constexpr int batch = 8;        // of which so many are in flight

struct EmbeddingBackward {
  SortedRows sorted;
  float *dtable;
  float *partial;  // [chunk][2][C]: the run that enters the chunk, the run that leaves it
  int64_t C;
  int V, slabs;  // slabs of 256 columns
  float scale;
  bool accumulate;
};

// The eight columns of this lane in a slab.
struct Slab {
  int64_t column;
  int valid;
  __device__ __forceinline__ Slab(int64_t C, int slab)
      : column(static_cast<int64_t>(slab) * 256 + (threadIdx.x & 31) * 8),
        valid(static_cast<int>(max(static_cast<int64_t>(0), min(static_cast<int64_t>(8), C - column)))) {}
};

template <bool Vector>
__device__ __forceinline__ void store_table_row(const EmbeddingBackward &a, int id, const Slab &slab,
                                                const float (&sum)[8]) {
  float *at = a.dtable + id * a.C + slab.column;
  float out[8] = {};
  if (a.accumulate) unpack(load_pack<float, Vector>(at, slab.valid), out);
#pragma unroll
  for (int i = 0; i < 8; i++) out[i] = fmaf(sum[i], a.scale, out[i]);
  store_pack<float, Vector>(at, slab.valid, pack_of<float>(out));
}

template <class T, bool Vector>
__global__ __launch_bounds__(256) void add_runs_kernel(const T *dout, EmbeddingBackward a, DropoutParams params) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * 8 + (threadIdx.x >> 5);
  const int64_t chunk = item / a.slabs, first = chunk * chunk_rows;
  const int total = a.sorted.total[0];
  if (first >= total) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(chunk_rows), total - first));
  const Slab slab(a.C, static_cast<int>(item % a.slabs));
  const Dropout dropout(params);
  const int lane = threadIdx.x & 31;
  // Lane 0 has the entry before the chunk, lanes 1 .. count the chunk's, the next lane the one after it.
  const int64_t seen = first + lane - 1;
  int2 entry = make_int2(-1, -1);
  if (seen >= 0 && seen < total && lane <= count + 1) entry = a.sorted.entry[seen];
  const auto id_at = [&](int i) { return __shfl_sync(0xffffffffu, entry.y, i + 1); };
  bool entered = id_at(-1) == id_at(0);  // the run at hand began in an earlier chunk
  float sum[8] = {};
#pragma unroll
  for (int base = 0; base < chunk_rows; base += batch) {
    Pack<T> pack[batch];
#pragma unroll
    for (int u = 0; u < batch; u++) {
      const int64_t row = __shfl_sync(0xffffffffu, entry.x, base + u + 1);
      if (base + u < count && slab.valid > 0)
        pack[u] = load_pack<T, Vector>(dout + row * a.C + slab.column, slab.valid);
    }
#pragma unroll
    for (int u = 0; u < batch; u++) {
      const int i = base + u;
      const int64_t row = __shfl_sync(0xffffffffu, entry.x, i + 1);
      const int id = id_at(i), after = id_at(i + 1);
      if (i >= count) continue;
      float x[8];
      if (slab.valid > 0) {
        unpack(pack[u], x);
        drop_row_group<Vector>(dropout, row, a.C, slab.column, x);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += x[j];
      }
      const bool leaves = i + 1 == count && after == id;
      if (after == id && !leaves) continue;
      if (slab.valid > 0) {
        if (entered || leaves) {
          store_pack<float, Vector>(a.partial + (chunk * 2 + (entered ? 0 : 1)) * a.C + slab.column, slab.valid,
                                    pack_of<float>(sum));
        } else {
          store_table_row<Vector>(a, id, slab, sum);
        }
      }
#pragma unroll
      for (int j = 0; j < 8; j++) sum[j] = 0.0f;
      entered = false;
    }
  }
}

// The sum of a run that covers chunks first .. last.
template <bool Vector>
__device__ __forceinline__ void join_run(float (&sum)[8], const EmbeddingBackward &a, const Slab &slab, int64_t first,
                                         int64_t last) {
#pragma unroll 8
  for (int64_t chunk = first; chunk <= last; chunk++) {
    float x[8];
    unpack(load_pack<float, Vector>(a.partial + (chunk * 2 + (chunk == first ? 1 : 0)) * a.C + slab.column, slab.valid),
           x);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += x[j];
  }
}

// Table rows without entries, and those whose run crosses chunks: one warp per id.
template <bool Vector>
__global__ __launch_bounds__(256) void join_runs_kernel(EmbeddingBackward a) {
  const int64_t id = static_cast<int64_t>(blockIdx.x) * 8 + (threadIdx.x >> 5);
  if (id >= a.V) return;
  const int count = a.sorted.count[id];
  if (count == 0 && a.accumulate) return;
  const int64_t start = count > 0 ? a.sorted.start[id] : 0;
  const int64_t first = start / chunk_rows, last = (start + count - 1) / chunk_rows;
  if (count > 0 && first == last) return;
  for (int s = 0; s < a.slabs; s++) {
    const Slab slab(a.C, s);
    if (slab.valid == 0) return;
    float sum[8] = {};
    if (count > 0) join_run<Vector>(sum, a, slab, first, last);
    store_table_row<Vector>(a, static_cast<int>(id), slab, sum);
  }
}

// Where the parts of the workspace lie, and its size.
struct EmbeddingWorkspace {
  int64_t start, count, total, partial, bytes;
  EmbeddingWorkspace(int64_t rows, int64_t C, int64_t V) {
    start = align_up(rows * static_cast<int64_t>(sizeof(int2)), 256);
    count = start + align_up(V * 4, 256);
    total = count + align_up(V * 4, 256);
    partial = total + 256;
    bytes = partial + align_up(ceil_div(rows, chunk_rows) * 2 * C * 4, 256);
  }
};

template <class T, bool Vector>
fa_status add_runs(fa_ctx *ctx, const void *dout, const EmbeddingBackward &arguments, int64_t rows,
                   const DropoutParams &params) {
  const int64_t items = ceil_div(rows, chunk_rows) * arguments.slabs;
  if (items > 0) {
    add_runs_kernel<T, Vector><<<static_cast<unsigned>(ceil_div(items, 8)), 256, 0, ctx->stream>>>(
        static_cast<const T *>(dout), arguments, params);
    FA_TRY(FA_LAUNCHED(ctx, "add_runs_kernel"));
  }
  join_runs_kernel<Vector><<<static_cast<unsigned>(ceil_div(arguments.V, 8)), 256, 0, ctx->stream>>>(arguments);
  return FA_LAUNCHED(ctx, "join_runs_kernel");
}

fa_status sort_rows(fa_ctx *ctx, const SortedRows &sorted, const SortArguments &arguments) {
  int64_t blocks = 128;
  while (blocks * most_owned < arguments.V) blocks *= 2;
  FA_TRY(allow_shared(ctx, sort_rows_kernel, sizeof(SortShared)));
  sort_rows_kernel<<<static_cast<unsigned>(blocks), sort_threads, sizeof(SortShared), ctx->stream>>>(sorted, arguments);
  return FA_LAUNCHED(ctx, "sort_rows_kernel");
}

}  // namespace

int64_t embedding_backward_bytes(int64_t rows, int64_t C, int64_t V) {
  return V > 0 ? EmbeddingWorkspace(rows, C, V).bytes : 0;
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
    const fa::SortedRows sorted{reinterpret_cast<int2 *>(at), reinterpret_cast<int *>(at + layout.start),
                                reinterpret_cast<int *>(at + layout.count), reinterpret_cast<int *>(at + layout.total)};
    FA_TRY(fa::sort_rows(ctx, sorted, fa::SortArguments{ids, rows, V, skip_id}));
    const int slabs = static_cast<int>(fa::ceil_div(C, 256));
    const fa::EmbeddingBackward arguments{
        sorted, dtable, reinterpret_cast<float *>(at + layout.partial), C, V, slabs, scale, accumulate != 0};
    return fa::by_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      return fa::by_bool(C % 8 == 0, [&](auto vector) {
        return fa::add_runs<T, decltype(vector)::value>(ctx, dout, arguments, rows,
                                                        fa::dropout_params(dropout, rng, site));
      });
    });
  });
}
