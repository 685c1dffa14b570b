// The table of this instruction set.
#include "ops.hpp"

namespace FA_ISA {

#define FA_STRING(x) #x
#define FA_NAME(x) FA_STRING(x)

const fa::Kernels kernel_table = {
    FA_NAME(FA_ISA),
    W,
    gemm,
    attention_sizes,
    attention_forward,
    attention_backward,
    embedding_forward,
    embedding_backward,
    residual_norm_forward,
    residual_norm_backward,
    bias_relu_dropout_forward,
    bias_relu_dropout_backward,
    dropout,
    add,
    column_sum,
    sum,
    cross_entropy,
    grad_norm,
    adam,
    random_uniform,
    topk,
    cast,
};

}  // namespace FA_ISA
