// Causal attention with grouped queries, forward and backward: the twin of ops/attention, and never a [t, t] matrix.
//
// `HEAD_DIM` (even, at most 256) and `PLAIN` are defined before this file, which is compiled once for each pair of them. A block
// owns some rows of one head (queries; keys in the backward pass for keys) and streams tiles of the others through shared memory.
// Scores are kept by powers of two: exp(scale·s) = exp2(s·scale·log2 e). A query may see the last keys alone, a window: tiles that
// no query of a block sees are left out. Scores may be capped. Sources: arXiv 2205.14135 (online softmax), 2307.08691 (order of the
// products, the split of the backward pass by owned rows), 2408.00118 (the cap).

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif

// Whether there is no cap and no window, whatever the arguments say: a program of its own, in which nothing asks for them. Even
// where no branch is taken, asking slows the kernels down.
#ifndef PLAIN
#define PLAIN 0
#endif

// What the launches must know (ops/cuda has the same): threads, rows that a block owns, bytes of dynamic shared memory.
constexpr u32 PADDED = (HEAD_DIM + 15) / 16 * 16;

// f32: 16 by 16 threads; rows that a block owns, and that are streamed at a time.
constexpr u32 F32_THREADS = 256;
constexpr u32 F32_ROWS = PADDED <= 128 ? 32 : 16;
constexpr u32 F32_STREAMED = PADDED <= 96 ? 32 : 16;
constexpr u32 F32_ROW_BYTES = 4 * (PADDED + 4);
constexpr u32 F32_WEIGHT_BYTES = 4 * F32_ROWS * (F32_STREAMED + 4);
constexpr u32 F32_FORWARD_BYTES = F32_ROW_BYTES * (F32_ROWS + 2 * F32_STREAMED) + F32_WEIGHT_BYTES;
constexpr u32 F32_BACKWARD_BYTES = F32_ROW_BYTES * (2 * F32_ROWS + 2 * F32_STREAMED) + 2 * F32_WEIGHT_BYTES;

// bf16: four warps, each with one or two tiles of 16 rows, which stay in registers if there is room (`KEPT`).
constexpr bool KEPT = PADDED <= 128;
constexpr u32 BF16_THREADS = 128;
constexpr u32 FORWARD_TILES = PADDED <= 64 ? 2 : 1;
constexpr u32 QUERY_TILES = PADDED <= 64 ? 2 : 1;
constexpr u32 KEY_TILES = 1;
constexpr u32 FORWARD_ROWS = 64 * FORWARD_TILES;
constexpr u32 QUERY_ROWS = 64 * QUERY_TILES;
constexpr u32 KEY_ROWS = 64 * KEY_TILES;
// Rows that are streamed at a time.
constexpr u32 FORWARD_KEYS = PADDED <= 128 ? 64 : 32;
constexpr u32 STREAMED = PADDED <= 64 ? 64 : PADDED <= 128 ? 32 : 16;

// Macros, as NVRTC takes no functions of the host. What is kept in registers passes through the memory that is streamed into
// later.
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define BACKWARD_LINES(owned) (KEPT ? LARGER(2 * owned, 4 * STREAMED) : 2 * owned + 4 * STREAMED)
constexpr u32 BF16_ROW_BYTES = 2 * (PADDED + 8);
constexpr u32 BF16_FORWARD_BYTES =
    BF16_ROW_BYTES * (KEPT ? FORWARD_KEYS + LARGER(FORWARD_KEYS, FORWARD_ROWS) : 2 * FORWARD_KEYS + FORWARD_ROWS);
constexpr u32 BF16_QUERIES_BYTES = BF16_ROW_BYTES * BACKWARD_LINES(QUERY_ROWS);
constexpr u32 BF16_KEYS_BYTES = BF16_ROW_BYTES * BACKWARD_LINES(KEY_ROWS);
// As much as a block can have: on every GPU with tensor cores for bf16, and on all from 7.5 on (the widest heads excepted).
static_assert(LARGER(BF16_FORWARD_BYTES, LARGER(BF16_QUERIES_BYTES, BF16_KEYS_BYTES)) <= 99 << 10, "shared memory");
static_assert(LARGER(F32_FORWARD_BYTES, F32_BACKWARD_BYTES) <= (PADDED <= 240 ? 64 << 10 : 99 << 10), "shared memory");

