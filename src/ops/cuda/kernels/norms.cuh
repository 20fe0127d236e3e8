// Norms of rows, the twins of ops/rms_norm.rs and branch.rs, and of heads, those of ops/head_norm.rs.

// y = x / sqrt(mean(x²) + ε) · w, and under ADDED `onto` besides; y may be x or `onto`.
template <bool ADDED, class T, int N>
__device__ __forceinline__ void rms_norm(Count<N> n, const T *onto, const T *x, const float *__restrict__ w, T *y, u32 width, float epsilon) {
    if (ADDED) onto += row_start(width);
    x += row_start(width);
    y += row_start(width);
    __shared__ float shared[32];
    Kept<T, N> kept;
    kept.load(x, width);
    float sum = 0.0f;
    each_of_row(n, width, [&](int place, u32 at) {
        Floats<N> a = kept.of(place, x + at);
        for (int i = 0; i < N; i++) sum += a[i] * a[i];
    });
    float scale = 1.0f / sqrtf(block_sum(sum, shared) / (float)width + epsilon);
    each_of_row(n, width, [&](int place, u32 at) {
        Floats<N> a = kept.of(place, x + at), b = load(n, w + at);
        for (int i = 0; i < N; i++) a[i] = a[i] * scale * b[i];
        if (ADDED) {
            Floats<N> c = load(n, onto + at);
            for (int i = 0; i < N; i++) a[i] += c[i];
        }
        store(y + at, a);
    });
}

// With g = dy∘w and s the scale: gradient = s·g - x·s³·mean(g∘x), or under ADDED that besides what is there.
template <bool ADDED, class T, int N>
__device__ __forceinline__ void rms_norm_backward(Count<N> n, const T *x, const float *__restrict__ w, const T *dy, T *gradient, u32 width, float epsilon) {
    x += row_start(width);
    dy += row_start(width);
    gradient += row_start(width);
    __shared__ float shared_squares[32], shared_products[32];
    Kept<T, N> kept_x, kept_dy;
    kept_x.load(x, width);
    kept_dy.load(dy, width);
    float squares = 0.0f, products = 0.0f;
    each_of_row(n, width, [&](int place, u32 at) {
        Floats<N> a = kept_x.of(place, x + at), b = load(n, w + at), d = kept_dy.of(place, dy + at);
        for (int i = 0; i < N; i++) {
            squares += a[i] * a[i];
            products += a[i] * b[i] * d[i];
        }
    });
    float scale = 1.0f / sqrtf(block_sum(squares, shared_squares) / (float)width + epsilon);
    float along = scale * scale * scale * (block_sum(products, shared_products) / (float)width);
    each_of_row(n, width, [&](int place, u32 at) {
        Floats<N> a = kept_x.of(place, x + at), b = load(n, w + at), d = kept_dy.of(place, dy + at);
        for (int i = 0; i < N; i++) d[i] = d[i] * b[i] * scale - a[i] * along;
        if (ADDED) {
            Floats<N> sum = load(n, gradient + at);
            for (int i = 0; i < N; i++) d[i] += sum[i];
        }
        store(gradient + at, d);
    });
}

// A row [q, k, v], whose queries and keys are normalized over runs of numbers: heads, or all of them.
struct HeadRow {
    u32 q_width, k_width, q_run, k_run, width;

    // Runs that one warp each works at; longer ones are the block's, one after the other.
    __device__ __forceinline__ bool for_warps() const { return q_run <= 512 && k_run <= 512; }
    // For Count<8>.
    __device__ __forceinline__ u32 all_widths() const { return q_width | k_width | q_run | k_run | width; }
};

