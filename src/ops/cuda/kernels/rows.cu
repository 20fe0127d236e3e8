// Operations on rows, in f32 and in bf16 (bf16 in memory, f32 in registers): the twins of ops/rms_norm.rs, swiglu.rs, rope.rs and
// dropout.rs, the loss of ops/linear_cross_entropy.rs, and what moves rows about.
//
// All of them wait for memory and for nothing else. Rows are on grid.x. Some kernels give a block a whole row; the others give it
// 8·blockDim.x numbers of one, by grid.y. Blocks may be smaller than stated, of whole warps: narrow rows fill them better.
// A thread takes eight numbers that follow each other where rows are aligned, else single ones.

#define ROW_THREADS 256
#define LOSS_THREADS 512

// Where the row of a block starts.
__device__ __forceinline__ u64 row_start(u32 width) { return (u64)blockIdx.x * width; }

// Calls `work` for the numbers of the block's part of a row that are this thread's, with the first of N.
template <int N, class Work> __device__ __forceinline__ void each_of_part(Count<N>, u32 width, Work work) {
    u32 first = 8 * blockIdx.y * blockDim.x + N * threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < 8 / N; i++) {
        u32 at = first + i * blockDim.x;
        if (at < width) work(at);
    }
}

// The packs of a row that a thread holds in registers between two passes; of wider rows, the others are read again.
#define KEPT 4

// Calls `work` for each pack of a whole row that is this thread's, with its place among the kept ones (KEPT beyond them) and its
// first number.
template <int N, class Work> __device__ __forceinline__ void each_of_row(Count<N>, u32 width, Work work) {
    u32 first = N * threadIdx.x, step = N * blockDim.x;
#pragma unroll
    for (int place = 0; place < KEPT; place++) {
        if (first + place * step < width) work(place, first + place * step);
    }
    for (u32 at = first + KEPT * step; at < width; at += step) work(KEPT, at);
}

template <class T, int N> struct Kept {
    Pack<T, N> packs[KEPT];
    __device__ __forceinline__ void load(const T *row, u32 width) {
        u32 first = N * threadIdx.x, step = N * blockDim.x;
#pragma unroll
        for (int place = 0; place < KEPT; place++) {
            if (first + place * step < width) packs[place].load(row + first + place * step);
        }
    }
    __device__ __forceinline__ Floats<N> of(int place, const T *p) const {
        return place < KEPT ? packs[place].floats() : ::load(Count<N>(), p);
    }
};

// y = x / sqrt(mean(x²) + ε) · w; y may be x.
template <class T, int N>
__device__ __forceinline__ void rms_norm(Count<N> n, const T *x, const float *__restrict__ w, T *y, u32 width, float epsilon) {
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
        store(y + at, a);
    });
}

// With g = dy∘w and s the scale: gradient += s·g - x·s³·mean(g∘x).
template <class T, int N>
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
        Floats<N> sum = load(n, gradient + at);
        for (int i = 0; i < N; i++) sum[i] += d[i] * b[i] * scale - a[i] * along;
        store(gradient + at, sum);
    });
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// silu(gate)∘up of rows [gate, up].
template <class T, int N> __device__ __forceinline__ void swiglu(Count<N> n, const T *gate_up, T *y, u32 width) {
    gate_up += 2 * row_start(width);
    y += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> gate = load(n, gate_up + at), up = load(n, gate_up + width + at);
        for (int i = 0; i < N; i++) gate[i] = gate[i] * sigmoid(gate[i]) * up[i];
        store(y + at, gate);
    });
}

// With s the sigmoid of the gate g: dy·up·s·(1 + g·(1 - s)) and dy·g·s, side by side. They may be written over gate and up.
template <class T, int N>
__device__ __forceinline__ void swiglu_backward(Count<N> n, const T *gate_up, const T *dy, T *d_gate_up, u32 width) {
    gate_up += 2 * row_start(width);
    d_gate_up += 2 * row_start(width);
    dy += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> gate = load(n, gate_up + at), up = load(n, gate_up + width + at), d = load(n, dy + at);
        for (int i = 0; i < N; i++) {
            float g = gate[i], s = sigmoid(g);
            gate[i] = d[i] * up[i] * s * (1.0f + g * (1.0f - s));
            up[i] = d[i] * g * s;
        }
        store(d_gate_up + at, gate);
        store(d_gate_up + width + at, up);
    });
}

