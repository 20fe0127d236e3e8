// The kernels of attention for heads of HEAD_DIM numbers, as a library.
#include "host.h"
#include "prelude.cuh"
#include "attention.cu"

HOST_LAUNCH(
    KERNEL(attention_f32)
    KERNEL(attention_bf16)
    KERNEL(attention_delta_f32)
    KERNEL(attention_delta_bf16)
    KERNEL(attention_backward_queries_f32)
    KERNEL(attention_backward_queries_bf16)
    KERNEL(attention_backward_keys_f32)
    KERNEL(attention_backward_keys_bf16))
