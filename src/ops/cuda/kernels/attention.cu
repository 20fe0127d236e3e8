// Causal attention with grouped queries, forward and backward: the twin of ops/attention, and never a [t, t] matrix.
//
// `HEAD_DIM` (even, at most 256) is defined before this file, which is compiled once for each head size. A block owns some rows
// of one head (queries; keys in the backward pass for keys) and streams tiles of the others through shared memory. Scores are
// kept by powers of two: exp(scale·s) = exp2(s·scale·log2 e). Sources: arXiv 2205.14135 (online softmax), 2307.08691 (order of
// the products, the split of the backward pass by owned rows).

#ifndef HEAD_DIM
#define HEAD_DIM 64
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

// Rows of the queries, and rows of the keys and values, of tokens that attend to each other.
struct Sequence {
    u32 query_start, query_count, key_start, key_count;

    __device__ __forceinline__ Sequence(const u32 *sequences, u32 index)
        : query_start(sequences[4 * index]), query_count(sequences[4 * index + 1]),
          key_start(sequences[4 * index + 2]), key_count(sequences[4 * index + 3]) {}

    // Query i sees the keys before this one. Of a query that is not there, it is behind all keys.
    __device__ __forceinline__ u32 seen(u32 i) const { return key_count - query_count + i + 1; }

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
    float scale;
};

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

// ---- f32: thread (x, y) of 16 by 16 has the rows y, y + 16, ... and the columns x, x + 16, ...

constexpr u32 DOWN = F32_ROWS / 16, ACROSS = F32_STREAMED / 16;
constexpr u32 F32_LINE = LINE<float>, F32_OWNED = F32_ROWS * F32_LINE, F32_TILE = F32_STREAMED * F32_LINE;
constexpr u32 WEIGHT_LINE = F32_STREAMED + 4;
typedef float Scores[DOWN][ACROSS];
typedef float Sums[DOWN][PADDED / 16];

__device__ __forceinline__ u32 thread_x() { return threadIdx.x % 16; }
__device__ __forceinline__ u32 thread_y() { return threadIdx.x / 16; }
__device__ __forceinline__ float4 four_at(const float *p) { return *(const float4 *)p; }

__device__ __forceinline__ void fetch_owned(float *to, const Rows<float> &rows, u32 first) {
    fetch<F32_ROWS, F32_THREADS>(to, rows, first);
}
__device__ __forceinline__ void fetch_streamed(float *to, const Rows<float> &rows, u32 first) {
    fetch<F32_STREAMED, F32_THREADS>(to, rows, first);
}

// The products of rows with rows.
__device__ __forceinline__ void dot_rows(Scores &scores, const float *left, const float *right) {
    left += thread_y() * F32_LINE;
    right += thread_x() * F32_LINE;
    EACH(i, DOWN) EACH(j, ACROSS) scores[i][j] = 0.0f;
    for (u32 column = 0; column < PADDED; column += 4) {
        float4 b[ACROSS];
        EACH(j, ACROSS) b[j] = four_at(right + 16 * j * F32_LINE + column);
        EACH(i, DOWN) {
            float4 a = four_at(left + 16 * i * F32_LINE + column);
            EACH(j, ACROSS) scores[i][j] += a.x * b[j].x + a.y * b[j].y + a.z * b[j].z + a.w * b[j].w;
        }
    }
}

// sums += weights·rows. A row of weights is written and read by the same sixteen threads; between two calls with the same
// memory the block has a barrier.
__device__ __forceinline__ void add_rows(Sums &sums, const Scores &scores, float *weights, const float *rows) {
    weights += thread_y() * WEIGHT_LINE;
    rows += thread_x();
    EACH(i, DOWN) EACH(j, ACROSS) weights[16 * i * WEIGHT_LINE + thread_x() + 16 * j] = scores[i][j];
    __syncwarp();
    for (u32 c = 0; c < F32_STREAMED; c += 4) {
        float4 weight[DOWN];
        EACH(i, DOWN) weight[i] = four_at(weights + 16 * i * WEIGHT_LINE + c);
        EACH(j, PADDED / 16) {
            const float *column = rows + c * F32_LINE + 16 * j;
            float4 x = make_float4(column[0], column[F32_LINE], column[2 * F32_LINE], column[3 * F32_LINE]);
            EACH(i, DOWN) sums[i][j] += weight[i].x * x.x + weight[i].y * x.y + weight[i].z * x.z + weight[i].w * x.w;
        }
    }
}

