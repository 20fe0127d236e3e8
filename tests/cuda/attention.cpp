// The kernels of attention for heads of HEAD_DIM numbers, as a library.
#include "host.h"
#include "prelude.cuh"
#include "attention_common.cuh"
#include "attention_f32.cuh"
#include "attention_bf16.cuh"
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

// What launches must know of the file, to be held against what they do: for f32 then bf16, threads of a block; rows that it owns
// of the forward pass, of the backward pass for queries and for keys; bytes of dynamic shared memory, in the same order.
extern "C" __attribute__((visibility("default"))) void host_sizes(unsigned sizes[14]) {
    const unsigned all[14] = {
        F32_THREADS,  F32_ROWS,     F32_ROWS,   F32_ROWS, F32_FORWARD_BYTES,  F32_BACKWARD_BYTES, F32_BACKWARD_BYTES,
        BF16_THREADS, FORWARD_ROWS, QUERY_ROWS, KEY_ROWS, BF16_FORWARD_BYTES, BF16_QUERIES_BYTES, BF16_KEYS_BYTES,
    };
    memcpy(sizes, all, sizeof all);
}
