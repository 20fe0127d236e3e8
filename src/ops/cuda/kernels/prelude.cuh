// What every kernel stands on. It goes before each file; no header is included, for NVRTC has none where only the driver and
// its library are installed.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Sums and products of their own: the compiler would join them into one rounding, and the CPU does not.
#define MUL(a, b) __fmul_rn((a), (b))
#define ADD(a, b) __fadd_rn((a), (b))
#define SUB(a, b) __fsub_rn((a), (b))

// A half float as f32, exactly.
__device__ __forceinline__ float half_to_f32(u32 bits) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((u16)bits));
    return x;
#else
    u32 magnitude = (bits & 0x7fff) << 13;
    float subnormal = MUL((float)(bits & 0x3ff), __uint_as_float((127 - 24) << 23));
    u32 value = (bits & 0x7c00) == 0 ? __float_as_uint(subnormal) : magnitude + ((127 - 15) << 23);
    if ((bits & 0x7c00) == 0x7c00) value = magnitude | 0x7f800000;
    return __uint_as_float(value | (bits & 0x8000) << 16);
#endif
}

__device__ __forceinline__ float bf16_to_f32(u32 bits) {
    return __uint_as_float(bits << 16);
}

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ u32 f32_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Two numbers in a word, the first in its lower half.
__device__ __forceinline__ u32 two_bf16(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    return f32_to_bf16(first) | f32_to_bf16(second) << 16;
#endif
}

__device__ __forceinline__ void store_one(float *out, float x) { *out = x; }
__device__ __forceinline__ void store_one(u16 *out, float x) { *out = (u16)two_bf16(x, 0.0f); }

// Eight numbers at an address that is a multiple of what they take.
__device__ __forceinline__ void store_eight(float *out, const float *x) {
    *(float4 *)out = make_float4(x[0], x[1], x[2], x[3]);
    *(float4 *)(out + 4) = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void store_eight(u16 *out, const float *x) {
    *(uint4 *)out = make_uint4(two_bf16(x[0], x[1]), two_bf16(x[2], x[3]), two_bf16(x[4], x[5]), two_bf16(x[6], x[7]));
}

// The thread's number in the grid.
__device__ __forceinline__ u64 thread_number() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

// ---- Numbers in groups, and sums over a block.

// How many numbers a piece of code takes at a time: 8 where 16-byte accesses are possible, 1 elsewhere. Code is written once,
// with the count as a parameter that only has a type.
template <int COUNT> struct Count {
    enum { N = COUNT };
};

// Numbers in registers.
template <int N> struct Floats {
    float of[N];
    __device__ __forceinline__ float &operator[](int i) { return of[i]; }
    __device__ __forceinline__ float operator[](int i) const { return of[i]; }
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(u16 x) { return bf16_to_f32(x); }

// Numbers as they lie in memory: of bf16, half the registers.
template <class T, int N> struct Pack;

template <class T> struct Pack<T, 1> {
    T raw;
    __device__ __forceinline__ void load(const T *p) { raw = *p; }
    __device__ __forceinline__ void store(T *p) const { *p = raw; }
    __device__ __forceinline__ Floats<1> floats() const { return {{to_f32(raw)}}; }
};

template <> struct Pack<float, 8> {
    float4 low, high;
    __device__ __forceinline__ void load(const float *p) {
        low = *(const float4 *)p;
        high = *(const float4 *)(p + 4);
    }
    __device__ __forceinline__ void store(float *p) const {
        *(float4 *)p = low;
        *(float4 *)(p + 4) = high;
    }
    __device__ __forceinline__ Floats<8> floats() const {
        return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }
};

template <> struct Pack<u16, 8> {
    uint4 raw;
    static __device__ __forceinline__ float lower(u32 word) { return __uint_as_float(word << 16); }
    static __device__ __forceinline__ float upper(u32 word) { return __uint_as_float(word & 0xffff0000); }
    __device__ __forceinline__ void load(const u16 *p) { raw = *(const uint4 *)p; }
    __device__ __forceinline__ void store(u16 *p) const { *(uint4 *)p = raw; }
    __device__ __forceinline__ Floats<8> floats() const {
        return {{lower(raw.x), upper(raw.x), lower(raw.y), upper(raw.y), lower(raw.z), upper(raw.z), lower(raw.w), upper(raw.w)}};
    }
};

template <class T, int N> __device__ __forceinline__ Floats<N> load(Count<N>, const T *p) {
    Pack<T, N> pack;
    pack.load(p);
    return pack.floats();
}

template <class T> __device__ __forceinline__ void store(T *p, const Floats<1> &x) { store_one(p, x.of[0]); }
template <class T> __device__ __forceinline__ void store(T *p, const Floats<8> &x) { store_eight(p, x.of); }

// Whether rows of this width from these addresses on can be read and written eight numbers at a time. Of a width and a stride:
// their bitwise or.
__device__ __forceinline__ bool aligned(u32 width, const void *a, const void *b = 0, const void *c = 0, const void *d = 0) {
    return width % 8 == 0 && ((u64)a | (u64)b | (u64)c | (u64)d) % 16 == 0;
}

// Sums in a fixed order, the same bits for each thread that takes part: all of a warp, or all of a block of whole warps, with
// 32 numbers of shared memory that nothing else uses until the block's next barrier.
template <class X> __device__ __forceinline__ X warp_sum(X x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
    return x;
}

template <class X> __device__ __forceinline__ X block_sum(X x, X *shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : (X)0);
}
