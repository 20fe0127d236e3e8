// The kernels of some objectives as a library for the CPU.
#include "host.h"
#include "prelude.cuh"
#include "rows_common.cuh"
#include "norms.cuh"
#include "gates.cuh"
#include "loss.cuh"
#include "objectives.cu"

#define EACH_TYPE(name) KERNEL(name##_f32) KERNEL(name##_bf16)

HOST_LAUNCH(EACH_TYPE(largest_entropy) EACH_TYPE(along))
