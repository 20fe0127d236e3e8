// What operations on rows share, in f32 and in bf16 (bf16 in memory, f32 in registers).
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

#define ROWS extern "C" __global__ void __launch_bounds__(ROW_THREADS)
#define LOSS extern "C" __global__ void __launch_bounds__(LOSS_THREADS)

// A call for eight numbers at a time, or for one.
#define EITHER(eight, function, ...)           \
    if (eight) {                               \
        function(Count<8>(), __VA_ARGS__);     \
    } else {                                   \
        function(Count<1>(), __VA_ARGS__);     \
    }
