// The one workspace query of the operations.
#include <algorithm>

#include "columns.cuh"

namespace fa {
int64_t flat_workspace_bytes();
int64_t norm_backward_bytes(const fa_ctx *ctx, int64_t rows, int64_t C);
int64_t embedding_backward_bytes(int64_t rows, int64_t C, int64_t V);
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_workspace_bytes(fa_ctx *ctx, int64_t rows, int64_t columns, int64_t table_rows,
                                                  int64_t *bytes) {
  return fa::entry(ctx, "fa_workspace_bytes", [&]() -> fa_status {
    FA_TRY(fa::check_range(ctx, rows, 0, INT64_MAX / 8, "rows"));
    FA_TRY(fa::check_range(ctx, columns, 0, INT64_MAX / 8, "columns"));
    FA_TRY(fa::check_range(ctx, table_rows, 0, INT64_MAX / 8, "table_rows"));
    FA_TRY(fa::check_pointer(ctx, bytes, "bytes", alignof(int64_t)));
    // Column sums of [rows, columns], the norm's two, the sums over all elements, the embedding's gradient.
    *bytes = std::max({fa::column_sum_bytes(ctx, rows, columns), fa::norm_backward_bytes(ctx, rows, columns),
                       fa::flat_workspace_bytes(), fa::embedding_backward_bytes(rows, columns, table_rows)});
    return FA_OK;
  });
}
