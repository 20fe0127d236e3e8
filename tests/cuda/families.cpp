// The kernels of some families of models as a library for the CPU.
#include "host.h"
#include "prelude.cuh"
#include "rows_common.cuh"
#include "norms.cuh"
#include "gates.cuh"
#include "loss.cuh"
#include "families.cu"

#define EACH_TYPE(name) KERNEL(name##_f32) KERNEL(name##_bf16)

HOST_LAUNCH(
    EACH_TYPE(add_normalized) EACH_TYPE(branch_norm_backward) EACH_TYPE(head_norm) EACH_TYPE(head_norm_backward)
    EACH_TYPE(geglu) EACH_TYPE(geglu_backward) EACH_TYPE(add_scaled) EACH_TYPE(scaled) EACH_TYPE(cross_entropy_capped)
    EACH_TYPE(softcap) EACH_TYPE(rope_neighbours))
