// Numbers of GGML's blocks, and of bitsandbytes', as f32 or bf16: the twin of ops/dequantize, with its order of arithmetic.
//
// A thread writes eight numbers that follow each other, in one or two stores of 16 bytes; the threads of a warp write 256 that
// do. Blocks are of even length and start anywhere even, so they are read by two bytes; neighbours read neighbouring bytes.

__device__ __forceinline__ u32 load16(const u8 *p) { return *(const u16 *)p; }
__device__ __forceinline__ u32 load32(const u8 *p) { return load16(p) | load16(p + 2) << 16; }
__device__ __forceinline__ float half_at(const u8 *p) { return half_to_f32(load16(p)); }

// Eight bytes from an even address.
struct Bytes {
    u32 words[2];
    __device__ __forceinline__ explicit Bytes(const u8 *p) {
        words[0] = load32(p);
        words[1] = load32(p + 4);
    }
    __device__ __forceinline__ u32 operator[](int i) const { return (words[i / 4] >> (8 * (i % 4))) & 255; }
};

// Each type: numbers and bytes of a block, and `eight`, which reads the eight numbers from `at` on, a multiple of eight. Plain
// floats may end anywhere: of theirs, `count` are there.
#define EACH for (int i = 0; i < 8; i++)

struct F32 {
    enum { NUMBERS = 8, BYTES = 32 };
    static __device__ __forceinline__ void eight(const u8 *block, int, int count, float *out) {
        EACH out[i] = i < count ? ((const float *)block)[i] : 0.0f;
    }
};

struct F16 {
    enum { NUMBERS = 8, BYTES = 16 };
    static __device__ __forceinline__ void eight(const u8 *block, int, int count, float *out) {
        EACH out[i] = i < count ? half_at(block + 2 * i) : 0.0f;
    }
};

struct BF16 {
    enum { NUMBERS = 8, BYTES = 16 };
    static __device__ __forceinline__ void eight(const u8 *block, int, int count, float *out) {
        EACH out[i] = i < count ? bf16_to_f32(load16(block + 2 * i)) : 0.0f;
    }
};

struct Q4_0 {
    enum { NUMBERS = 32, BYTES = 18 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block);
        Bytes q(block + 2 + at % 16);
        EACH out[i] = MUL((float)((int)((q[i] >> (at / 16 * 4)) & 15) - 8), d);
    }
};

struct Q4_1 {
    enum { NUMBERS = 32, BYTES = 20 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block), m = half_at(block + 2);
        Bytes q(block + 4 + at % 16);
        EACH out[i] = ADD(MUL((float)((q[i] >> (at / 16 * 4)) & 15), d), m);
    }
};

struct Q5_0 {
    enum { NUMBERS = 32, BYTES = 22 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block);
        u32 fifth = load32(block + 2) >> at;
        Bytes q(block + 6 + at % 16);
        EACH out[i] = MUL((float)((int)(((q[i] >> (at / 16 * 4)) & 15) | ((fifth >> i) & 1) << 4) - 16), d);
    }
};

struct Q5_1 {
    enum { NUMBERS = 32, BYTES = 24 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block), m = half_at(block + 2);
        u32 fifth = load32(block + 4) >> at;
        Bytes q(block + 8 + at % 16);
        EACH out[i] = ADD(MUL((float)(((q[i] >> (at / 16 * 4)) & 15) | ((fifth >> i) & 1) << 4), d), m);
    }
};

struct Q8_0 {
    enum { NUMBERS = 32, BYTES = 34 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block);
        Bytes q(block + 2 + at);
        EACH out[i] = MUL((float)(signed char)q[i], d);
    }
};

// Where a group of 16 numbers has its bits: each half of a block is 32 bytes, which hold 4 numbers each, 32 numbers apart.
struct Place {
    int group, half, shift, first;
    __device__ __forceinline__ explicit Place(int at)
        : group(at / 16), half(at / 128), shift(at % 128 / 32 * 2), first(at % 32) {}
};

struct Q2K {
    enum { NUMBERS = 256, BYTES = 84 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        Place place(at);
        float scale = MUL(half_at(block + 80), (float)(block[place.group] & 15));
        float min = MUL(half_at(block + 82), (float)(block[place.group] >> 4));
        Bytes q(block + 16 + 32 * place.half + place.first);
        EACH out[i] = SUB(MUL(scale, (float)((q[i] >> place.shift) & 3)), min);
    }
};

struct Q3K {
    enum { NUMBERS = 256, BYTES = 110 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        Place place(at);
        const u8 *scales = block + 96;
        u32 low = (scales[place.group % 8] >> (place.group / 8 * 4)) & 15;
        u32 high = (scales[8 + place.group % 4] >> (place.group / 4 * 2)) & 3;
        float scale = MUL(half_at(block + 108), (float)((int)(low | high << 4) - 32));
        Bytes third(block + place.first), q(block + 32 + 32 * place.half + place.first);
        int bit = 4 * place.half + place.shift / 2;
        EACH out[i] = MUL(scale, (float)((int)(((q[i] >> place.shift) & 3) | ((third[i] >> bit) & 1) << 2) - 4));
    }
};

