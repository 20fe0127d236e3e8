// Attention in bf16, on tensor cores. A warp has 16 rows of each of its tiles, and tiles of 16 by 8 sums: lane 4·g + t holds of these
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

// From products to the tanh of which a cap is made.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void cap(Tile (&scores)[TILES][COLUMNS / 8], float power) {
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) scores[m][n][i] = tanh_of_power(scores[m][n][i] * power);
}

// Where rows are queries and columns keys, from these on: no scores for keys that are not seen.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
hide_keys(Tile (&scores)[TILES][COLUMNS / 8], const Sequence &sequence, u32 first_query, u32 first_key) {
    if (sequence.all_see(first_query, 16 * TILES, first_key, COLUMNS)) return;
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) {
        u32 query = first_query + 16 * m + row_of(i), key = first_key + 8 * n + column_of(i);
        if (sequence.hides(query, key)) scores[m][n][i] = MINUS_INFINITY;
    }
}

// The same where rows are keys and columns queries.
template <u32 TILES, u32 COLUMNS>
__device__ __forceinline__ void
hide_rows(Tile (&scores)[TILES][COLUMNS / 8], const Sequence &sequence, u32 first_query, u32 first_key) {
    if (sequence.all_see(first_query, COLUMNS, first_key, 16 * TILES)) return;
    EACH(m, TILES) EACH(n, COLUMNS / 8) EACH(i, 4) {
        u32 query = first_query + 8 * n + column_of(i), key = first_key + 16 * m + row_of(i);
        if (sequence.hides(query, key)) scores[m][n][i] = MINUS_INFINITY;
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
    Sequence sequence = in.sequence();
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<u16> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<u16> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<u16> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    fetch<FORWARD_ROWS, BF16_THREADS>(queries, q, first);
    u32 begin = sequence.first_seen(first), end = sequence.seen_by_tile(first, FORWARD_ROWS);
    fetch<FORWARD_KEYS, BF16_THREADS>(keys, k, begin);
    u32 mine = threadIdx.x / 32 * 16 * FORWARD_TILES;
    first += mine;
    await_copies();
    __syncthreads();
    LeftRows<KEPT, FORWARD_TILES> left;
    left.load(queries + mine * BF16_LINE);
    Tile sums[FORWARD_TILES][PADDED / 8];
    clear(sums);
    Running running[FORWARD_TILES];
    EACH(m, FORWARD_TILES) running[m] = {{LEAST, LEAST}, {0.0f, 0.0f}};
    float factor = in.unit * LOG2_E;
    for (u32 start = begin; start < end; start += FORWARD_KEYS) {
        // These keys have come, and no warp needs the last values.
        await_copies();
        __syncthreads();
        fetch<FORWARD_KEYS, BF16_THREADS>(values, v, start);
        Tile scores[FORWARD_TILES][FORWARD_KEYS / 8];
        // In the widest heads the question costs spills; without a window it only spares some warps of a block its last tiles.
        bool sees = PLAIN && PADDED > 240 || sequence.some_see(first, 16 * FORWARD_TILES, start, FORWARD_KEYS);
        if (sees) dot_rows<FORWARD_TILES, FORWARD_KEYS>(scores, left, keys);
        // The values have come, and no warp needs the keys.
        await_copies();
        __syncthreads();
        if (start + FORWARD_KEYS < end) fetch<FORWARD_KEYS, BF16_THREADS>(keys, k, start + FORWARD_KEYS);
        if (!sees) continue;
        if (in.capped()) cap<FORWARD_TILES, FORWARD_KEYS>(scores, in.power);
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
        if (lane() % 4 == 0) log_sums[place] = in.unit * running[m].largest[half] + logf(sum);
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
    Sequence sequence = in.sequence();
    u32 first = in.tiles[2 * blockIdx.x + 1], head = blockIdx.y;
    Rows<u16> q(in.q, sequence.query_start, sequence.query_count, in.q_stride, head);
    Rows<u16> d_out(pulled.d_out, sequence.query_start, sequence.query_count, in.heads * HEAD_DIM, head);
    Rows<u16> k(in.k, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    Rows<u16> v(in.v, sequence.key_start, sequence.key_count, in.kv_stride, head / in.group);
    LeftRows<KEPT, QUERY_TILES> queries, gradients;
    own(queries, gradients, q, d_out, first);
    u32 begin = sequence.first_seen(first), end = sequence.seen_by_tile(first, QUERY_ROWS);
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
    fetch_tile(begin);
    for (u32 start = begin; start < end; start += STREAMED) {
        // This tile has come, and no warp needs the one before.
        await_copies();
        __syncthreads();
        if (start + STREAMED < end) fetch_tile(start + STREAMED);
        for (u32 step = 0; step < STREAMED; step += QUERIES_STEP) {
            u32 key = start + step;
            if (!sequence.some_see(first, 16 * QUERY_TILES, key, QUERIES_STEP)) {
                // Keys that a window leaves out may have seen ones behind them.
                if (PLAIN) break;
                continue;
            }
            const u16 *keys = Memory::streamed(start / STREAMED, 0) + step * BF16_LINE;
            const u16 *values = Memory::streamed(start / STREAMED, 1) + step * BF16_LINE;
            Tile scores[QUERY_TILES][QUERIES_STEP / 8], d_scores[QUERY_TILES][QUERIES_STEP / 8];
            dot_rows<QUERY_TILES, QUERIES_STEP>(scores, queries, keys);
            dot_rows<QUERY_TILES, QUERIES_STEP>(d_scores, gradients, values);
            if (in.capped()) cap<QUERY_TILES, QUERIES_STEP>(scores, in.power);
            hide_keys<QUERY_TILES, QUERIES_STEP>(scores, sequence, first, key);
            if (in.capped()) {
                EACH(m, QUERY_TILES) EACH(n, QUERIES_STEP / 8) EACH(i, 4) {
                    rows[m][i / 2].pull<true>(scores[m][n][i], d_scores[m][n][i], in.unit * LOG2_E);
                }
            } else {
                EACH(m, QUERY_TILES) EACH(n, QUERIES_STEP / 8) EACH(i, 4) {
                    rows[m][i / 2].pull<false>(scores[m][n][i], d_scores[m][n][i], in.unit * LOG2_E);
                }
            }
            add_rows<QUERY_TILES, QUERIES_STEP>(sums, d_scores, keys);
        }
    }
    u16 *out = d_q + (u64)sequence.query_start * dq_stride + head * HEAD_DIM;
    EACH(m, QUERY_TILES) store_tile(out, dq_stride, sums[m], first + 16 * m, sequence.query_count, in.scale);
}

// The 16 bytes behind the rows of two queries of a tile are free: behind the first one's, their log-sums and their deltas.
__device__ __forceinline__ float *numbers_of(u16 *queries, u32 i) {
    return (float *)(queries + i / 2 * 2 * BF16_LINE + PADDED) + i % 2;
}

// Starts to copy the log-sums and deltas of a tile of queries, a number for each thread. They come with the tile: a step that read
// them from global memory would wait for them. Of a query that is not there, the log-sum is infinite.
__device__ __forceinline__ void
fetch_numbers(u16 *queries, const Pulled<u16> &pulled, const Sequence &sequence, u32 first, u32 heads, u32 head) {
    static_assert(2 * STREAMED <= BF16_THREADS && STREAMED % 2 == 0, "a number for each thread");
    if (threadIdx.x >= 2 * STREAMED) return;
    u32 i = threadIdx.x % STREAMED;
    bool is_delta = threadIdx.x >= STREAMED;
    float *to = numbers_of(queries, i) + (is_delta ? 2 : 0);
    if (first + i < sequence.query_count) {
        u64 place = (u64)(sequence.query_start + first + i) * heads + head;
        copy_4(to, (is_delta ? pulled.delta : pulled.log_sums) + place);
    } else {
        *to = is_delta ? 0.0f : INFINITE;
    }
}

// Queries that meet the keys of a warp at a time.
constexpr u32 KEYS_STEP = 16;

// Rows are keys here, and columns queries, so that probabilities are left factors as they are. FOR_KEYS, FOR_VALUES: which of
// the gradients; both at once where their sums have room.
template <bool FOR_KEYS, bool FOR_VALUES>
__device__ __forceinline__ void
backward_keys_of(const Inputs<u16> &in, const Pulled<u16> &pulled, u16 *d_k, u16 *d_v, u32 dkv_stride) {
    typedef Memory<KEY_ROWS> Memory;
    Sequence sequence = in.sequence();
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
        fetch_numbers(Memory::streamed(turn, 0), pulled, sequence, start, in.heads, head);
    };
    u32 first_query = sequence.first_query(first), end = sequence.end_of_queries(first + KEY_ROWS - 1);
    u32 start = first_query, head = kv_head * in.group, heads_end = head + in.group;
    first += threadIdx.x / 32 * 16 * KEY_TILES;
    fetch_tile(0, head, start);
    for (u32 turn = 0; head < heads_end; turn++) {
        bool last = start + STREAMED >= end;
        u32 next_head = last ? head + 1 : head, next = last ? first_query : start + STREAMED;
        // This tile has come, and no warp needs the one before.
        await_copies();
        __syncthreads();
        if (next_head < heads_end) fetch_tile(turn + 1, next_head, next);
        for (u32 step = 0; step < STREAMED; step += KEYS_STEP) {
            u32 query = start + step;
            if (query >= end) break;
            if (!sequence.some_see(query, KEYS_STEP, first, 16 * KEY_TILES)) continue;
            u16 *queries = Memory::streamed(turn, 0) + step * BF16_LINE;
            const u16 *gradients = Memory::streamed(turn, 1) + step * BF16_LINE;
            Query columns[KEYS_STEP / 8][2];
            EACH(n, KEYS_STEP / 8) {
                float4 both = *(const float4 *)numbers_of(queries, 8 * n + column_of(0));
                columns[n][0] = Query(both.x, both.z);
                columns[n][1] = Query(both.y, both.w);
            }
            Tile scores[KEY_TILES][KEYS_STEP / 8], d_scores[KEY_TILES][KEYS_STEP / 8];
            dot_rows<KEY_TILES, KEYS_STEP>(scores, keys, queries);
            if (FOR_KEYS) dot_rows<KEY_TILES, KEYS_STEP>(d_scores, values, gradients);
            if (in.capped()) cap<KEY_TILES, KEYS_STEP>(scores, in.power);
            hide_rows<KEY_TILES, KEYS_STEP>(scores, sequence, query, first);
            if (in.capped()) {
                EACH(m, KEY_TILES) EACH(n, KEYS_STEP / 8) EACH(i, 4) {
                    columns[n][i % 2].pull<true>(scores[m][n][i], d_scores[m][n][i], in.unit * LOG2_E);
                }
            } else {
                EACH(m, KEY_TILES) EACH(n, KEYS_STEP / 8) EACH(i, 4) {
                    columns[n][i % 2].pull<false>(scores[m][n][i], d_scores[m][n][i], in.unit * LOG2_E);
                }
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