__device__ __forceinline__ void clear(Sums &sums) { EACH(i, DOWN) EACH(j, PADDED / 16) sums[i][j] = 0.0f; }

// Row y + 16·i of a tile, times a factor; `row` is where its head begins.
__device__ __forceinline__ void store_row(float *row, const float (&sums)[PADDED / 16], float factor) {
    EACH(j, PADDED / 16) {
        u32 column = thread_x() + 16 * j;
        if (column < HEAD_DIM) row[column] = sums[j] * factor;
    }
}

// One row of scores, a part of it in each of sixteen threads: becomes probabilities relative to the largest so far. Gives what
// earlier sums must be multiplied with.
__device__ __forceinline__ float soften(float (&scores)[ACROSS], float factor, float &largest, float &sum) {
    float before = largest;
    EACH(j, ACROSS) largest = fmaxf(largest, scores[j]);
    for (u32 with = 8; with > 0; with /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, with));
    float smaller = power_of_two((before - largest) * factor);
    sum *= smaller;
    EACH(j, ACROSS) {
        scores[j] = power_of_two((scores[j] - largest) * factor);
        sum += scores[j];
    }
    return smaller;
}

__device__ __forceinline__ void forward(const Inputs<float> &in, float *out, float *log_sums) {
    extern __shared__ uint4 dynamic_shared[];
    float *queries = (float *)dynamic_shared, *keys = queries + F32_OWNED, *values = keys + F32_TILE;
    float *weights = values + F32_TILE;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    float factor = in.scale * LOG2_E, largest[DOWN], sum[DOWN];
    Sums sums;
    clear(sums);
    EACH(i, DOWN) {
        largest[i] = MINUS_INFINITY;
        sum[i] = 0.0f;
    }
    fetch_owned(queries, q, first);
    u32 end = sequence.seen_by_tile(first, F32_ROWS);
    for (u32 start = 0; start < end; start += F32_STREAMED) {
        fetch_streamed(keys, k, start);
        fetch_streamed(values, v, start);
        await_copies();
        __syncthreads();
        Scores scores;
        dot_rows(scores, queries, keys);
        EACH(i, DOWN) {
            u32 seen = sequence.seen(first + thread_y() + 16 * i);
            EACH(j, ACROSS) {
                if (start + thread_x() + 16 * j >= seen) scores[i][j] = MINUS_INFINITY;
            }
            float smaller = soften(scores[i], factor, largest[i], sum[i]);
            EACH(j, PADDED / 16) sums[i][j] *= smaller;
        }
        add_rows(sums, scores, weights, values);
        __syncthreads();
    }
    EACH(i, DOWN) {
        u32 query = first + thread_y() + 16 * i;
        float whole = sum[i];
        for (u32 with = 8; with > 0; with /= 2) whole += __shfl_xor_sync(ALL_LANES, whole, with);
        if (query >= sequence.query_count) continue;
        u64 place = (u64)(sequence.query_start + query) * in.heads + head;
        store_row(out + place * HEAD_DIM, sums[i], 1.0f / whole);
        if (thread_x() == 0) log_sums[place] = in.scale * largest[i] + logf(whole);
    }
}

// A query of the backward pass. One that is not there has no probabilities.
struct Query {
    float log2_sum, delta;

    __device__ __forceinline__ Query() {}

    template <class T>
    __device__ __forceinline__
    Query(const Inputs<T> &in, const Pulled<T> &pulled, const Sequence &sequence, u32 query, u32 head) {
        bool there = query < sequence.query_count;
        u64 place = (u64)(sequence.query_start + query) * in.heads + head;
        log2_sum = there ? pulled.log_sums[place] * LOG2_E : INFINITE;
        delta = there ? pulled.delta[place] : 0.0f;
    }

    // From a score to its probability (of minus infinity, what is not seen: zero), and from the probability's gradient to the
    // score's.
    __device__ __forceinline__ void pull(float &score, float &gradient, float factor) const {
        score = power_of_two(score * factor - log2_sum);
        gradient = score * (gradient - delta);
    }
};

