// Operations on rows that every model needs, behind rows_common, norms, gates and loss: those, the twins of ops/rope.rs and
// dropout.rs, and what moves rows about.

// Rotates the first 2·half numbers of the first `heads` heads of a row in place: (x1, x2) -> (x1·cos - x2·sin, x2·cos + x1·sin)
// for the halves of these. The first `query_heads` heads, all of their numbers, are multiplied by the row's factor, if there
// are any.
template <class T, int N>
__device__ __forceinline__ void rope(Count<N> n, T *x, const float *__restrict__ cos, const float *__restrict__ sin, const float *factors, u32 stride, u32 query_heads, u32 heads, u32 head_dim, u32 half, float direction) {
    x += row_start(stride);
    cos += row_start(half);
    sin += row_start(half);
    float of_queries = factors ? factors[blockIdx.x] : 1.0f;
    u32 packs = half / N;
    for (u32 i = threadIdx.x; i < heads * packs; i += blockDim.x) {
        u32 head = i / packs, at = i % packs * N;
        float factor = head < query_heads ? of_queries : 1.0f;
        T *from = x + head * head_dim;
        Floats<N> a = load(n, from + at), b = load(n, from + half + at), c = load(n, cos + at), s = load(n, sin + at);
        for (int j = 0; j < N; j++) {
            float x1 = a[j], x2 = b[j], turned = s[j] * direction;
            a[j] = (x1 * c[j] - x2 * turned) * factor;
            b[j] = (x2 * c[j] + x1 * turned) * factor;
        }
        store(from + at, a);
        store(from + half + at, b);
    }
    packs = (head_dim - 2 * half) / N;
    if (!factors || packs == 0) return;
    for (u32 i = threadIdx.x; i < query_heads * packs; i += blockDim.x) {
        T *from = x + i / packs * head_dim + 2 * half + i % packs * N;
        Floats<N> a = load(n, from);
        for (int j = 0; j < N; j++) a[j] *= of_queries;
        store(from, a);
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

#define KERNELS(T, type)                                                                                                       \
    ROWS rms_norm_##type(const T *x, const float *w, T *y, u32 width, float epsilon) {                                         \
        EITHER(aligned(width, x, w, y), rms_norm<false>, x, x, w, y, width, epsilon)                                           \
    }                                                                                                                          \
    ROWS rms_norm_backward_##type(const T *x, const float *w, const T *dy, T *gradient, u32 width, float epsilon) {            \
        EITHER(aligned(width, x, w, dy, gradient), rms_norm_backward<true>, x, w, dy, gradient, width, epsilon)                \
    }                                                                                                                          \
    ROWS swiglu_##type(const T *gate_up, T *y, u32 width) {                                                                    \
        EITHER(aligned(width, gate_up, y), gate, Silu(), gate_up, y, width)                                                    \
    }                                                                                                                          \
    ROWS swiglu_backward_##type(const T *gate_up, const T *dy, T *d_gate_up, u32 width) {                                      \
        EITHER(aligned(width, gate_up, dy, d_gate_up), gate_backward, Silu(), gate_up, dy, d_gate_up, width)                   \
    }                                                                                                                          \
    ROWS rope_##type(T *x, const float *cos, const float *sin, const float *factors, u32 stride, u32 query_heads, u32 heads,   \
                     u32 head_dim, u32 half, float direction) {                                                                \
        EITHER(aligned(stride | head_dim | half, x, cos, sin), rope, x, cos, sin, factors, stride, query_heads, heads,         \
               head_dim, half, direction)                                                                                      \
    }                                                                                                                          \
    ROWS dropout_##type(const T *x, const u64 *row_keys, u64 layer_key, u64 threshold, float keep, T *out, u32 width) {        \
        EITHER(aligned(width, x, out), dropout<false>, x, row_keys, layer_key, threshold, keep, out, width)                    \
    }                                                                                                                          \
    ROWS dropout_add_##type(const T *x, const u64 *row_keys, u64 layer_key, u64 threshold, float keep, T *out, u32 width) {    \
        EITHER(aligned(width, x, out), dropout<true>, x, row_keys, layer_key, threshold, keep, out, width)                     \
    }                                                                                                                          \
    ROWS add_bias_##type(T *y, const float *bias, u32 stride, u32 width) {                                                     \
        EITHER(aligned(stride | width, y, bias), add_bias, y, bias, stride, width)                                             \
    }                                                                                                                          \
    ROWS add_##type(const T *x, T *y, u32 width) { EITHER(aligned(width, x, y), add, x, y, width) }                            \
    ROWS gather_##type(const T *x, const u32 *places, T *out, u32 width) {                                                     \
        EITHER(aligned(width, x, out), copy_row, x + (u64)places[blockIdx.x] * width, out + row_start(width), width)           \
    }                                                                                                                          \
    ROWS scatter_##type(const T *x, const u32 *places, T *out, u32 width) {                                                    \
        EITHER(aligned(width, x, out), copy_row, x + row_start(width), out + (u64)places[blockIdx.x] * width, width)           \
    }                                                                                                                          \
    ROWS scale_##type(T *x, const float *factors, u32 width) { EITHER(aligned(width, x), scale, x, factors, width) }           \
    ROWS copy_rows_##type(const T *x, T *out, u32 stride, u32 width) {                                                         \
        EITHER(aligned(stride | width, x, out), copy_row, x + row_start(stride), out + row_start(width), width)                \
    }                                                                                                                          \
    ROWS convert_##type(const float *x, T *out, u64 count) { convert(x, out, count); }                                         \
    LOSS cross_entropy_##type(const float *logits, const u32 *targets, T *gradient, float *log_p, u32 *top1, u32 vocabulary) { \
        EITHER(aligned(vocabulary, logits, gradient), cross_entropy, NoCap(), logits, targets, gradient, log_p, top1,          \
               vocabulary)                                                                                                     \
    }

KERNELS(float, f32)
KERNELS(u16, bf16)
