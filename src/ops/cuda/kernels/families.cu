// Operations on rows that some families of models need, behind rows_common, norms, gates and loss: a program of its own, so that
// other models do not wait for it to be compiled.

// y = factor·x; y may be x.
template <class T, int N> __device__ __forceinline__ void scaled(Count<N> n, const T *x, T *y, float factor, u32 width) {
    x += row_start(width);
    y += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, x + at);
        for (int i = 0; i < N; i++) a[i] *= factor;
        store(y + at, a);
    });
}

// y = onto + factor·branch
template <class T, int N>
__device__ __forceinline__ void add_scaled(Count<N> n, const T *onto, const T *branch, T *y, float factor, u32 width) {
    onto += row_start(width);
    branch += row_start(width);
    y += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> a = load(n, onto + at), b = load(n, branch + at);
        for (int i = 0; i < N; i++) a[i] += factor * b[i];
        store(y + at, a);
    });
}

// As `rope` of rows.cu, neighbour with neighbour.
template <class T>
__device__ __forceinline__ void rope_neighbours(T *x, const float *cos, const float *sin, const float *factors, u32 stride,
                                                u32 query_heads, u32 heads, u32 head_dim, u32 half, float direction) {
    x += row_start(stride);
    cos += row_start(half);
    sin += row_start(half);
    float of_queries = factors ? factors[blockIdx.x] : 1.0f;
    for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
        u32 head = i / half, at = i % half;
        float factor = head < query_heads ? of_queries : 1.0f;
        T *from = x + head * head_dim + 2 * at;
        float x1 = to_f32(from[0]), x2 = to_f32(from[1]), c = cos[at], turned = sin[at] * direction;
        store_one(from, (x1 * c - x2 * turned) * factor);
        store_one(from + 1, (x2 * c + x1 * turned) * factor);
    }
    u32 rest = head_dim - 2 * half;
    if (!factors || rest == 0) return;
    for (u32 i = threadIdx.x; i < query_heads * rest; i += blockDim.x) {
        T *from = x + i / rest * head_dim + 2 * half + i % rest;
        store_one(from, to_f32(*from) * of_queries);
    }
}

// Caps numbers in place, eight a thread, without rows.
__device__ __forceinline__ void softcap(float *x, Cap cap, u64 count) {
    u64 at = 8 * thread_number();
    for (int i = 0; i < 8; i++) {
        if (at + i < count) x[at + i] = cap.of(x[at + i]);
    }
}

#define KERNELS(T, type)                                                                                                     \
    ROWS add_normalized_##type(const T *onto, const T *x, const float *w, T *y, u32 width, float epsilon) {                  \
        EITHER(aligned(width, onto, x, w, y), rms_norm<true>, onto, x, w, y, width, epsilon)                                 \
    }                                                                                                                        \
    ROWS branch_norm_backward_##type(const T *x, const float *w, const T *dy, T *gradient, u32 width, float epsilon) {       \
        EITHER(aligned(width, x, w, dy, gradient), rms_norm_backward<false>, x, w, dy, gradient, width, epsilon)             \
    }                                                                                                                        \
    ROWS head_norm_##type(const T *x, const float *q_weight, const float *k_weight, T *y, u32 q_width, u32 k_width,          \
                          u32 q_run, u32 k_run, u32 width, float epsilon) {                                                  \
        HeadRow row = {q_width, k_width, q_run, k_run, width};                                                               \
        bool eight = aligned(row.all_widths(), x, q_weight, k_weight, y);                                                    \
        if (row.for_warps()) {                                                                                               \
            EITHER(eight, head_norm<true>, x, q_weight, k_weight, y, row, epsilon)                                           \
        } else {                                                                                                             \
            EITHER(eight, head_norm<false>, x, q_weight, k_weight, y, row, epsilon)                                          \
        }                                                                                                                    \
    }                                                                                                                        \
    ROWS head_norm_backward_##type(const T *x, const float *q_weight, const float *k_weight, T *d, u32 q_width, u32 k_width, \
                                   u32 q_run, u32 k_run, u32 width, float epsilon) {                                         \
        HeadRow row = {q_width, k_width, q_run, k_run, width};                                                               \
        bool eight = aligned(row.all_widths(), x, q_weight, k_weight, d);                                                    \
        if (row.for_warps()) {                                                                                               \
            EITHER(eight, head_norm_backward<true>, x, q_weight, k_weight, d, row, epsilon)                                  \
        } else {                                                                                                             \
            EITHER(eight, head_norm_backward<false>, x, q_weight, k_weight, d, row, epsilon)                                 \
        }                                                                                                                    \
    }                                                                                                                        \
    ROWS rope_neighbours_##type(T *x, const float *cos, const float *sin, const float *factors, u32 stride, u32 query_heads, \
                                u32 heads, u32 head_dim, u32 half, float direction) {                                        \
        rope_neighbours(x, cos, sin, factors, stride, query_heads, heads, head_dim, half, direction);                        \
    }                                                                                                                        \
    ROWS geglu_##type(const T *gate_up, T *y, u32 width) {                                                                   \
        EITHER(aligned(width, gate_up, y), gate, GeluTanh(), gate_up, y, width)                                              \
    }                                                                                                                        \
    ROWS geglu_backward_##type(const T *gate_up, const T *dy, T *d_gate_up, u32 width) {                                     \
        EITHER(aligned(width, gate_up, dy, d_gate_up), gate_backward, GeluTanh(), gate_up, dy, d_gate_up, width)             \
    }                                                                                                                        \
    ROWS add_scaled_##type(const T *onto, const T *branch, T *y, float factor, u32 width) {                                  \
        EITHER(aligned(width, onto, branch, y), add_scaled, onto, branch, y, factor, width)                                  \
    }                                                                                                                        \
    ROWS scaled_##type(const T *x, T *y, float factor, u32 width) {                                                          \
        EITHER(aligned(width, x, y), scaled, x, y, factor, width)                                                            \
    }                                                                                                                        \
    LOSS cross_entropy_capped_##type(const float *logits, const u32 *targets, T *gradient, float *log_p, u32 *top1,          \
                                     u32 vocabulary, float cap) {                                                            \
        EITHER(aligned(vocabulary, logits, gradient), cross_entropy, Cap(cap), logits, targets, gradient, log_p, top1,       \
               vocabulary)                                                                                                   \
    }                                                                                                                        \
    ROWS softcap_##type(float *x, float cap, u64 count) { softcap(x, Cap(cap), count);                                       \
    }

KERNELS(float, f32)
KERNELS(u16, bf16)
