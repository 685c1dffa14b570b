// Chooses the kernels of an attention call: by form, then by what the device has.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "attention.cuh"
#include "dotscale.cuh"
#include "flash.cuh"
#include "hopper.cuh"
#include "imp_flash.cuh"

namespace fa {
namespace {

// FLASHATTN_PORTABLE=1 keeps to the portable kernels, so that they can be tested and measured on Hopper as well.
bool portable_only() {
  static const bool only = [] {
    const char *value = std::getenv("FLASHATTN_PORTABLE");
    return value != nullptr && value[0] != '\0' && value[0] != '0';
  }();
  return only;
}

bool on_hopper(const fa_ctx *ctx, const fa_attention_args &args) {
  return args.form == FA_IMP_FLASH && ctx->major == 9 && !portable_only();
}

bool hopper_forward(const fa_ctx *ctx, const fa_attention_args &args) {
  return on_hopper(ctx, args) && hopper::forward_supported(ctx, args);
}

bool hopper_backward(const fa_ctx *ctx, const fa_attention_args &args) {
  return on_hopper(ctx, args) && hopper::backward_supported(ctx, args);
}

// The kernels fold the scale into the exponent and take the row maximum before scaling: it must be positive. Under the
// least one here every score is 0 in effect, which is what scale 0 asks for.
constexpr float least_scale = 1e-20f;

fa_status check_scale(fa_ctx *ctx, fa_attention_args &args) {
  if (!(args.scale >= 0.0f && std::isfinite(args.scale))) {
    return fail(ctx, FA_UNSUPPORTED, "scale must be >= 0 and finite on the GPU: current value is %g", args.scale);
  }
  args.scale = std::max(args.scale, least_scale);
  return FA_OK;
}

}  // namespace

fa_status attention_sizes(fa_ctx *ctx, const fa_attention_args &args, int64_t *sizes) {
  sizes[0] = sizes[1] = sizes[2] = 0;
  if (args.form == FA_DOTSCALE) {
    const int64_t bytes = dotscale::matrix_bytes(args);
    sizes[0] = args.dropout > 0.0f ? bytes : 0;  // the probabilities that were kept
    sizes[1] = bytes;                            // the probabilities
    sizes[2] = bytes;                            // their gradients
  } else if (args.form == FA_FLASH) {
    sizes[0] = flash::sums_bytes(args);
    sizes[2] = stats_bytes(args) + flash::sums_bytes(args);
  } else {
    if (hopper_forward(ctx, args)) sizes[0] = hopper::forward_workspace_bytes(ctx, args);
    sizes[2] = hopper_backward(ctx, args) ? hopper::backward_workspace_bytes(ctx, args) : imp::backward_bytes(args);
  }
  return FA_OK;
}

fa_status attention_forward(fa_ctx *ctx, const fa_attention_args &given) {
  fa_attention_args args = given;
  FA_TRY(check_scale(ctx, args));
  const bool half = args.dtype == FA_F16;
  if (args.form == FA_DOTSCALE) return half ? dotscale::forward_fp16(ctx, args) : dotscale::forward_bf16(ctx, args);
  if (args.form == FA_FLASH) return half ? flash::forward_fp16(ctx, args) : flash::forward_bf16(ctx, args);
  if (hopper_forward(ctx, args)) return hopper::forward(ctx, args);
  return half ? imp::forward_fp16(ctx, args) : imp::forward_bf16(ctx, args);
}

fa_status attention_backward(fa_ctx *ctx, const fa_attention_args &given) {
  fa_attention_args args = given;
  FA_TRY(check_scale(ctx, args));
  const bool half = args.dtype == FA_F16;
  if (args.form == FA_DOTSCALE) return half ? dotscale::backward_fp16(ctx, args) : dotscale::backward_bf16(ctx, args);
  if (args.form == FA_FLASH) return half ? flash::backward_fp16(ctx, args) : flash::backward_bf16(ctx, args);
  if (hopper_backward(ctx, args)) return hopper::backward(ctx, args);
  return half ? imp::backward_fp16(ctx, args) : imp::backward_bf16(ctx, args);
}

}  // namespace fa
