// The kernels of attention, behind attention_common, attention_f32 and attention_bf16.

// Blocks that a multiprocessor of the H100 is to hold of the forward pass in the widest heads: its shared memory has room for
// them, and registers must be kept free. 0: as the compiler likes.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define FORWARD_BLOCKS(THREADS) (THREADS == BF16_THREADS && PADDED > 240 ? 3 : 0)
#else
#define FORWARD_BLOCKS(THREADS) 0
#endif

// Grid: (tiles of queries, heads). `out` [tokens, heads·HEAD_DIM]; `log_sums` [tokens, heads], natural.
#define FORWARD(T, name, THREADS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS(THREADS)) attention_##name(                  \
        const T *q, const T *k, const T *v, T *out, float *log_sums, const u32 *sequences, const u32 *tiles,          \
        u32 q_stride, u32 kv_stride, u32 heads, u32 group, float scale, float unit, float power, u32 window) {        \
        Inputs<T> in = {q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale, unit, power, window};    \
        forward(in, out, log_sums);                                                                                   \
    }

// Grid: (tokens), blocks of 128.
#define DELTA(T, name, THREADS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128) attention_delta_##name(                                         \
        const T *out, const T *d_out, float *delta, u32 heads) {                                                      \
        delta_of(out, d_out, delta, heads);                                                                           \
    }

// Grid: (tiles of queries, heads).
#define BACKWARD_QUERIES(T, name, THREADS)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries_##name(                          \
        const T *q, const T *k, const T *v, const T *d_out, const float *log_sums, const float *delta, T *d_q,        \
        const u32 *sequences, const u32 *tiles, u32 q_stride, u32 kv_stride, u32 dq_stride, u32 heads, u32 group,     \
        float scale, float unit, float power, u32 window) {                                                           \
        Inputs<T> in = {q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale, unit, power, window};    \
        backward_queries(in, {d_out, log_sums, delta}, d_q, dq_stride);                                               \
    }

// Grid: (tiles of keys, heads of keys).
#define BACKWARD_KEYS(T, name, THREADS)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys_##name(                             \
        const T *q, const T *k, const T *v, const T *d_out, const float *log_sums, const float *delta, T *d_k,        \
        T *d_v, const u32 *sequences, const u32 *tiles, u32 q_stride, u32 kv_stride, u32 dkv_stride, u32 heads,       \
        u32 group, float scale, float unit, float power, u32 window) {                                                \
        Inputs<T> in = {q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale, unit, power, window};    \
        backward_keys(in, {d_out, log_sums, delta}, d_k, d_v, dkv_stride);                                            \
    }

// In both types, where there are tensor cores for bf16.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define KERNELS(kernel) kernel(float, f32, F32_THREADS) kernel(u16, bf16, BF16_THREADS)
#else
#define KERNELS(kernel) kernel(float, f32, F32_THREADS)
#endif

KERNELS(FORWARD)
KERNELS(DELTA)
KERNELS(BACKWARD_QUERIES)
KERNELS(BACKWARD_KEYS)