__device__ __forceinline__ void
backward_queries(const Inputs<float> &in, const Pulled<float> &pulled, float *d_q, u32 dq_stride) {
    extern __shared__ uint4 dynamic_shared[];
    float *queries = (float *)dynamic_shared, *gradients = queries + F32_OWNED;
    float *keys = gradients + F32_OWNED, *values = keys + F32_TILE, *weights = values + F32_TILE;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<float> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Query rows[DOWN];
    EACH(i, DOWN) rows[i] = Query(in, pulled, sequence, first + thread_y() + 16 * i, head);
    Sums sums;
    clear(sums);
    fetch_owned(queries, q, first);
    fetch_owned(gradients, d_out, first);
    u32 end = sequence.seen_by_tile(first, F32_ROWS);
    for (u32 start = 0; start < end; start += F32_STREAMED) {
        fetch_streamed(keys, k, start);
        fetch_streamed(values, v, start);
        await_copies();
        __syncthreads();
        Scores scores, d_scores;
        dot_rows(scores, queries, keys);
        dot_rows(d_scores, gradients, values);
        EACH(i, DOWN) EACH(j, ACROSS) {
            if (start + thread_x() + 16 * j >= sequence.seen(first + thread_y() + 16 * i)) scores[i][j] = MINUS_INFINITY;
            rows[i].pull(scores[i][j], d_scores[i][j], in.scale * LOG2_E);
        }
        add_rows(sums, d_scores, weights, keys);
        __syncthreads();
    }
    EACH(i, DOWN) {
        u32 query = first + thread_y() + 16 * i;
        if (query >= sequence.query_count) continue;
        store_row(d_q + (u64)(sequence.query_start + query) * dq_stride + head * HEAD_DIM, sums[i], in.scale);
    }
}

// Rows are keys here, and columns queries: nothing needs to be transposed.
__device__ __forceinline__ void
backward_keys(const Inputs<float> &in, const Pulled<float> &pulled, float *d_k, float *d_v, u32 dkv_stride) {
    extern __shared__ uint4 dynamic_shared[];
    float *keys = (float *)dynamic_shared, *values = keys + F32_OWNED, *queries = values + F32_OWNED;
    float *gradients = queries + F32_TILE, *weights = gradients + F32_TILE, *d_weights = weights + F32_WEIGHT_BYTES / 4;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], kv_head = blockIdx.y;
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    Sums key_sums, value_sums;
    clear(key_sums);
    clear(value_sums);
    fetch_owned(keys, k, first);
    fetch_owned(values, v, first);
    for (u32 head = kv_head * in.group; head < (kv_head + 1) * in.group; head++) {
        Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
        Rows<float> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
        for (u32 start = sequence.first_query(first); start < sequence.query_count; start += F32_STREAMED) {
            fetch_streamed(queries, q, start);
            fetch_streamed(gradients, d_out, start);
            await_copies();
            __syncthreads();
            Scores scores, d_scores;
            dot_rows(scores, keys, queries);
            dot_rows(d_scores, values, gradients);
            EACH(j, ACROSS) {
                u32 query = start + thread_x() + 16 * j;
                Query column(in, pulled, sequence, query, head);
                EACH(i, DOWN) {
                    if (first + thread_y() + 16 * i >= sequence.seen(query)) scores[i][j] = MINUS_INFINITY;
                    column.pull(scores[i][j], d_scores[i][j], in.scale * LOG2_E);
                }
            }
            add_rows(value_sums, scores, weights, gradients);
            add_rows(key_sums, d_scores, d_weights, queries);
            __syncthreads();
        }
    }
    // Where no query saw them, their own copies may still be under way.
    await_copies();
    EACH(i, DOWN) {
        u32 key = first + thread_y() + 16 * i;
        if (key >= sequence.key_count) continue;
        u64 place = (u64)(sequence.key_start + key) * dkv_stride + kv_head * HEAD_DIM;
        store_row(d_k + place, key_sums[i], in.scale);
        store_row(d_v + place, value_sums[i], 1.0f);
    }
}

