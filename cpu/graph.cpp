// Graphs and events. A graph is the list of calls that were recorded; an event is a time on the host's clock.
#include "context.hpp"

using namespace fa;

fa_status fa_graph_begin(fa_ctx *ctx) {
  if (!ctx) return FA_INVALID;
  if (fa_status status = not_capturing(ctx, "begin a graph")) return status;
  try {
    ctx->capture = std::make_unique<fa_graph>();
  } catch (...) {
    return caught(ctx);
  }
  ctx->capture_status = FA_OK;
  ctx->capture_error.clear();
  return FA_OK;
}

fa_status fa_graph_end(fa_ctx *ctx, fa_graph **out) {
  if (out) *out = nullptr;
  FA_REQUIRE(ctx, ctx->capture, FA_STATE, "Cannot end a graph as none was begun: call fa_graph_begin first");
  std::unique_ptr<fa_graph> graph = std::move(ctx->capture);
  if (ctx->capture_status != FA_OK) {
    return fail(ctx, ctx->capture_status, "Cannot record the graph: %s", ctx->capture_error.c_str());
  }
  FA_REQUIRE(ctx, out, FA_INVALID, "Cannot end a graph as `out` must not be NULL");
  fa_graph *handle = graph.get();
  try {
    ctx->graphs.emplace(handle, std::move(graph));
  } catch (...) {
    return caught(ctx);
  }
  *out = handle;
  return FA_OK;
}

fa_status fa_graph_launch(fa_ctx *ctx, fa_graph *graph) {
  if (!ctx) return FA_INVALID;
  if (fa_status status = not_capturing(ctx, "launch a graph")) return status;
  FA_REQUIRE(ctx, ctx->graphs.count(graph), FA_INVALID, "Cannot launch a graph that is not one of this context");
  try {
    for (auto &call : graph->calls) call();
    return FA_OK;
  } catch (...) {
    return caught(ctx);
  }
}

fa_status fa_graph_destroy(fa_ctx *ctx, fa_graph *graph) {
  if (!ctx) return FA_INVALID;
  if (!graph) return FA_OK;
  FA_REQUIRE(ctx, ctx->graphs.erase(graph), FA_INVALID, "Cannot destroy a graph that is not one of this context");
  return FA_OK;
}

fa_status fa_event_create(fa_ctx *ctx, fa_event **out) {
  FA_REQUIRE(ctx, out, FA_INVALID, "Cannot create an event as `out` must not be NULL");
  *out = nullptr;
  try {
    auto event = std::make_unique<fa_event>();
    fa_event *handle = event.get();
    ctx->events.emplace(handle, std::move(event));
    *out = handle;
    return FA_OK;
  } catch (...) {
    return caught(ctx);
  }
}

fa_status fa_event_record(fa_ctx *ctx, fa_event *event) {
  FA_REQUIRE(ctx, ctx->events.count(event), FA_INVALID, "Cannot record an event that is not one of this context");
  return submit(ctx, [=] {
    // A graph may outlive an event that was recorded in it.
    if (!ctx->events.count(event)) return;
    event->time = std::chrono::steady_clock::now();
    event->recorded = true;
  });
}

fa_status fa_event_elapsed(fa_ctx *ctx, fa_event *from, fa_event *to, float *ms) {
  if (!ctx) return FA_INVALID;
  if (fa_status status = not_capturing(ctx, "read a time")) return status;
  FA_REQUIRE(ctx, ms && ctx->events.count(from) && ctx->events.count(to), FA_INVALID,
             "Cannot read a time as both events must be of this context, and `ms` must not be NULL");
  FA_REQUIRE(ctx, from->recorded && to->recorded, FA_STATE, "Cannot read a time as both events must be recorded first");
  *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return FA_OK;
}

fa_status fa_event_destroy(fa_ctx *ctx, fa_event *event) {
  if (!ctx) return FA_INVALID;
  if (!event) return FA_OK;
  FA_REQUIRE(ctx, ctx->events.erase(event), FA_INVALID, "Cannot destroy an event that is not one of this context");
  return FA_OK;
}