#define LOG2_E 1.4426950408889634f
#define MINUS_INFINITY __uint_as_float(0xff800000)
// The largest score before there is one: below all, and finite, for a row may see nothing of the tiles that it meets first.
#define LEAST -1e30f
#define INFINITE __uint_as_float(0x7f800000)
#define ALL_LANES 0xffffffffu
#ifdef __CUDA_ARCH__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#else
#define UNROLL
#define NO_UNROLL
#endif
// For each index of an array that may lie in registers.
#define EACH(i, count) UNROLL for (u32 i = 0; i < (count); i++)

// 2^x to about 2^-22 of it, and zero for what would be subnormal.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// Rows of the queries, and rows of the keys and values, of tokens that attend to each other. A query sees the last `window` of
// the keys that are not behind it; 2^31, which is more than all, where there is no window.
struct Sequence {
    u32 query_start, query_count, key_start, key_count, window;

    __device__ __forceinline__ Sequence(const u32 *sequences, u32 index, u32 window)
        : query_start(sequences[4 * index]), query_count(sequences[4 * index + 1]),
          key_start(sequences[4 * index + 2]), key_count(sequences[4 * index + 3]), window(window) {}

    // Query i sees no key from this one on. Of a query that is not there, it is behind all keys.
    __device__ __forceinline__ u32 seen(u32 i) const { return key_count - query_count + i + 1; }

    // The first key that query i sees.
    __device__ __forceinline__ u32 first_seen(u32 i) const {
        if (PLAIN) return 0;
        u32 end = seen(i);
        return end > window ? end - window : 0;
    }

    // Whether query i does not see a key. A key behind it is a very large distance before it.
    __device__ __forceinline__ bool hides(u32 i, u32 key) const {
        return PLAIN ? key >= seen(i) : seen(i) - 1 - key >= window;
    }

    // Whether each of some queries sees each of some keys.
    __device__ __forceinline__ bool all_see(u32 query, u32 queries, u32 key, u32 keys) const {
        return key + keys <= seen(query) && (PLAIN || key >= first_seen(query + queries - 1));
    }

    // Whether some of these queries may see some of these keys.
    __device__ __forceinline__ bool some_see(u32 query, u32 queries, u32 key, u32 keys) const {
        return key < seen(query + queries - 1) && (PLAIN || key + keys > first_seen(query));
    }

    // The end of the keys that some of `rows` queries see.
    __device__ __forceinline__ u32 seen_by_tile(u32 first, u32 rows) const {
        u32 last = first + rows < query_count ? first + rows : query_count;
        return seen(last - 1);
    }

    // The first query that sees a key.
    __device__ __forceinline__ u32 first_query(u32 key) const {
        u32 before = key_count - query_count;
        return key > before ? key - before : 0;
    }

    // The end of the queries that see a key, which may be none that is there.
    __device__ __forceinline__ u32 end_of_queries(u32 key) const {
        if (PLAIN) return query_count;
        u32 before = key_count - query_count, end = key + window;
        if (end <= before) return 0;
        return end - before < query_count ? end - before : query_count;
    }
};

// The rows of one head of a sequence.
template <class T> struct Rows {
    const T *data;
    u32 stride, count;
    bool aligned;

    __device__ __forceinline__ Rows(const T *all, u32 start, u32 count, u32 stride, u32 head)
        : data(all + (u64)start * stride + (u64)head * HEAD_DIM), stride(stride), count(count) {
        constexpr u32 CHUNK = 16 / sizeof(T);
        aligned = HEAD_DIM % CHUNK == 0 && stride % CHUNK == 0 && (u64)data % 16 == 0;
    }
};

// Tiles lie in shared memory with 16 bytes behind each row: a row is then an odd number of 16 bytes, and eight that follow each
// other have their columns in different banks.
template <class T> constexpr u32 LINE = PADDED + 16 / sizeof(T);

#ifdef __CUDA_ARCH__
__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
#endif

// 16 bytes to shared memory, or zeros; they are there after `await_copies` and a barrier.
__device__ __forceinline__ void copy_16(void *to, const void *from, bool there) {
#if !defined(__CUDA_ARCH__)
    host::copy_async(to, from, there ? 16 : 0);
#elif __CUDA_ARCH__ >= 800
    u32 used = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(used) : "memory");
#else
    *(uint4 *)to = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
#endif
}