// The scale and the minimum of a group of 32 numbers, 6 bits each: four scales, four minima, then both halves of the other
// eight, whose upper two bits are those of the first eight bytes.
struct ScaleAndMin {
    float scale, min;
    __device__ __forceinline__ ScaleAndMin(const u8 *block, int group) {
        const u8 *packed = block + 4;
        u32 s, m;
        if (group < 4) {
            s = packed[group] & 63;
            m = packed[group + 4] & 63;
        } else {
            s = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
            m = (packed[group + 4] >> 4) | (packed[group] >> 6) << 4;
        }
        scale = MUL(half_at(block), (float)s);
        min = MUL(half_at(block + 2), (float)m);
    }
};

struct Q4K {
    enum { NUMBERS = 256, BYTES = 144 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        ScaleAndMin group(block, at / 32);
        Bytes q(block + 16 + at / 64 * 32 + at % 32);
        EACH out[i] = SUB(MUL(group.scale, (float)((q[i] >> (at / 32 % 2 * 4)) & 15)), group.min);
    }
};

struct Q5K {
    enum { NUMBERS = 256, BYTES = 176 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        ScaleAndMin group(block, at / 32);
        Bytes fifth(block + 16 + at % 32), q(block + 48 + at / 64 * 32 + at % 32);
        EACH {
            u32 number = ((q[i] >> (at / 32 % 2 * 4)) & 15) | ((fifth[i] >> (at / 32)) & 1) << 4;
            out[i] = SUB(MUL(group.scale, (float)number), group.min);
        }
    }
};

struct Q6K {
    enum { NUMBERS = 256, BYTES = 210 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        Place place(at);
        float scale = MUL(half_at(block + 208), (float)(signed char)block[192 + place.group]);
        Bytes lower(block + 64 * place.half + place.shift % 4 * 16 + place.first);
        Bytes upper(block + 128 + 32 * place.half + place.first);
        EACH {
            u32 number = ((lower[i] >> (place.shift & 4)) & 15) | ((upper[i] >> place.shift) & 3) << 4;
            out[i] = MUL(scale, (float)((int)number - 32));
        }
    }
};

// Blocks of 4-bit codes that stand for the levels of a table. All lie in one line of the cache.
static __device__ const float NF4_LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};
static __device__ const float IQ4_LEVELS[16] = {
    -127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f, 1.0f, 13.0f, 25.0f, 38.0f, 53.0f, 69.0f, 89.0f, 113.0f,
};

struct IQ4_NL {
    enum { NUMBERS = 32, BYTES = 18 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float d = half_at(block);
        Bytes q(block + 2 + at % 16);
        EACH out[i] = MUL(d, IQ4_LEVELS[(q[i] >> (at / 16 * 4)) & 15]);
    }
};

struct IQ4_XS {
    enum { NUMBERS = 256, BYTES = 136 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        int group = at / 32;
        u32 low = (block[4 + group / 2] >> (group % 2 * 4)) & 15, high = (load16(block + 2) >> (2 * group)) & 3;
        float scale = MUL(half_at(block), (float)((int)(low | high << 4) - 32));
        Bytes q(block + 8 + 16 * group + at % 16);
        EACH out[i] = MUL(scale, IQ4_LEVELS[(q[i] >> (at % 32 / 16 * 4)) & 15]);
    }
};

// bitsandbytes' NF4, the magnitudes undone from their own quantization; the first of two codes is in the high half of a byte.
struct NF4 {
    enum { NUMBERS = 64, BYTES = 36 };
    static __device__ __forceinline__ void eight(const u8 *block, int at, int, float *out) {
        float magnitude = __uint_as_float(load32(block));
        u32 codes = load32(block + 4 + at / 2);
        EACH out[i] = MUL(NF4_LEVELS[(codes >> (i / 2 * 8 + (1 - i % 2) * 4)) & 15], magnitude);
    }
};

template <class Block, class Out>
__device__ __forceinline__ void dequantize(const u8 *bytes, Out *out, u64 count) {
    u64 at = 8 * thread_number();
    if (at >= count) return;
    int left = count - at < 8 ? (int)(count - at) : 8;
    float numbers[8];
    Block::eight(bytes + at / Block::NUMBERS * Block::BYTES, (int)(at % Block::NUMBERS), left, numbers);
    if (left == 8) {
        store_eight(out + at, numbers);
    } else {
        for (int i = 0; i < left; i++) store_one(out + at + i, numbers[i]);
    }
}

// `count` numbers of whole blocks at `bytes`, which is even (of f32, a multiple of 4); `out` is a multiple of 16.
#define KERNELS(Block, name)                                                                             \
    extern "C" __global__ void dequantize_##name##_f32(const u8 *bytes, float *out, u64 count) {         \
        dequantize<Block>(bytes, out, count);                                                            \
    }                                                                                                    \
    extern "C" __global__ void dequantize_##name##_bf16(const u8 *bytes, u16 *out, u64 count) {          \
        dequantize<Block>(bytes, out, count);                                                            \
    }

KERNELS(F32, f32)
KERNELS(F16, f16)
KERNELS(BF16, bf16)
KERNELS(Q4_0, q4_0)
KERNELS(Q4_1, q4_1)
KERNELS(Q5_0, q5_0)
KERNELS(Q5_1, q5_1)
KERNELS(Q8_0, q8_0)
KERNELS(Q2K, q2k)
KERNELS(Q3K, q3k)
KERNELS(Q4K, q4k)
KERNELS(Q5K, q5k)
KERNELS(Q6K, q6k)
KERNELS(IQ4_NL, iq4_nl)
KERNELS(IQ4_XS, iq4_xs)
KERNELS(NF4, nf4)
