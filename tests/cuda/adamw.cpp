// The optimizer's kernels as a library for the CPU.
#include "host.h"
#include "prelude.cuh"
#include "adamw.cu"

HOST_LAUNCH(KERNEL(adamw) KERNEL(sum_of_squares))