// ---- bf16, on tensor cores. A warp has 16 rows of each of its tiles, and tiles of 16 by 8 sums: lane 4·g + t holds of these
// (0, 1) row g and (2, 3) row g + 8, columns 2·t and 2·t + 1. Left factors (16 by 16): words 0..3 hold rows g, g + 8, g, g + 8,
// columns 2·t and 2·t + 1 (words 2, 3: 8 more). Right ones (16 by 8): words 0, 1 hold column g, rows 2·t and 2·t + 1 (word 1: 8
// more). So two tiles of sums side by side, rounded, are a left factor. PTX ISA, "Matrix Fragments for mma.m16n8k16".
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

typedef float Tile[4];
typedef u32 Left[4];
constexpr u32 BF16_LINE = LINE<u16>;

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }
// Of a lane's sums: the row of i, and the column.
__device__ __forceinline__ u32 row_of(u32 i) { return lane() / 4 + i / 2 * 8; }
__device__ __forceinline__ u32 column_of(u32 i) { return lane() % 4 * 2 + i % 2; }

// sums += left·right
__device__ __forceinline__ void multiply(Tile &sums, const Left &left, const u32 *right) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
    host::mma_m16n8k16_bf16(sums, left, right);
#endif
}

// Four 8 by 8 matrices; lanes 8·i to 8·i + 7 name the rows of matrix i, of which each lane gets row lane/4, columns 2·(lane%4)
// and the next. PTX ISA, "Warp-level matrix load instruction: ldmatrix".
__device__ __forceinline__ void load_matrices(u32 (&words)[4], const u16 *row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row)));
#else
    host::ldmatrix_x4<false>(words, row);
#endif
}

// The same of the matrices' transposes.
__device__ __forceinline__ void load_transposed(u32 (&words)[4], const u16 *row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row)));
#else
    host::ldmatrix_x4<true>(words, row);
#endif
}

// The row that a lane names of 16 by 16 numbers, whose quarters come in the order (upper left, lower left, upper right, lower
// right), or with the middle two exchanged.
__device__ __forceinline__ u32 down_first() { return lane() % 16 * BF16_LINE + lane() / 16 * 8; }
__device__ __forceinline__ u32 right_first() { return (lane() % 8 + lane() / 16 * 8) * BF16_LINE + lane() / 8 % 2 * 8; }

// The left factors of a warp, 16 columns each step: in registers, or read again each time.
template <bool IN_REGISTERS, u32 TILES> struct LeftRows {
    u32 words[TILES][PADDED / 16][4];
    __device__ __forceinline__ void load(const u16 *rows) {
        rows += down_first();
        EACH(m, TILES) EACH(step, PADDED / 16) load_matrices(words[m][step], rows + 16 * m * BF16_LINE + 16 * step);
    }
    __device__ __forceinline__ void get(Left &left, u32 m, u32 step) const { EACH(i, 4) left[i] = words[m][step][i]; }
};

template <u32 TILES> struct LeftRows<false, TILES> {
    const u16 *rows;
    __device__ __forceinline__ void load(const u16 *from) { rows = from + down_first(); }
    __device__ __forceinline__ void get(Left &left, u32 m, u32 step) const {
        load_matrices(left, rows + 16 * m * BF16_LINE + 16 * step);
    }
};

