// The forward pass on Hopper.
#include "hopper.cuh"

namespace fa::hopper {

bool forward_supported(const fa_ctx *, const fa_attention_args &) { return false; }

int64_t forward_workspace_bytes(const fa_ctx *, const fa_attention_args &) { return 0; }

fa_status forward(fa_ctx *ctx, const fa_attention_args &) {
  return fail(ctx, FA_UNSUPPORTED, "no Hopper kernel for this shape");
}

}  // namespace fa::hopper
