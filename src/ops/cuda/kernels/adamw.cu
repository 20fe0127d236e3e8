// The optimizer, over all adapter tensors at once: the twin of `Moments::update` in train/adamw.rs. No two roundings are joined,
// so that both give the same bits.

struct Factors {
    float gradient, beta1, beta2, rest1, rest2, correction, epsilon, step, kept;
};

__device__ __forceinline__ void update(float &value, float gradient, float &first, float &second, const Factors &f) {
    gradient = MUL(gradient, f.gradient);
    first = ADD(MUL(first, f.beta1), MUL(gradient, f.rest1));
    second = ADD(MUL(second, f.beta2), MUL(MUL(gradient, gradient), f.rest2));
    float root = ADD(__fdiv_rn(__fsqrt_rn(second), f.correction), f.epsilon);
    value = SUB(MUL(value, f.kept), MUL(__fdiv_rn(first, root), f.step));
}

// Four numbers a thread. `rounded`, where there is one, gets the new values in bf16.
extern "C" __global__ void __launch_bounds__(256, 4)
adamw(float *values, u16 *rounded, const float *gradient, float *first, float *second, u64 count, float factor, float beta1, float beta2, float rest1, float rest2, float correction, float epsilon, float step, float kept) {
    Factors f = {factor, beta1, beta2, rest1, rest2, correction, epsilon, step, kept};
    u64 at = 4 * thread_number();
    if (at + 4 <= count) {
        float4 v = *(const float4 *)(values + at), g = *(const float4 *)(gradient + at);
        float4 a = *(const float4 *)(first + at), b = *(const float4 *)(second + at);
        update(v.x, g.x, a.x, b.x, f);
        update(v.y, g.y, a.y, b.y, f);
        update(v.z, g.z, a.z, b.z, f);
        update(v.w, g.w, a.w, b.w, f);
        *(float4 *)(values + at) = v;
        *(float4 *)(first + at) = a;
        *(float4 *)(second + at) = b;
        if (rounded) *(u64 *)(rounded + at) = two_bf16(v.x, v.y) | (u64)two_bf16(v.z, v.w) << 32;
    } else {
        for (; at < count; at++) {
            update(values[at], gradient[at], first[at], second[at], f);
            if (rounded) store_one(rounded + at, values[at]);
        }
    }
}

// The sum of squares of each block's numbers. They go round among the blocks, so that the order only hangs on the grid.
extern "C" __global__ void __launch_bounds__(256) sum_of_squares(const float *x, double *partial, u64 count) {
    __shared__ double shared[32];
    double sum = 0.0;
    for (u64 at = 4 * thread_number(); at < count; at += 4 * (u64)gridDim.x * blockDim.x) {
        float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (at + 4 <= count) {
            a = *(const float4 *)(x + at);
        } else {
            a.x = x[at];
            if (at + 1 < count) a.y = x[at + 1];
            if (at + 2 < count) a.z = x[at + 2];
        }
        // A square of an f32 is exact in f64.
        sum += (double)a.x * a.x;
        sum += (double)a.y * a.y;
        sum += (double)a.z * a.z;
        sum += (double)a.w * a.w;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
