// What some objectives must know of a token besides its log-probability, behind rows_common, norms, gates and loss: a program of its
// own, so that other runs do not wait for it to be compiled.

// A logit and its place: of equal logits, the first counts as the larger.
struct Candidate {
    float logit;
    u32 at;
    __device__ __forceinline__ bool above(Candidate other) const {
        return logit > other.logit || (logit == other.logit && at < other.at);
    }
};

// The place of no logit: below all others.
#define NOWHERE 0xffffffffu

__device__ __forceinline__ Candidate block_best(Candidate mine, Candidate *shared) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        Candidate other = {__shfl_xor_sync(0xffffffff, mine.logit, lanes), __shfl_xor_sync(0xffffffff, mine.at, lanes)};
        if (other.above(mine)) mine = other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
    __syncthreads();
    Candidate best = shared[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) {
        if (shared[warp].above(best)) best = shared[warp];
    }
    return best;
}

// The largest of a thread's logits below `last`; a NaN is none.
__device__ __forceinline__ Candidate next_below(const float *logits, u32 vocabulary, Candidate last) {
    Candidate best = {__int_as_float(0xff800000), NOWHERE};
#pragma unroll 4
    for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) {
        Candidate each = {logits[at], at};
        if (last.above(each) && each.above(best)) best = each;
    }
    return best;
}

// The entropy of the softmax over the k largest logits of a row: log Σ e^x - Σ p·x, relative to the largest. The block finds one
// after the other; the thread whose logit was taken looks for its next.
__device__ __forceinline__ void largest_entropy(const float *logits, float *entropies, u32 vocabulary, u32 k, float cap) {
    logits += row_start(vocabulary);
    __shared__ Candidate shared[32];
    Candidate above_all = {__int_as_float(0x7f800000), 0};
    // A logit of +∞ at the first place would not be below that; its softmax has no number anyway.
    Candidate mine = next_below(logits, vocabulary, above_all);
    float first = 0.0f, sum = 0.0f, product = 0.0f;
    for (u32 i = 0; i < k; i++) {
        Candidate best = block_best(mine, shared);
        if (best.at == NOWHERE) break;
        if (best.at == mine.at) mine = next_below(logits, vocabulary, best);
        float logit = cap > 0.0f ? Cap(cap).of(best.logit) : best.logit;
        if (i == 0) first = logit;
        float relative = logit - first, e = expf(relative);
        if (e > 0.0f) {
            sum += e;
            product += e * relative;
        }
    }
    if (threadIdx.x == 0) entropies[blockIdx.x] = larger(0.0f, logf(sum) - product / sum);
}

// Σ g·(x - y) of a row.
template <class T, int N> __device__ __forceinline__ void along(Count<N> n, const T *g, const T *x, const T *y, float *out, u32 width) {
    g += row_start(width);
    x += row_start(width);
    y += row_start(width);
    __shared__ float shared[32];
    float sum = 0.0f;
    each_of_row(n, width, [&](int, u32 at) {
        Floats<N> a = load(n, g + at), b = load(n, x + at), c = load(n, y + at);
        for (int i = 0; i < N; i++) sum += a[i] * (b[i] - c[i]);
    });
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

#define KERNELS(T, type)                                                                                              \
    LOSS largest_entropy_##type(const float *logits, float *entropies, u32 vocabulary, u32 k, float cap) {            \
        largest_entropy(logits, entropies, vocabulary, k, cap);                                                       \
    }                                                                                                                 \
    ROWS along_##type(const T *g, const T *x, const T *y, float *out, u32 width) {                                    \
        EITHER(aligned(width, g, x, y), along, g, x, y, out, width)                                                   \
    }

KERNELS(float, f32)
KERNELS(u16, bf16)
