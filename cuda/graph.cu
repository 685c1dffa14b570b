// Captured sequences of calls, and events.
#include <algorithm>
#include <cstring>

#include "context.cuh"

struct fa_graph {
  cudaGraphExec_t exec = nullptr;
};

struct fa_event {
  cudaEvent_t event = nullptr;
  bool recorded = false;
};

using fa::entry;
using fa::fail;

namespace fa {
namespace {

// A handle of another context, or one that is destroyed already, is an error and not a crash.
template <class Handle>
fa_status check_handle(fa_ctx *ctx, const std::vector<Handle *> &known, Handle *handle, const char *name) {
  if (std::find(known.begin(), known.end(), handle) != known.end()) return FA_OK;
  return fail(ctx, FA_INVALID, "%s must be a live handle of this context: current value is %p", name,
              static_cast<void *>(handle));
}

template <class Handle>
void forget(std::vector<Handle *> &known, Handle *handle) {
  known.erase(std::remove(known.begin(), known.end(), handle), known.end());
}

}  // namespace

// Used by fa_ctx_destroy.
void destroy_handles(fa_ctx *ctx) {
  for (fa_graph *graph : ctx->graphs) {
    cudaGraphExecDestroy(graph->exec);
    delete graph;
  }
  for (fa_event *event : ctx->events) {
    cudaEventDestroy(event->event);
    delete event;
  }
  ctx->graphs.clear();
  ctx->events.clear();
}

}  // namespace fa

extern "C" FA_EXPORT fa_status fa_graph_begin(fa_ctx *ctx) {
  return entry(ctx, "fa_graph_begin", [&]() -> fa_status {
    if (ctx->capturing) return fail(ctx, FA_STATE, "the context is capturing already: call fa_graph_end first");
    // Relaxed: the first use of a kernel or of cuBLASLt may load code, which the stricter modes forbid.
    FA_TRY(FA_CUDA(ctx, cudaStreamBeginCapture(ctx->stream, cudaStreamCaptureModeRelaxed)));
    ctx->capturing = true;
    ctx->capture_status = FA_OK;
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_graph_end(fa_ctx *ctx, fa_graph **out) {
  return entry(ctx, "fa_graph_end", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, out, "out", alignof(fa_graph *)));
    *out = nullptr;
    if (!ctx->capturing) return fail(ctx, FA_STATE, "the context is not capturing: call fa_graph_begin first");
    ctx->capturing = false;
    cudaGraph_t recorded = nullptr;
    const cudaError_t error = cudaStreamEndCapture(ctx->stream, &recorded);
    if (ctx->capture_status != FA_OK) {
      cudaGetLastError();
      if (recorded != nullptr) cudaGraphDestroy(recorded);
      memcpy(ctx->error, ctx->capture_error, sizeof(ctx->error));
      return ctx->capture_status;
    }
    FA_TRY(FA_CUDA(ctx, error));
    std::unique_ptr<fa_graph> graph(new fa_graph);
    const cudaError_t instantiated = cudaGraphInstantiate(&graph->exec, recorded, 0);
    cudaGraphDestroy(recorded);
    FA_TRY(FA_CUDA(ctx, instantiated));
    FA_TRY(FA_CUDA(ctx, cudaGraphUpload(graph->exec, ctx->stream)));
    ctx->graphs.push_back(graph.get());
    *out = graph.release();
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_graph_launch(fa_ctx *ctx, fa_graph *graph) {
  return entry(ctx, "fa_graph_launch", [&]() -> fa_status {
    FA_TRY(fa::check_handle(ctx, ctx->graphs, graph, "graph"));
    if (ctx->capturing) return fail(ctx, FA_STATE, "the context is capturing: call fa_graph_end first");
    return FA_CUDA(ctx, cudaGraphLaunch(graph->exec, ctx->stream));
  });
}

extern "C" FA_EXPORT fa_status fa_graph_destroy(fa_ctx *ctx, fa_graph *graph) {
  return entry(ctx, "fa_graph_destroy", [&]() -> fa_status {
    if (graph == nullptr) return FA_OK;
    FA_TRY(fa::check_handle(ctx, ctx->graphs, graph, "graph"));
    fa::forget(ctx->graphs, graph);
    std::unique_ptr<fa_graph> owned(graph);
    return FA_CUDA(ctx, cudaGraphExecDestroy(owned->exec));
  });
}

extern "C" FA_EXPORT fa_status fa_event_create(fa_ctx *ctx, fa_event **out) {
  return entry(ctx, "fa_event_create", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, out, "out", alignof(fa_event *)));
    *out = nullptr;
    std::unique_ptr<fa_event> event(new fa_event);
    FA_TRY(FA_CUDA(ctx, cudaEventCreate(&event->event)));
    ctx->events.push_back(event.get());
    *out = event.release();
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_event_record(fa_ctx *ctx, fa_event *event) {
  return entry(ctx, "fa_event_record", [&]() -> fa_status {
    FA_TRY(fa::check_handle(ctx, ctx->events, event, "event"));
    if (ctx->capturing) {
      // As a node of the graph, so that each replay records it.
      FA_TRY(FA_CUDA(ctx, cudaEventRecordWithFlags(event->event, ctx->stream, cudaEventRecordExternal)));
    } else {
      FA_TRY(FA_CUDA(ctx, cudaEventRecord(event->event, ctx->stream)));
    }
    event->recorded = true;
    return FA_OK;
  });
}

extern "C" FA_EXPORT fa_status fa_event_elapsed(fa_ctx *ctx, fa_event *from, fa_event *to, float *ms) {
  return entry(ctx, "fa_event_elapsed", [&]() -> fa_status {
    FA_TRY(fa::check_handle(ctx, ctx->events, from, "from"));
    FA_TRY(fa::check_handle(ctx, ctx->events, to, "to"));
    FA_TRY(fa::check_pointer(ctx, ms, "ms", alignof(float)));
    if (ctx->capturing) return fail(ctx, FA_STATE, "the context is capturing: call fa_graph_end first");
    if (!from->recorded || !to->recorded) return fail(ctx, FA_STATE, "both events must be recorded first");
    FA_TRY(FA_CUDA(ctx, cudaEventSynchronize(from->event)));
    FA_TRY(FA_CUDA(ctx, cudaEventSynchronize(to->event)));
    return FA_CUDA(ctx, cudaEventElapsedTime(ms, from->event, to->event));
  });
}

extern "C" FA_EXPORT fa_status fa_event_destroy(fa_ctx *ctx, fa_event *event) {
  return entry(ctx, "fa_event_destroy", [&]() -> fa_status {
    if (event == nullptr) return FA_OK;
    FA_TRY(fa::check_handle(ctx, ctx->events, event, "event"));
    fa::forget(ctx->events, event);
    std::unique_ptr<fa_event> owned(event);
    return FA_CUDA(ctx, cudaEventDestroy(owned->event));
  });
}
