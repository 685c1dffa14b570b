// The state behind fa_ctx and fa_graph, and the two doors that every entry point goes through: fail and submit.
#pragma once

#include <stdarg.h>

#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/table.hpp"

namespace fa {

struct Allocation {
  int64_t bytes;
};

}  // namespace fa

struct fa_graph {
  std::vector<std::function<void()>> calls;
};

struct fa_event {
  std::chrono::steady_clock::time_point time;
  bool recorded = false;
};

struct fa_ctx {
  const fa::Kernels *kernels = nullptr;
  std::string error;
  std::unordered_map<void *, fa::Allocation> allocations;
  std::unordered_map<fa_graph *, std::unique_ptr<fa_graph>> graphs;
  std::unordered_map<fa_event *, std::unique_ptr<fa_event>> events;
  std::unique_ptr<fa_graph> capture;   // the graph that calls are recorded into; empty: calls run at once
  fa_status capture_status = FA_OK;    // the first error while recording
  std::string capture_error;
};

namespace fa {

/// Keeps the message in the context and returns `status`; while recording, the capture is spoilt.
[[gnu::format(printf, 3, 4)]] fa_status fail(fa_ctx *ctx, fa_status status, const char *format, ...);

/// FA_STATE while recording, else FA_OK.
fa_status not_capturing(fa_ctx *ctx, const char *what);

/// The status of an exception that is being handled.
fa_status caught(fa_ctx *ctx);

/// Runs `work` now, or records it between fa_graph_begin and fa_graph_end.
template <class Work>
fa_status submit(fa_ctx *ctx, Work &&work) noexcept {
  try {
    if (ctx->capture) {
      ctx->capture->calls.emplace_back(std::forward<Work>(work));
    } else {
      work();
    }
    return FA_OK;
  } catch (...) {
    return caught(ctx);
  }
}

}  // namespace fa

/// Leaves the entry point with `status` and a message unless the condition holds.
#define FA_REQUIRE(ctx, condition, status, ...)                       \
  do {                                                                \
    if (!(ctx)) return FA_INVALID;                                    \
    if (!(condition)) return fa::fail((ctx), (status), __VA_ARGS__);  \
  } while (0)
