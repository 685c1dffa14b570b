// Attention on the CPU: chooses the form, and says how much memory each needs.

#include "attention_common.hpp"

namespace FA_ISA {

void attention_sizes(const fa_attention_args &a, int64_t *sizes) {
  sizes[0] = sizes[1] = sizes[2] = 0;
  if (a.form == FA_DOTSCALE) {
    // The matrix of scores: P for the backward pass, and there its gradient.
    __int128 bytes = (__int128)a.B * a.H * a.max_q * a.max_k * (int)sizeof(float);
    sizes[1] = sizes[2] = bytes < INT64_MAX ? (int64_t)bytes : INT64_MAX;
  } else {
    int64_t floats = (int64_t)a.H * a.rows_q;  // delta of each row
    const int64_t stripes = a.form == FA_IMP_FLASH ? imp_flash_stripes(a) : 1;
    if (stripes > 1) floats += stripes * a.rows_q * a.H * a.D;  // each stripe's dq
    sizes[2] = floats * (int64_t)sizeof(float);
  }
}

void attention_forward(const fa_attention_args &a) {
  clear_forward_gaps(a);
  if (a.form == FA_DOTSCALE) return dotscale_forward(a);
  if (a.form == FA_FLASH) return flash_forward(a);
  imp_flash_forward(a);
}

void attention_backward(const fa_attention_args &a) {
  clear_backward_gaps(a);
  if (a.form == FA_DOTSCALE) return dotscale_backward(a);
  if (a.form == FA_FLASH) return flash_backward(a);
  imp_flash_backward(a);
}

}  // namespace FA_ISA
