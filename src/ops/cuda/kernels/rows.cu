// Operations on rows of f32: the twins of ops/rms_norm.rs and ops/swiglu.rs, with their formulas.
// Nothing launches them yet: on a GPU these operations are still made of candle's.

#define ROW_THREADS 256

// The sum of a number of each thread of a block, for all of them.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[ROW_THREADS];
    parts[threadIdx.x] = x;
    __syncthreads();
    for (u32 half = ROW_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    float sum = parts[0];
    // Before the next sum writes there.
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float inverse_root(const float *x, u64 width, float epsilon) {
    float sum = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += ROW_THREADS) sum += x[i] * x[i];
    return 1.0f / sqrtf(block_sum(sum) / (float)width + epsilon);
}

// A block for a row.
extern "C" __global__ void rms_norm(const float *x, const float *weight, float *y, u64 width, float epsilon) {
    x += blockIdx.x * width;
    y += blockIdx.x * width;
    float scale = inverse_root(x, width, epsilon);
    for (u64 i = threadIdx.x; i < width; i += ROW_THREADS) y[i] = x[i] * scale * weight[i];
}

// With g = dy∘w and s the scale: s·g - x·s³·mean(g∘x).
extern "C" __global__ void rms_norm_backward(const float *x, const float *weight, const float *dy, float *dx, u64 width, float epsilon) {
    x += blockIdx.x * width;
    dy += blockIdx.x * width;
    dx += blockIdx.x * width;
    float scale = inverse_root(x, width, epsilon), sum = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += ROW_THREADS) sum += x[i] * weight[i] * dy[i];
    float along = scale * scale * scale * (block_sum(sum) / (float)width);
    for (u64 i = threadIdx.x; i < width; i += ROW_THREADS) dx[i] = dy[i] * weight[i] * scale - x[i] * along;
}

// silu(gate)∘up
extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, u64 count) {
    u64 i = thread_number();
    if (i >= count) return;
    float s = 1.0f / (1.0f + expf(-gate[i]));
    y[i] = gate[i] * s * up[i];
}

// With s the sigmoid of the gate: dy·up·s·(1 + g·(1 - s)) and dy·g·s, the gradients of all gates before those of all ups.
extern "C" __global__ void swiglu_backward(const float *gate, const float *up, const float *dy, float *d_gate_up, u64 count) {
    u64 i = thread_number();
    if (i >= count) return;
    float g = gate[i], s = 1.0f / (1.0f + expf(-g));
    d_gate_up[i] = dy[i] * up[i] * s * (1.0f + g * (1.0f - s));
    d_gate_up[count + i] = dy[i] * g * s;
}