// Rotates the first `heads` heads of a row in place: (x1, x2) -> (x1·cos - x2·sin, x2·cos + x1·sin) for the halves of each.
template <class T, int N>
__device__ __forceinline__ void rope(Count<N> n, T *x, const float *__restrict__ cos, const float *__restrict__ sin, u32 stride, u32 heads, u32 half, float direction) {
    x += row_start(stride);
    cos += row_start(half);
    sin += row_start(half);
    u32 packs = half / N;
    for (u32 i = threadIdx.x; i < heads * packs; i += blockDim.x) {
        u32 at = i % packs * N;
        T *head = x + i / packs * 2 * half;
        Floats<N> a = load(n, head + at), b = load(n, head + half + at), c = load(n, cos + at), s = load(n, sin + at);
        for (int j = 0; j < N; j++) {
            float x1 = a[j], x2 = b[j], turned = s[j] * direction;
            a[j] = x1 * c[j] - x2 * turned;
            b[j] = x2 * c[j] + x1 * turned;
        }
        store(head + at, a);
        store(head + half + at, b);
    }
}

// The twin of rng.rs: the mixing function of SplitMix64.
__device__ __forceinline__ u64 mix(u64 value) {
    u64 z = value + 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// out = x∘mask, or out += x∘mask, with the mask of ops/dropout.rs.
template <bool ADDED, class T, int N>
__device__ __forceinline__ void dropout(Count<N> n, const T *x, const u64 *row_keys, u64 layer_key, u64 threshold, float keep, T *out, u32 width) {
    x += row_start(width);
    out += row_start(width);
    u64 key = mix(row_keys[blockIdx.x] ^ layer_key);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, x + at);
        for (int i = 0; i < N; i++) a[i] = MUL(a[i], mix(key + at + i) < threshold ? 0.0f : keep);
        if (ADDED) {
            Floats<N> b = load(n, out + at);
            for (int i = 0; i < N; i++) a[i] = ADD(b[i], a[i]);
        }
        store(out + at, a);
    });
}

template <class T, int N> __device__ __forceinline__ void add_bias(Count<N> n, T *y, const float *bias, u32 stride, u32 width) {
    y += row_start(stride);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, y + at), b = load(n, bias + at);
        for (int i = 0; i < N; i++) a[i] += b[i];
        store(y + at, a);
    });
}

template <class T, int N> __device__ __forceinline__ void add(Count<N> n, const T *x, T *y, u32 width) {
    x += row_start(width);
    y += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, x + at), b = load(n, y + at);
        for (int i = 0; i < N; i++) b[i] += a[i];
        store(y + at, b);
    });
}

template <class T, int N> __device__ __forceinline__ void scale(Count<N> n, T *x, const float *factors, u32 width) {
    x += row_start(width);
    float factor = factors[blockIdx.x];
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, x + at);
        for (int i = 0; i < N; i++) a[i] *= factor;
        store(x + at, a);
    });
}

// One row to another place, bit for bit.
template <class T, int N> __device__ __forceinline__ void copy_row(Count<N> n, const T *x, T *out, u32 width) {
    each_of_part(n, width, [&](u32 at) {
        Pack<T, N> pack;
        pack.load(x + at);
        pack.store(out + at);
    });
}

// Eight numbers a thread, without rows.
template <class T> __device__ __forceinline__ void convert(const float *x, T *out, u64 count) {
    u64 at = 8 * thread_number();
    if (at + 8 <= count && aligned(8, x, out)) {
        store(out + at, load(Count<8>(), x + at));
    } else {
        for (int i = 0; i < 8; i++) {
            if (at + i < count) store_one(out + at + i, x[at + i]);
        }
    }
}

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

// One pass gives the largest logit and the sum of exponentials relative to the largest so far; another the gradient, which may be
// written over the logits.
template <class T, int N>
__device__ __forceinline__ void cross_entropy(Count<N> n, const float *logits, const u32 *targets, T *gradient, float *log_p, u32 *top1, u32 vocabulary) {
    u32 target = targets[blockIdx.x];
    logits += row_start(vocabulary);
    if (gradient) gradient += row_start(vocabulary);
    __shared__ float shared_maxima[32], shared_sums[32], shared_rivals[32];
    u32 first = N * threadIdx.x, step = N * blockDim.x;
    // A target outside of the vocabulary gives a NaN.
    float target_logit = target < vocabulary ? logits[target] : __uint_as_float(0x7fffffff);
    float mine = LEAST, sum = 0.0f, rival = __int_as_float(0xff800000);
#pragma unroll 4
    for (u32 at = first; at < vocabulary; at += step) {
        Floats<N> x = load(n, logits + at);
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
        for (int i = 0; i < N; i++) x[i] = expf(x[i] - max) * share - (at + i == target ? 1.0f : 0.0f);
        store(gradient + at, x);
        if (at == first) return;
    }
}

