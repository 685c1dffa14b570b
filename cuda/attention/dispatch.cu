// Chooses the kernels of an attention call: by form, then by what the device has.
#include <cmath>
#include <cstdlib>

#include "attention.cuh"
#include "forms.cuh"
#include "hopper.cuh"

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

// The kernels fold the scale into the exponent and take the row maximum before scaling.
fa_status check_scale(fa_ctx *ctx, const fa_attention_args &args) {
  if (args.scale > 0.0f && std::isfinite(args.scale)) return FA_OK;
  return fail(ctx, FA_UNSUPPORTED, "scale must be > 0 and finite on the GPU: current value is %g", args.scale);
}

}  // namespace

fa_status attention_sizes(fa_ctx *ctx, const fa_attention_args &args, int64_t *sizes) {
  sizes[0] = sizes[1] = sizes[2] = 0;
  if (args.form == FA_DOTSCALE) {
    dotscale_sizes(args, sizes);
  } else if (args.form == FA_FLASH) {
    flash_sizes(args, sizes);
  } else {
    imp_flash_sizes(args, sizes);
    if (hopper_forward(ctx, args)) sizes[0] = hopper::forward_workspace_bytes(ctx, args);
    if (hopper_backward(ctx, args)) sizes[2] = hopper::backward_workspace_bytes(ctx, args);
  }
  return FA_OK;
}

fa_status attention_forward(fa_ctx *ctx, const fa_attention_args &args) {
  FA_TRY(check_scale(ctx, args));
  if (args.form == FA_DOTSCALE) return dotscale_forward(ctx, args);
  if (args.form == FA_FLASH) return flash_forward(ctx, args);
  if (hopper_forward(ctx, args)) return hopper::forward(ctx, args);
  return imp_flash_forward(ctx, args);
}

fa_status attention_backward(fa_ctx *ctx, const fa_attention_args &args) {
  FA_TRY(check_scale(ctx, args));
  if (args.form == FA_DOTSCALE) return dotscale_backward(ctx, args);
  if (args.form == FA_FLASH) return flash_backward(ctx, args);
  if (hopper_backward(ctx, args)) return hopper::backward(ctx, args);
  return imp_flash_backward(ctx, args);
}

}  // namespace fa
