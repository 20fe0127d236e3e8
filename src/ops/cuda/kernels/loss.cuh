// The loss of ops/linear_cross_entropy.rs, a row of logits at a time.

__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

// As block_sum. A NaN counts for nothing.
__device__ __forceinline__ float block_max(float x, float least, float *shared) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = larger(x, __shfl_xor_sync(0xffffffff, x, lanes));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : least;
    for (int lanes = 16; lanes > 0; lanes /= 2) x = larger(x, __shfl_xor_sync(0xffffffff, x, lanes));
    return x;
}

// The least finite number: the reference of exponentials before there is a logit. With -∞, a logit of -∞ would give a NaN.
#define LEAST -3.402823466e38f

// What becomes of a logit before the softmax, and what its gradient is multiplied by.
struct NoCap {
    __device__ __forceinline__ float of(float logit) const { return logit; }
    __device__ __forceinline__ float slope(float) const { return 1.0f; }
};

// c·tanh(z/c): tanh is 1 - 2/(1 + e^(2·z/c)), also where that power has no number.
struct Cap {
    float cap, inverse;
    __device__ __forceinline__ Cap(float cap) : cap(cap), inverse(1.0f / cap) {}
    __device__ __forceinline__ float of(float logit) const {
        return MUL(cap, 1.0f - __fdividef(2.0f, 1.0f + expf(2.0f * logit * inverse)));
    }
    // Of a logit that is capped.
    __device__ __forceinline__ float slope(float capped) const {
        float ratio = capped * inverse;
        return 1.0f - ratio * ratio;
    }
};

// One pass gives the largest logit and the sum of exponentials relative to the largest so far; another the gradient, which may be
// written over the logits.
template <class T, int N, class Capped>
__device__ __forceinline__ void cross_entropy(Count<N> n, Capped cap, const float *logits, const u32 *targets, T *gradient, float *log_p, u32 *top1, u32 vocabulary) {
    u32 target = targets[blockIdx.x];
    logits += row_start(vocabulary);
    if (gradient) gradient += row_start(vocabulary);
    __shared__ float shared_maxima[32], shared_sums[32], shared_rivals[32];
    u32 first = N * threadIdx.x, step = N * blockDim.x;
    // A target outside of the vocabulary gives a NaN.
    float target_logit = target < vocabulary ? cap.of(logits[target]) : __uint_as_float(0x7fffffff);
    float mine = LEAST, sum = 0.0f, rival = __int_as_float(0xff800000);
#pragma unroll 4
    for (u32 at = first; at < vocabulary; at += step) {
        Floats<N> x = load(n, logits + at);
        for (int i = 0; i < N; i++) x[i] = cap.of(x[i]);
        float largest = mine;
        for (int i = 0; i < N; i++) largest = larger(largest, x[i]);
        // The largest logit of another token than the target.
        for (int i = 0; i < N; i++) rival = at + i == target ? rival : larger(rival, x[i]);
        if (largest > mine) {
            sum *= expf(mine - largest);
            mine = largest;
        }
        for (int i = 0; i < N; i++) sum += expf(x[i] - mine);
    }
    float max = block_max(mine, LEAST, shared_maxima);
    sum = block_sum(sum * expf(mine - max), shared_sums);
    rival = block_max(rival, LEAST, shared_rivals);
    if (threadIdx.x == 0) {
        log_p[blockIdx.x] = target_logit - max - logf(sum);
        // A tie ranks nothing first.
        top1[blockIdx.x] = target_logit > rival;
    }
    if (!gradient || first >= vocabulary) return;
    float share = 1.0f / sum;
    // From its end on: that is what caches still have.
    for (u32 at = first + (vocabulary - 1 - first) / step * step;; at -= step) {
        Floats<N> x = load(n, logits + at);
        for (int i = 0; i < N; i++) {
            float logit = cap.of(x[i]);
            x[i] = (expf(logit - max) * share - (at + i == target ? 1.0f : 0.0f)) * cap.slope(logit);
        }
        store(gradient + at, x);
        if (at == first) return;
    }
}
