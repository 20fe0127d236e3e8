// The kernels on rows as a library for the CPU.
#include "host.h"
#include "prelude.cuh"
#include "rows_common.cuh"
#include "norms.cuh"
#include "gates.cuh"
#include "loss.cuh"
#include "rows.cu"

#define EACH_TYPE(name) KERNEL(name##_f32) KERNEL(name##_bf16)

HOST_LAUNCH(
    EACH_TYPE(rms_norm) EACH_TYPE(rms_norm_backward) EACH_TYPE(swiglu) EACH_TYPE(swiglu_backward) EACH_TYPE(rope)
    EACH_TYPE(dropout) EACH_TYPE(dropout_add) EACH_TYPE(add_bias) EACH_TYPE(add) EACH_TYPE(gather) EACH_TYPE(scatter)
    EACH_TYPE(scale) EACH_TYPE(copy_rows) EACH_TYPE(convert) EACH_TYPE(cross_entropy))