// The products of rows with COLUMNS rows, which lie in shared memory.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
dot_rows(Tile (&scores)[TILES][COLUMNS / 8], const LeftRows<KEPT, TILES> &left, const u16 *rows) {
    rows += right_first();
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) scores[m][n][i] = 0.0f;
    EACH(step, PADDED / 16) {
        Left a[TILES];
        EACH(m, TILES) left.get(a[m], m, step);
        EACH(n, COLUMNS / 16) {
            u32 b[4];
            load_matrices(b, rows + 16 * n * BF16_LINE + 16 * step);
            EACH(m, TILES) {
                multiply(scores[m][2 * n], a[m], b);
                multiply(scores[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// sums += scores·rows, for as many rows as there are columns of scores.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
add_rows(Tile (&sums)[TILES][PADDED / 8], const Tile (&scores)[TILES][COLUMNS / 8], const u16 *rows) {
    rows += down_first();
    EACH(c, COLUMNS / 16) {
        Left a[TILES];
        EACH(m, TILES) EACH(i, 4) {
            const Tile &tile = scores[m][2 * c + i / 2];
            a[m][i] = two_bf16(tile[i % 2 * 2], tile[i % 2 * 2 + 1]);
        }
        EACH(n, PADDED / 16) {
            u32 b[4];
            load_transposed(b, rows + 16 * c * BF16_LINE + 16 * n);
            EACH(m, TILES) {
                multiply(sums[m][2 * n], a[m], b);
                multiply(sums[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

template <u32 TILES> __device__ __forceinline__ void clear(Tile (&sums)[TILES][PADDED / 8]) {
    EACH(m, TILES) EACH(n, PADDED / 8) EACH(i, 4) sums[m][n][i] = 0.0f;
}

// Row g (`half` 0) or g + 8 of a tile, times a factor; `row` is where its head begins.
__device__ __forceinline__ void store_row(u16 *row, const Tile (&sums)[PADDED / 8], u32 half, float factor) {
    EACH(n, PADDED / 8) {
        u32 column = 8 * n + column_of(0);
        if (column < HEAD_DIM) *(u32 *)(row + column) = two_bf16(sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor);
    }
}

// The rows of a tile, `first` the first one's number of `count`; each is `stride` behind the last.
__device__ __forceinline__ void
store_tile(u16 *rows, u32 stride, const Tile (&sums)[PADDED / 8], u32 first, u32 count, float factor) {
    EACH(half, 2) {
        u32 row = first + row_of(2 * half);
        if (row < count) store_row(rows + (u64)row * stride, sums, half, factor);
    }
}

// Where rows are queries and columns keys, from these on: no scores for keys that are not seen.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
hide_keys(Tile (&scores)[TILES][COLUMNS / 8], const Sequence &sequence, u32 first_query, u32 first_key) {
    if (first_key + COLUMNS <= sequence.seen(first_query)) return;
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) {
        u32 query = first_query + 16 * m + row_of(i), key = first_key + 8 * n + column_of(i);
        if (key >= sequence.seen(query)) scores[m][n][i] = MINUS_INFINITY;
    }
}

// The same where rows are keys and columns queries.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
hide_rows(Tile (&scores)[TILES][COLUMNS / 8], const Sequence &sequence, u32 first_query, u32 first_key) {
    if (first_key + 16 * TILES <= sequence.seen(first_query)) return;
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) {
        u32 query = first_query + 8 * n + column_of(i), key = first_key + 16 * m + row_of(i);
        if (key >= sequence.seen(query)) scores[m][n][i] = MINUS_INFINITY;
    }
}

// The largest, or the sum, of the four lanes that share a row.
__device__ __forceinline__ float largest_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float sum_of_row(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// The online softmax of a tile of 16 rows: what it has met, of rows g and g + 8.
struct Running {
    float largest[2], sum[2];

    // Makes probabilities of scores, relative to the largest so far, and adapts the sums of earlier ones.
    __device__ __forceinline__ void soften(Tile (&scores)[FORWARD_KEYS / 8], Tile (&sums)[PADDED / 8], float factor) {
        EACH(half, 2) {
            float most = largest[half];
            EACH(n, FORWARD_KEYS / 8) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            most = largest_of_row(most);
            float smaller = power_of_two((largest[half] - most) * factor), added = 0.0f;
            EACH(n, FORWARD_KEYS / 8) EACH(i, 2) {
                float &score = scores[n][2 * half + i];
                score = power_of_two(score * factor - most * factor);
                added += score;
            }
            EACH(n, PADDED / 8) EACH(i, 2) sums[n][2 * half + i] *= smaller;
            sum[half] = sum[half] * smaller + added;
            largest[half] = most;
        }
    }
};

// Keys and values of a tile are fetched while the other of the two is multiplied.
__device__ __forceinline__ void forward(const Inputs<u16> &in, u16 *out, float *log_sums) {
    extern __shared__ uint4 dynamic_shared[];
    u16 *keys = (u16 *)dynamic_shared, *values = keys + FORWARD_KEYS * BF16_LINE;
    u16 *queries = KEPT ? values : values + FORWARD_KEYS * BF16_LINE;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<u16> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<u16> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<u16> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    fetch<FORWARD_ROWS, BF16_THREADS>(queries, q, first);
    fetch<FORWARD_KEYS, BF16_THREADS>(keys, k, 0);
    u32 end = sequence.seen_by_tile(first, FORWARD_ROWS), mine = threadIdx.x / 32 * 16 * FORWARD_TILES;
    first += mine;
    await_copies();
    __syncthreads();
    LeftRows<KEPT, FORWARD_TILES> left;
    left.load(queries + mine * BF16_LINE);
    Tile sums[FORWARD_TILES][PADDED / 8];
    clear(sums);
    Running running[FORWARD_TILES];
    EACH(m, FORWARD_TILES) running[m] = {{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
    float factor = in.scale * LOG2_E;
    for (u32 start = 0; start < end; start += FORWARD_KEYS) {
        // These keys have come, and no warp needs the last values.
        await_copies();
        __syncthreads();
        fetch<FORWARD_KEYS, BF16_THREADS>(values, v, start);
        Tile scores[FORWARD_TILES][FORWARD_KEYS / 8];
        bool sees = start < sequence.seen(first + 16 * FORWARD_TILES - 1);
        if (sees) dot_rows<FORWARD_TILES, FORWARD_KEYS>(scores, left, keys);
        // The values have come, and no warp needs the keys.
        await_copies();
        __syncthreads();
        if (start + FORWARD_KEYS < end) fetch<FORWARD_KEYS, BF16_THREADS>(keys, k, start + FORWARD_KEYS);
        if (!sees) continue;
        hide_keys<FORWARD_TILES, FORWARD_KEYS>(scores, sequence, first, start);
        EACH(m, FORWARD_TILES) running[m].soften(scores[m], sums[m], factor);
        add_rows<FORWARD_TILES, FORWARD_KEYS>(sums, scores, values);
    }
    u16 *rows = out + ((u64)sequence.query_start * in.heads + head) * HEAD_DIM;
    EACH(m, FORWARD_TILES) EACH(half, 2) {
        u32 query = first + 16 * m + row_of(2 * half);
        float sum = sum_of_row(running[m].sum[half]);
        if (query >= sequence.query_count) continue;
        store_row(rows + (u64)query * in.heads * HEAD_DIM, sums[m], half, 1.0f / sum);
        u64 place = (u64)(sequence.query_start + query) * in.heads + head;
        if (lane() % 4 == 0) log_sums[place] = in.scale * running[m].largest[half] + logf(sum);
    }
}

// Two tiles of rows that are streamed, twice: one pair is multiplied while the other comes. Where left factors stay in
// registers, they pass through the same memory before.
template <u32 OWNED> struct Memory {
    static __device__ __forceinline__ u16 *owned(u32 which) {
        extern __shared__ uint4 dynamic_shared[];
        return (u16 *)dynamic_shared + which * OWNED * BF16_LINE;
    }
    static __device__ __forceinline__ u16 *streamed(u32 turn, u32 which) {
        return owned(KEPT ? 0 : 2) + (turn % 2 * 2 + which) * STREAMED * BF16_LINE;
    }
};

// Fetches the rows that a block owns, and loads the left factors of its warps.
template <u32 TILES>
__device__ __forceinline__ void
own(LeftRows<KEPT, TILES> &left, LeftRows<KEPT, TILES> &right, const Rows<u16> &a, const Rows<u16> &b, u32 first) {
    typedef Memory<64 * TILES> Memory;
    fetch<64 * TILES, BF16_THREADS>(Memory::owned(0), a, first);
    fetch<64 * TILES, BF16_THREADS>(Memory::owned(1), b, first);
    await_copies();
    __syncthreads();
    u32 mine = threadIdx.x / 32 * 16 * TILES * BF16_LINE;
    left.load(Memory::owned(0) + mine);
    right.load(Memory::owned(1) + mine);
    __syncthreads();
}

// Keys that meet the queries of a warp at a time.
constexpr u32 QUERIES_STEP = STREAMED < 32 ? STREAMED : 32;

__device__ __forceinline__ void
backward_queries(const Inputs<u16> &in, const Pulled<u16> &pulled, u16 *d_q, u32 dq_stride) {
    typedef Memory<QUERY_ROWS> Memory;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<u16> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<u16> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
    Rows<u16> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<u16> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    LeftRows<KEPT, QUERY_TILES> queries, gradients;
    own(queries, gradients, q, d_out, first);
    u32 end = sequence.seen_by_tile(first, QUERY_ROWS);
    first += threadIdx.x / 32 * 16 * QUERY_TILES;
    Query rows[QUERY_TILES][2];
    EACH(m, QUERY_TILES) EACH(half, 2) rows[m][half] = Query(in, pulled, sequence, first + 16 * m + row_of(2 * half), head);
    Tile sums[QUERY_TILES][PADDED / 8];
    clear(sums);
    auto fetch_tile = [&](u32 start) {
        u32 turn = start / STREAMED;
        fetch<STREAMED, BF16_THREADS>(Memory::streamed(turn, 0), k, start);
        fetch<STREAMED, BF16_THREADS>(Memory::streamed(turn, 1), v, start);
    };
    fetch_tile(0);
    for (u32 start = 0; start < end; start += STREAMED) {
        // This tile has come, and no warp needs the one before.
        await_copies();
        __syncthreads();
        if (start + STREAMED < end) fetch_tile(start + STREAMED);
        for (u32 step = 0; step < STREAMED; step += QUERIES_STEP) {
            u32 key = start + step;
            if (key >= sequence.seen(first + 16 * QUERY_TILES - 1)) break;
            const u16 *keys = Memory::streamed(start / STREAMED, 0) + step * BF16_LINE;
            const u16 *values = Memory::streamed(start / STREAMED, 1) + step * BF16_LINE;
            Tile scores[QUERY_TILES][QUERIES_STEP / 8], d_scores[QUERY_TILES][QUERIES_STEP / 8];
            dot_rows<QUERY_TILES, QUERIES_STEP>(scores, queries, keys);
            dot_rows<QUERY_TILES, QUERIES_STEP>(d_scores, gradients, values);
            hide_keys<QUERY_TILES, QUERIES_STEP>(scores, sequence, first, key);
            EACH(m, QUERY_TILES) EACH(n, QUERIES_STEP / 8) EACH(i, 4) {
                rows[m][i / 2].pull(scores[m][n][i], d_scores[m][n][i], in.scale * LOG2_E);
            }
            add_rows<QUERY_TILES, QUERIES_STEP>(sums, d_scores, keys);
        }
    }
    u16 *out = d_q + (u64)sequence.query_start * dq_stride + head * HEAD_DIM;
    EACH(m, QUERY_TILES) store_tile(out, dq_stride, sums[m], first + 16 * m, sequence.query_count, in.scale);
}

// Queries that meet the keys of a warp at a time.
constexpr u32 KEYS_STEP = 16;

// Rows are keys here, and columns queries, so that probabilities are left factors as they are. FOR_KEYS, FOR_VALUES: which of
// the gradients; both at once where their sums have room.
template <bool FOR_KEYS, bool FOR_VALUES>
__device__ __forceinline__ void
backward_keys_of(const Inputs<u16> &in, const Pulled<u16> &pulled, u16 *d_k, u16 *d_v, u32 dkv_stride) {
    typedef Memory<KEY_ROWS> Memory;
    Sequence sequence(in.sequences, in.tiles[2 * blockIdx.x]);
    u32 first = in.tiles[2 * blockIdx.x + 1], kv_head = blockIdx.y;
    Rows<u16> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    Rows<u16> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    LeftRows<KEPT, KEY_TILES> keys, values;
    own(keys, values, k, v, first);
    Tile key_sums[KEY_TILES][PADDED / 8], value_sums[KEY_TILES][PADDED / 8];
    clear(key_sums);
    clear(value_sums);
    // Tiles of queries that see some of the keys, for one head after the other.
    auto fetch_tile = [&](u32 turn, u32 head, u32 start) {
        Rows<u16> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
        Rows<u16> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
        fetch<STREAMED, BF16_THREADS>(Memory::streamed(turn, 0), q, start);
        fetch<STREAMED, BF16_THREADS>(Memory::streamed(turn, 1), d_out, start);
    };
    u32 first_query = sequence.first_query(first), start = first_query, head = kv_head * in.group, heads_end = head + in.group;
    first += threadIdx.x / 32 * 16 * KEY_TILES;
    fetch_tile(0, head, start);
    for (u32 turn = 0; head < heads_end; turn++) {
        bool last = start + STREAMED >= sequence.query_count;
        u32 next_head = last ? head + 1 : head, next = last ? first_query : start + STREAMED;
        // This tile has come, and no warp needs the one before.
        await_copies();
        __syncthreads();
        if (next_head < heads_end) fetch_tile(turn + 1, next_head, next);
        for (u32 step = 0; step < STREAMED; step += KEYS_STEP) {
            u32 query = start + step;
            if (query >= sequence.query_count) break;
            if (first >= sequence.seen(query + KEYS_STEP - 1)) continue;
            const u16 *queries = Memory::streamed(turn, 0) + step * BF16_LINE;
            const u16 *gradients = Memory::streamed(turn, 1) + step * BF16_LINE;
            Query columns[KEYS_STEP / 8][2];
            EACH(n, KEYS_STEP / 8) EACH(i, 2) {
                columns[n][i] = Query(in, pulled, sequence, query + 8 * n + column_of(i), head);
            }
            Tile scores[KEY_TILES][KEYS_STEP / 8], d_scores[KEY_TILES][KEYS_STEP / 8];
            dot_rows<KEY_TILES, KEYS_STEP>(scores, keys, queries);
            if (FOR_KEYS) dot_rows<KEY_TILES, KEYS_STEP>(d_scores, values, gradients);
            hide_rows<KEY_TILES, KEYS_STEP>(scores, sequence, query, first);
            EACH(m, KEY_TILES) EACH(n, KEYS_STEP / 8) EACH(i, 4) {
                columns[n][i % 2].pull(scores[m][n][i], d_scores[m][n][i], in.scale * LOG2_E);
            }
            if (FOR_VALUES) add_rows<KEY_TILES, KEYS_STEP>(value_sums, scores, gradients);
            if (FOR_KEYS) add_rows<KEY_TILES, KEYS_STEP>(key_sums, d_scores, queries);
        }
        head = next_head;
        start = next;
    }
    u64 place = (u64)sequence.key_start * dkv_stride + kv_head * HEAD_DIM;
    EACH(m, KEY_TILES) {
        if (FOR_KEYS) store_tile(d_k + place, dkv_stride, key_sums[m], first + 16 * m, sequence.key_count, in.scale);
        if (FOR_VALUES) store_tile(d_v + place, dkv_stride, value_sums[m], first + 16 * m, sequence.key_count, 1.0f);
    }
}

__device__ __forceinline__ void
backward_keys(const Inputs<u16> &in, const Pulled<u16> &pulled, u16 *d_k, u16 *d_v, u32 dkv_stride) {
    if (KEPT) {
        backward_keys_of<true, true>(in, pulled, d_k, d_v, dkv_stride);
    } else {
        backward_keys_of<false, true>(in, pulled, d_k, d_v, dkv_stride);
        __syncthreads();
        backward_keys_of<true, false>(in, pulled, d_k, d_v, dkv_stride);
    }
}
#endif

// ---- the kernels

// Grid: (tiles of queries, heads). `out` [tokens, heads·HEAD_DIM]; `log_sums` [tokens, heads], natural.
#define FORWARD(T, name, THREADS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##name(                                           \
        const T *q, const T *k, const T *v, T *out, float *log_sums, const u32 *sequences, const u32 *tiles,          \
        u32 q_stride, u32 kv_stride, u32 heads, u32 group, float scale) {                                             \
        forward({q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale}, out, log_sums);                \
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
        float scale) {                                                                                                \
        Inputs<T> in = {q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale};                         \
        backward_queries(in, {d_out, log_sums, delta}, d_q, dq_stride);                                               \
    }

// Grid: (tiles of keys, heads of keys).
#define BACKWARD_KEYS(T, name, THREADS)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_keys_##name(                             \
        const T *q, const T *k, const T *v, const T *d_out, const float *log_sums, const float *delta, T *d_k,        \
        T *d_v, const u32 *sequences, const u32 *tiles, u32 q_stride, u32 kv_stride, u32 dkv_stride, u32 heads,       \
        u32 group, float scale) {                                                                                     \
        Inputs<T> in = {q, k, v, sequences, tiles, q_stride, kv_stride, heads, group, scale};                         \
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
