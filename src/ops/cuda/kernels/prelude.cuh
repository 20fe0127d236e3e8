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