// The same of 4 bytes, which must be there.
__device__ __forceinline__ void copy_4(void *to, const void *from) {
#if !defined(__CUDA_ARCH__)
    host::copy_async(to, from, 4, 4);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
    *(u32 *)to = *(const u32 *)from;
#endif
}

// No copy is under way after it.
__device__ __forceinline__ void await_copies() {
#if !defined(__CUDA_ARCH__)
    host::close_copies();
    host::await_copies(0);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Starts to copy COUNT rows; what lies behind the last of them, or behind the head, becomes zero. Eight threads for a row read
// 128 bytes at a time.
template <u32 COUNT, u32 THREADS, class T>
__device__ __forceinline__ void fetch(T *to, const Rows<T> &rows, u32 first) {
    constexpr u32 CHUNK = 16 / sizeof(T), AT_A_TIME = THREADS / 8;
    if (rows.aligned) {
        u32 row = threadIdx.x / 8, column = threadIdx.x % 8 * CHUNK;
        const T *from = rows.data + (u64)(first + row) * rows.stride + column;
        to += row * LINE<T> + column;
        EACH(i, (COUNT + AT_A_TIME - 1) / AT_A_TIME) {
            if (COUNT % AT_A_TIME != 0 && row + i * AT_A_TIME >= COUNT) break;
            bool there = first + row + i * AT_A_TIME < rows.count;
            EACH(j, (PADDED + 8 * CHUNK - 1) / (8 * CHUNK)) {
                u32 behind = 8 * CHUNK * j;
                if (column + behind >= PADDED) continue;
                copy_16(to + i * AT_A_TIME * LINE<T> + behind, from + behind, there && column + behind < HEAD_DIM);
            }
            from += (u64)AT_A_TIME * rows.stride;
        }
    } else {
        NO_UNROLL
        for (u32 i = threadIdx.x; i < COUNT * PADDED; i += THREADS) {
            u32 row = i / PADDED, column = i % PADDED;
            bool there = first + row < rows.count && column < HEAD_DIM;
            to[row * LINE<T> + column] = there ? rows.data[(u64)(first + row) * rows.stride + column] : (T)0;
        }
    }
}

// Tensors of a launch, as its kernel gets them.
template <class T> struct Inputs {
    const T *q, *k, *v;
    const u32 *sequences, *tiles;
    u32 q_stride, kv_stride, heads, group;
    // `unit`: what a score is multiplied with for the softmax. Where scores are capped, c·tanh(scale·s/c) of a product s, it is c,
    // and the tanh is kept as the score; `power` is then 2·log2 e·scale/c, else 0.
    float scale, unit, power;
    u32 window;

    __device__ __forceinline__ Sequence sequence() const { return Sequence(sequences, tiles[2 * blockIdx.x], window); }
    __device__ __forceinline__ bool capped() const { return !PLAIN && power != 0.0f; }
};

// tanh(x) of 2·log2 e·x, to about 2^-22: the GPU's own has 11 bits.
__device__ __forceinline__ float tanh_of_power(float power) {
    float sum = 1.0f + power_of_two(power);
#ifdef __CUDA_ARCH__
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(sum));
#else
    float inverse = 1.0f / sum;
#endif
    return 1.0f - 2.0f * inverse;
}

template <class T> struct Pulled {
    const T *d_out;
    const float *log_sums, *delta;
};

// ---- delta: the sums of out∘d_out over a head, a warp for each head of a token

__device__ __forceinline__ float2 pair_at(const float *p) { return make_float2(p[0], p[1]); }
__device__ __forceinline__ float2 pair_at(const u16 *p) {
    u32 both = *(const u32 *)p;
    return make_float2(bf16_to_f32(both & 0xffff), bf16_to_f32(both >> 16));
}

template <class T> __device__ __forceinline__ void delta_of(const T *out, const T *d_out, float *delta, u32 heads) {
    u32 lane = threadIdx.x % 32;
    for (u32 head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        u64 place = (u64)blockIdx.x * heads + head;
        float sum = 0.0f;
        for (u32 i = 2 * lane; i < HEAD_DIM; i += 64) {
            float2 a = pair_at(out + place * HEAD_DIM + i), b = pair_at(d_out + place * HEAD_DIM + i);
            sum += a.x * b.x + a.y * b.y;
        }
        for (u32 with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, with);
        if (lane == 0) delta[place] = sum;
    }
}