#define ROWS extern "C" __global__ void __launch_bounds__(ROW_THREADS)
#define LOSS extern "C" __global__ void __launch_bounds__(LOSS_THREADS)

// A call for eight numbers at a time, or for one.
#define EITHER(eight, function, ...)           \
    if (eight) {                               \
        function(Count<8>(), __VA_ARGS__);     \
    } else {                                   \
        function(Count<1>(), __VA_ARGS__);     \
    }

#define KERNELS(T, type)                                                                                                     \
    ROWS rms_norm_##type(const T *x, const float *w, T *y, u32 width, float epsilon) {                                        \
        EITHER(aligned(width, x, w, y), rms_norm, x, w, y, width, epsilon)                                                    \
    }                                                                                                                         \
    ROWS rms_norm_backward_##type(const T *x, const float *w, const T *dy, T *gradient, u32 width, float epsilon) {           \
        EITHER(aligned(width, x, w, dy, gradient), rms_norm_backward, x, w, dy, gradient, width, epsilon)                     \
    }                                                                                                                         \
    ROWS swiglu_##type(const T *gate_up, T *y, u32 width) { EITHER(aligned(width, gate_up, y), swiglu, gate_up, y, width) }   \
    ROWS swiglu_backward_##type(const T *gate_up, const T *dy, T *d_gate_up, u32 width) {                                     \
        EITHER(aligned(width, gate_up, dy, d_gate_up), swiglu_backward, gate_up, dy, d_gate_up, width)                        \
    }                                                                                                                         \
    ROWS rope_##type(T *x, const float *cos, const float *sin, u32 stride, u32 heads, u32 half, float direction) {            \
        EITHER(aligned(stride | half, x, cos, sin), rope, x, cos, sin, stride, heads, half, direction)                        \
    }                                                                                                                         \
    ROWS dropout_##type(const T *x, const u64 *row_keys, u64 layer_key, u64 threshold, float keep, T *out, u32 width) {       \
        EITHER(aligned(width, x, out), dropout<false>, x, row_keys, layer_key, threshold, keep, out, width)                   \
    }                                                                                                                         \
    ROWS dropout_add_##type(const T *x, const u64 *row_keys, u64 layer_key, u64 threshold, float keep, T *out, u32 width) {   \
        EITHER(aligned(width, x, out), dropout<true>, x, row_keys, layer_key, threshold, keep, out, width)                    \
    }                                                                                                                         \
    ROWS add_bias_##type(T *y, const float *bias, u32 stride, u32 width) {                                                    \
        EITHER(aligned(stride | width, y, bias), add_bias, y, bias, stride, width)                                            \
    }                                                                                                                         \
    ROWS add_##type(const T *x, T *y, u32 width) { EITHER(aligned(width, x, y), add, x, y, width) }                           \
    ROWS gather_##type(const T *x, const u32 *places, T *out, u32 width) {                                                    \
        EITHER(aligned(width, x, out), copy_row, x + (u64)places[blockIdx.x] * width, out + row_start(width), width)          \
    }                                                                                                                         \
    ROWS scatter_##type(const T *x, const u32 *places, T *out, u32 width) {                                                   \
        EITHER(aligned(width, x, out), copy_row, x + row_start(width), out + (u64)places[blockIdx.x] * width, width)          \
    }                                                                                                                         \
    ROWS scale_##type(T *x, const float *factors, u32 width) { EITHER(aligned(width, x), scale, x, factors, width) }          \
    ROWS copy_rows_##type(const T *x, T *out, u32 stride, u32 width) {                                                        \
        EITHER(aligned(stride | width, x, out), copy_row, x + row_start(stride), out + row_start(width), width)               \
    }                                                                                                                         \
    ROWS convert_##type(const float *x, T *out, u64 count) { convert(x, out, count); }                                        \
    LOSS cross_entropy_##type(const float *logits, const u32 *targets, T *gradient, float *log_p, u32 *top1, u32 vocabulary) { \
        EITHER(aligned(vocabulary, logits, gradient), cross_entropy, logits, targets, gradient, log_p, top1, vocabulary)      \
    }

KERNELS(float, f32)
KERNELS(u16, bf16)
