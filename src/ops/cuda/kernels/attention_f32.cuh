// Attention in f32. Thread (x, y) of 16 by 16 has the rows y, y + 16, ... and the columns x, x + 16, ...

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

// From products to the tanh of which a cap is made.
__device__ __forceinline__ void cap(Scores &scores, float power) {
    EACH(i, DOWN) EACH(j, ACROSS) scores[i][j] = tanh_of_power(scores[i][j] * power);
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
    Sequence sequence = in.sequence();
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    float factor = in.unit * LOG2_E, largest[DOWN], sum[DOWN];
    Sums sums;
    clear(sums);
    EACH(i, DOWN) {
        largest[i] = LEAST;
        sum[i] = 0.0f;
    }
    fetch_owned(queries, q, first);
    u32 end = sequence.seen_by_tile(first, F32_ROWS);
    for (u32 start = sequence.first_seen(first); start < end; start += F32_STREAMED) {
        fetch_streamed(keys, k, start);
        fetch_streamed(values, v, start);
        await_copies();
        __syncthreads();
        Scores scores;
        dot_rows(scores, queries, keys);
        if (in.capped()) cap(scores, in.power);
        EACH(i, DOWN) {
            EACH(j, ACROSS) {
                if (sequence.hides(first + thread_y() + 16 * i, start + thread_x() + 16 * j)) scores[i][j] = MINUS_INFINITY;
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
        if (thread_x() == 0) log_sums[place] = in.unit * largest[i] + logf(whole);
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

    // The product is rounded by itself, as it is above.
    __device__ __forceinline__ Query(float log_sum, float delta) : log2_sum(__fmul_rn(log_sum, LOG2_E)), delta(delta) {}

    // From a score to its probability (of minus infinity, what is not seen: zero), and from the probability's gradient to the
    // score's: to that of the product, where the score is its tanh.
    template <bool CAPPED> __device__ __forceinline__ void pull(float &score, float &gradient, float factor) const {
        float slope = CAPPED ? fmaxf(1.0f - score * score, 0.0f) : 1.0f;
        score = power_of_two(score * factor - log2_sum);
        gradient = score * (gradient - delta);
        if (CAPPED) gradient *= slope;
    }
};

__device__ __forceinline__ void
backward_queries(const Inputs<float> &in, const Pulled<float> &pulled, float *d_q, u32 dq_stride) {
    extern __shared__ uint4 dynamic_shared[];
    float *queries = (float *)dynamic_shared, *gradients = queries + F32_OWNED;
    float *keys = gradients + F32_OWNED, *values = keys + F32_TILE, *weights = values + F32_TILE;
    Sequence sequence = in.sequence();
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<float> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    float factor = in.unit * LOG2_E;
    Query rows[DOWN];
    EACH(i, DOWN) rows[i] = Query(in, pulled, sequence, first + thread_y() + 16 * i, head);
    Sums sums;
    clear(sums);
    fetch_owned(queries, q, first);
    fetch_owned(gradients, d_out, first);
    u32 end = sequence.seen_by_tile(first, F32_ROWS);
    for (u32 start = sequence.first_seen(first); start < end; start += F32_STREAMED) {
        fetch_streamed(keys, k, start);
        fetch_streamed(values, v, start);
        await_copies();
        __syncthreads();
        Scores scores, d_scores;
        dot_rows(scores, queries, keys);
        dot_rows(d_scores, gradients, values);
        if (in.capped()) cap(scores, in.power);
        EACH(i, DOWN) EACH(j, ACROSS) {
            if (sequence.hides(first + thread_y() + 16 * i, start + thread_x() + 16 * j)) scores[i][j] = MINUS_INFINITY;
        }
        if (in.capped()) {
            EACH(i, DOWN) EACH(j, ACROSS) rows[i].pull<true>(scores[i][j], d_scores[i][j], factor);
        } else {
            EACH(i, DOWN) EACH(j, ACROSS) rows[i].pull<false>(scores[i][j], d_scores[i][j], factor);
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
    Sequence sequence = in.sequence();
    u32 first = in.tiles[2 * blockIdx.x + 1], kv_head = blockIdx.y;
    Rows<float> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    Rows<float> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, kv_head);
    u32 end = sequence.end_of_queries(first + F32_ROWS - 1);
    float factor = in.unit * LOG2_E;
    Sums key_sums, value_sums;
    clear(key_sums);
    clear(value_sums);
    fetch_owned(keys, k, first);
    fetch_owned(values, v, first);
    for (u32 head = kv_head * in.group; head < (kv_head + 1) * in.group; head++) {
        Rows<float> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
        Rows<float> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
        for (u32 start = sequence.first_query(first); start < end; start += F32_STREAMED) {
            fetch_streamed(queries, q, start);
            fetch_streamed(gradients, d_out, start);
            await_copies();
            __syncthreads();
            Scores scores, d_scores;
            dot_rows(scores, keys, queries);
            dot_rows(d_scores, values, gradients);
            if (in.capped()) cap(scores, in.power);
            EACH(j, ACROSS) {
                u32 query = start + thread_x() + 16 * j;
                Query column(in, pulled, sequence, query, head);
                EACH(i, DOWN) {
                    if (sequence.hides(query, first + thread_y() + 16 * i)) scores[i][j] = MINUS_INFINITY;
                    if (in.capped()) column.pull<true>(scores[i][j], d_scores[i][j], factor);
                    else column.pull<false>(scores[i][j], d_scores[i][j], factor);
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
