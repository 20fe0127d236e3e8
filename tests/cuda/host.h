// What lets a C++ compiler take CUDA device code for a CPU: the few words and functions that our kernels use.
//
// Threads of a block run one after the other (`launch`), or side by side where they wait for each other (`launch_together`);
// blocks always one after the other, so that what is shared in a block can be a static variable.
#pragma once
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static

struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static thread_local dim3 blockIdx, threadIdx;
static dim3 blockDim, gridDim;

inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
// The compiler is told not to join them.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }

// A barrier for the threads of a block.
struct Barrier {
    std::mutex mutex;
    std::condition_variable changed;
    unsigned waiting = 0, round = 0;
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        unsigned mine = round;
        if (++waiting == blockDim.x) {
            waiting = 0;
            round++;
            changed.notify_all();
        } else {
            changed.wait(lock, [&] { return round != mine; });
        }
    }
};
static Barrier block_barrier;
inline void __syncthreads() { block_barrier.wait(); }

template <class Kernel> void launch(unsigned grid, unsigned block, Kernel kernel) {
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (unsigned b = 0; b < grid; b++) {
        for (unsigned t = 0; t < block; t++) {
            blockIdx = {b, 0, 0};
            threadIdx = {t, 0, 0};
            kernel();
        }
    }
}

template <class Kernel> void launch_together(unsigned grid, unsigned block, Kernel kernel) {
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (unsigned b = 0; b < grid; b++) {
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < block; t++) {
            threads.emplace_back([=, &kernel] {
                blockIdx = {b, 0, 0};
                threadIdx = {t, 0, 0};
                kernel();
            });
        }
        for (auto &thread : threads) thread.join();
    }
}

// All of stdin, at an address that is a multiple of 16.
inline std::vector<float4> read_input(size_t *bytes) {
    std::vector<float4> buffer(1);
    size_t used = 0;
    for (size_t got; (got = fread((char *)buffer.data() + used, 1, buffer.size() * 16 - used, stdin)) > 0;) {
        used += got;
        if (used == buffer.size() * 16) buffer.resize(2 * buffer.size());
    }
    *bytes = used;
    return buffer;
}

inline void write_output(const void *data, size_t bytes) {
    if (fwrite(data, 1, bytes, stdout) != bytes || fflush(stdout) != 0) exit(3);
}