// Calls `work` for each run that is this thread's to work at, with its first number, how many there are, and their weights.
template <bool WARPS, class Work>
__device__ __forceinline__ void each_run(const HeadRow &row, const float *q_weight, const float *k_weight, Work work) {
    u32 queries = row.q_width / row.q_run, runs = queries + row.k_width / row.k_run;
    for (u32 i = WARPS ? threadIdx.x / 32 : 0; i < runs; i += WARPS ? blockDim.x / 32 : 1) {
        if (i < queries) work(i * row.q_run, row.q_run, q_weight);
        else work(row.q_width + (i - queries) * row.k_run, row.k_run, k_weight);
    }
}

// Calls `work` for each pack of a run that is this thread's, with its first number.
template <bool WARPS, int N, class Work> __device__ __forceinline__ void each_of_run(Count<N>, u32 width, Work work) {
    u32 thread = WARPS ? threadIdx.x % 32 : threadIdx.x, threads = WARPS ? 32 : blockDim.x;
    for (u32 at = N * thread; at < width; at += N * threads) work(at);
}

// The sum over those who work at a run.
template <bool WARPS> __device__ __forceinline__ float run_sum(float x, float *shared) {
    if (WARPS) return warp_sum(x);
    float sum = block_sum(x, shared);
    // The next sum takes the same memory.
    __syncthreads();
    return sum;
}

// y = x / sqrt(mean(x²) + ε) · w over each run; values are copied.
template <bool WARPS, class T, int N>
__device__ __forceinline__ void head_norm(Count<N> n, const T *x, const float *q_weight, const float *k_weight, T *y, HeadRow row, float epsilon) {
    x += row_start(row.width);
    y += row_start(row.width);
    __shared__ float shared[32];
    each_run<WARPS>(row, q_weight, k_weight, [&](u32 first, u32 width, const float *w) {
        float sum = 0.0f;
        each_of_run<WARPS>(n, width, [&](u32 at) {
            Floats<N> a = load(n, x + first + at);
            for (int i = 0; i < N; i++) sum += a[i] * a[i];
        });
        float scale = 1.0f / sqrtf(run_sum<WARPS>(sum, shared) / (float)width + epsilon);
        each_of_run<WARPS>(n, width, [&](u32 at) {
            Floats<N> a = load(n, x + first + at), b = load(n, w + at);
            for (int i = 0; i < N; i++) a[i] = a[i] * scale * b[i];
            store(y + first + at, a);
        });
    });
    u32 values = row.q_width + row.k_width;
    each_of_run<false>(n, row.width - values, [&](u32 at) {
        Pack<T, N> pack;
        pack.load(x + values + at);
        pack.store(y + values + at);
    });
}

// With g = d∘w and s the scale of a run: d = s·g - x·s³·mean(g∘x), in the place of d. That of the values stays.
template <bool WARPS, class T, int N>
__device__ __forceinline__ void head_norm_backward(Count<N> n, const T *x, const float *q_weight, const float *k_weight, T *d, HeadRow row, float epsilon) {
    x += row_start(row.width);
    d += row_start(row.width);
    __shared__ float shared[32];
    each_run<WARPS>(row, q_weight, k_weight, [&](u32 first, u32 width, const float *w) {
        float squares = 0.0f, products = 0.0f;
        each_of_run<WARPS>(n, width, [&](u32 at) {
            Floats<N> a = load(n, x + first + at), b = load(n, w + at), c = load(n, d + first + at);
            for (int i = 0; i < N; i++) {
                squares += a[i] * a[i];
                products += a[i] * b[i] * c[i];
            }
        });
        float scale = 1.0f / sqrtf(run_sum<WARPS>(squares, shared) / (float)width + epsilon);
        float along = scale * scale * scale * (run_sum<WARPS>(products, shared) / (float)width);
        each_of_run<WARPS>(n, width, [&](u32 at) {
            Floats<N> a = load(n, x + first + at), b = load(n, w + at), c = load(n, d + first + at);
            for (int i = 0; i < N; i++) c[i] = c[i] * b[i] * scale - a[i] * along;
            store(d + first + at, c);
        });
    });
}
