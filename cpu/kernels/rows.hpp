// How rows are cut for sums over them.
#pragma once

#include "simd.hpp"

namespace FA_ISA {

/// Rows in at most 32 parts of at least 16, by their number alone. The workspaces of cpu/ops.cpp count on 32.
struct RowParts {
  int64_t rows, size;
  int count;

  explicit RowParts(int64_t rows) : rows(rows) {
    size = (rows + 31) / 32;
    if (size < 16) size = 16;
    count = (int)((rows + size - 1) / size);
  }
  int64_t first(int part) const { return part * size; }
  int64_t last(int part) const { return (part + 1) * size < rows ? (part + 1) * size : rows; }
};

/// out[c] (+)= the sum over parts of sums[part * stride + c], in their order.
static inline void add_parts(float *out, const float *sums, int parts, int64_t stride, int32_t n, int32_t accumulate) {
  if (!accumulate) memset(out, 0, (size_t)n * 4);
  for (int part = 0; part < parts; part++) {
    const float *row = sums + part * stride;
#pragma omp simd
    for (int32_t c = 0; c < n; c++) out[c] += row[c];
  }
}

}  // namespace FA_ISA
