// What lets a C++ compiler take CUDA device code for a CPU: the words and functions that our kernels use, and a GPU that runs
// them.
//
// The threads of a block are fibers on one OS thread: each runs until it waits for others, at a barrier or with its warp.
// Blocks run on a few OS threads. It is stricter than a GPU where that finds mistakes: dynamic shared memory starts as NaN and
// has a guard behind it, copies that are asynchronous come as late as they may, warps and lanes take turns in changing order,
// and threads that wait for what will not come are named.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <thread>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Two libraries of kernels in one process must not see each other's functions.
#pragma GCC visibility push(hidden)

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// In a function this says static as well. `extern __shared__ uint4 dynamic_shared[];` finds the array below: dynamic shared
// memory goes by that name and type in all kernels.
#define __shared__ thread_local

struct dim3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static thread_local dim3 blockIdx, threadIdx, blockDim, gridDim;
static constexpr unsigned warpSize = 32;

inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
// The compiler is told not to join them.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

namespace host {
constexpr unsigned WARP = 32, MOST_THREADS = 1024, OS_THREADS = 2;
constexpr size_t PAGE = 4096, STACK = 64 << 10;
// What a Hopper block can have at most, and what nobody may write behind the bytes of a launch.
constexpr unsigned MOST_SHARED = 227 << 10, GUARD = 1024;
} // namespace host

alignas(1024) static thread_local uint4 dynamic_shared[(host::MOST_SHARED + host::GUARD) / sizeof(uint4)];

namespace host {

// Where a fiber goes on.
#if defined(__x86_64__)
// Its stack pointer; the registers that a function must keep lie there (System V ABI).
using Context = void *;

__attribute__((naked, noinline)) static void switch_to(Context *, const Context *) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov (%rsi), %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

static void begin_at(Context *context, char *stack, void (*entry)()) {
    // `ret` takes the entry from an address that is a multiple of 16: the alignment that a call leaves.
    void **top = (void **)(stack + STACK - 16);
    top[0] = (void *)entry;
    top[1] = nullptr;
    *context = top - 6;
}
#else
using Context = ucontext_t;

static void switch_to(Context *from, const Context *to) { swapcontext(from, to); }

static void begin_at(Context *context, char *stack, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}
#endif

// What the lanes of a warp do when all of them have come: reads and writes the arguments of each lane in the mask.
using Meeting = void (*)(void *const *arguments, unsigned mask);

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, zeros;
};

enum class State { READY, AT_BARRIER, AT_MEETING, DONE };

struct Fiber {
    Context context;
    State state;
    Meeting meeting;
    const char *name;
    unsigned mask;
    void *arguments;
    // Groups of copies that are under way, the last not yet closed.
    std::vector<std::vector<Copy>> copies;
};

// A block of threads, one at a time.
struct Block {
    std::vector<Fiber> fibers;
    char *stacks;
    size_t stacks_ready = 0;
    Context scheduler;
    const char *kernel;
    unsigned threads, shared_bytes, turn;
    void (*body)(const void *);
    const void *closure;

    Block() : fibers(MOST_THREADS) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *memory = mmap(nullptr, MOST_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks = (char *)memory;
    }

    [[noreturn]] void fail(const char *what) {
        fprintf(stderr, "%s, block (%u, %u, %u): %s\n", kernel, blockIdx.x, blockIdx.y, blockIdx.z, what);
        for (unsigned t = 0; t < threads; t++) {
            const char *where[] = {"runs", "waits at __syncthreads", nullptr, "has ended"};
            const Fiber &fiber = fibers[t];
            const char *text = fiber.state == State::AT_MEETING ? fiber.name : where[(int)fiber.state];
            bool same = t > 0 && fiber.state == fibers[t - 1].state && fiber.meeting == fibers[t - 1].meeting;
            if (!same) fprintf(stderr, "  from thread %u on: %s\n", t, text);
        }
        abort();
    }

    void run(dim3 index);
    void resume(unsigned thread);
    bool run_warp(unsigned warp);
    bool meet(unsigned first, unsigned lanes);
    bool release();
};

static thread_local Block *block;
static thread_local Fiber *current;

static void enter() {
    block->body(block->closure);
    current->state = State::DONE;
    switch_to(&current->context, &block->scheduler);
}

// Gives way until the state is READY again.
inline void wait(State state) {
    Fiber *self = current;
    self->state = state;
    switch_to(&self->context, &block->scheduler);
}

// Until all lanes of the mask have come to the same meeting.
template <class Arguments> void meet(const char *name, unsigned mask, Meeting meeting, Arguments *arguments) {
    unsigned lane = threadIdx.x % WARP;
    if (!(mask >> lane & 1)) block->fail("a lane is not in its own mask");
    current->meeting = meeting;
    current->name = name;
    current->mask = mask;
    current->arguments = arguments;
    wait(State::AT_MEETING);
}

inline void Block::resume(unsigned thread) {
    threadIdx = {thread, 0, 0};
    current = &fibers[thread];
    switch_to(&scheduler, &current->context);
}

// Whether some lanes of a warp (of those that there are) had waited for each other, and no longer do.
inline bool Block::meet(unsigned first, unsigned lanes) {
    for (unsigned lane = 0; lane < lanes; lane++) {
        Fiber &leader = fibers[first + lane];
        if (leader.state != State::AT_MEETING) continue;
        void *arguments[WARP] = {};
        bool complete = true;
        for (unsigned i = 0; i < lanes && complete; i++) {
            const Fiber &other = fibers[first + i];
            if (!(leader.mask >> i & 1)) continue;
            complete = other.state == State::AT_MEETING && other.meeting == leader.meeting && other.mask == leader.mask;
            arguments[i] = other.arguments;
        }
        if (!complete) continue;
        unsigned mask = lanes == WARP ? leader.mask : leader.mask & ((1u << lanes) - 1);
        leader.meeting(arguments, mask);
        for (unsigned i = 0; i < lanes; i++) {
            if (mask >> i & 1) fibers[first + i].state = State::READY;
        }
        return true;
    }
    return false;
}

// Runs a warp until none of its lanes can go on without other warps; whether any did.
inline bool Block::run_warp(unsigned warp) {
    unsigned first = warp * WARP, lanes = threads - first < WARP ? threads - first : WARP;
    for (bool moved = false;; moved = true) {
        bool ran = false;
        // Forwards, then backwards: a missing __syncwarp shows in one of them.
        bool backwards = turn++ % 2;
        for (unsigned i = 0; i < lanes; i++) {
            unsigned thread = first + (backwards ? lanes - 1 - i : i);
            if (fibers[thread].state != State::READY) continue;
            resume(thread);
            ran = true;
        }
        if (!meet(first, lanes) && !ran) return moved;
    }
}

// Whether threads of the block are left; lets them pass when all of them are at the barrier.
inline bool Block::release() {
    unsigned waiting = 0, done = 0;
    for (unsigned t = 0; t < threads; t++) {
        waiting += fibers[t].state == State::AT_BARRIER;
        done += fibers[t].state == State::DONE;
    }
    if (waiting + done < threads) fail("its threads wait for each other at different places");
    for (unsigned t = 0; t < threads; t++) {
        if (fibers[t].state == State::AT_BARRIER) fibers[t].state = State::READY;
    }
    return waiting > 0;
}

inline void Block::run(dim3 index) {
    blockIdx = index;
    char *end = (char *)dynamic_shared + shared_bytes;
    memset(dynamic_shared, 0xff, shared_bytes);
    memset(end, 0xa5, GUARD);
    for (; stacks_ready < threads; stacks_ready++) mprotect(stacks + stacks_ready * (STACK + PAGE), PAGE, PROT_NONE);
    for (unsigned t = 0; t < threads; t++) {
        fibers[t].state = State::READY;
        fibers[t].copies.assign(1, {});
        begin_at(&fibers[t].context, stacks + t * (STACK + PAGE) + PAGE, enter);
    }
    unsigned warps = (threads + WARP - 1) / WARP;
    turn = index.x + index.y;
    do {
        // The first warp is another one each time, and so is the direction.
        unsigned start = turn % warps, step = turn / 2 % 2 ? 1 : warps - 1;
        for (unsigned i = 0; i < warps; i++) run_warp((start + i * step) % warps);
        turn += 5;
    } while (release());
    for (unsigned t = 0; t < threads; t++) {
        const auto &copies = fibers[t].copies;
        if (copies.size() > 1 || !copies[0].empty()) fail("copies are under way at its end");
    }
    for (unsigned i = 0; i < GUARD; i++) {
        if ((unsigned char)end[i] != 0xa5) fail("something was written behind the dynamic shared memory");
    }
}

// Blocks that no OS thread uses at the moment: their stacks are not free to make.
static std::mutex spare_mutex;
static std::vector<Block *> spare;

inline Block *take_block() {
    std::lock_guard<std::mutex> lock(spare_mutex);
    if (spare.empty()) return new Block;
    Block *taken = spare.back();
    spare.pop_back();
    return taken;
}

inline void give_block(Block *given) {
    std::lock_guard<std::mutex> lock(spare_mutex);
    spare.push_back(given);
}

template <class Kernel>
void launch(const char *name, dim3 grid, unsigned threads, unsigned shared_bytes, const Kernel &kernel) {
    if (threads == 0 || threads > MOST_THREADS || shared_bytes > MOST_SHARED || grid.y > 65535 || grid.z > 65535) {
        fprintf(stderr, "%s: no GPU has blocks of %u threads and %u bytes in this grid\n", name, threads, shared_bytes);
        abort();
    }
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    std::atomic<uint64_t> next{0};
    auto work = [&] {
        block = take_block();
        block->kernel = name;
        block->threads = threads;
        block->shared_bytes = shared_bytes;
        block->body = [](const void *closure) { (*(const Kernel *)closure)(); };
        block->closure = &kernel;
        blockDim = {threads, 1, 1};
        gridDim = grid;
        for (uint64_t i; (i = next++) < blocks;) {
            block->run({(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)});
        }
        give_block(block);
    };
    std::vector<std::thread> helpers;
    // Not for a few threads of work: starting one takes as long.
    for (unsigned i = 1; i < OS_THREADS && i < blocks && blocks * threads >= 4096; i++) helpers.emplace_back(work);
    work();
    for (auto &helper : helpers) helper.join();
}

// A launch as cuLaunchKernel takes it; each argument by a pointer.
struct Launch {
    const char *name;
    const unsigned *grid;
    unsigned threads, shared_bytes;
    void **arguments;

    template <class... A> void run(void (*kernel)(A...)) const { run(kernel, std::index_sequence_for<A...>()); }

    template <class... A, size_t... I> void run(void (*kernel)(A...), std::index_sequence<I...>) const {
        void **args = arguments;
        launch(name, {grid[0], grid[1], grid[2]}, threads, shared_bytes, [=] { kernel(*(A *)args[I]...); });
    }
};

// Shuffles: what each lane gives, and whose it gets.
template <class T> struct Shuffle {
    T value, result;
    unsigned source;
    static void meeting(void *const *arguments, unsigned mask) {
        for (unsigned lane = 0; lane < WARP; lane++) {
            if (!(mask >> lane & 1)) continue;
            Shuffle *mine = (Shuffle *)arguments[lane];
            // From a lane that does not take part comes no number: NaN, where there is one.
            if (mask >> mine->source & 1) mine->result = ((Shuffle *)arguments[mine->source])->value;
            else memset(&mine->result, 0xff, sizeof(T));
        }
    }
};

template <class T> T shuffle(const char *name, unsigned mask, T value, unsigned source) {
    Shuffle<T> arguments = {value, value, source};
    meet(name, mask, Shuffle<T>::meeting, &arguments);
    return arguments.result;
}

struct Ballot {
    bool yes;
    unsigned all;
    static void meeting(void *const *arguments, unsigned mask) {
        unsigned all = 0;
        for (unsigned i = 0; i < WARP; i++) all |= (mask >> i & 1 && ((Ballot *)arguments[i])->yes) << i;
        for (unsigned i = 0; i < WARP; i++) {
            if (mask >> i & 1) ((Ballot *)arguments[i])->all = all;
        }
    }
};

inline void no_exchange(void *const *, unsigned) {}

inline float bf16_at(unsigned word, unsigned half) { return __uint_as_float(half ? word & 0xffff0000 : word << 16); }

// Numbers of `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`: two in each word of a and b. Fragments: PTX ISA, "Matrix
// Fragments for mma.m16n8k16 with floating point type".
struct Mma {
    float *d;
    const unsigned *a, *b;
    static void meeting(void *const *arguments, unsigned mask) {
        typedef float Row __attribute__((vector_size(32)));
        if (mask != 0xffffffff) block->fail("mma without all lanes");
        float a[16][16], sums[16][8], b[16][8];
        for (unsigned lane = 0; lane < WARP; lane++) {
            const Mma &mine = *(Mma *)arguments[lane];
            unsigned group = lane / 4, pair = lane % 4 * 2;
            for (unsigned i = 0; i < 8; i++) {
                a[group + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = bf16_at(mine.a[i / 2], i % 2);
            }
            for (unsigned i = 0; i < 4; i++) {
                b[pair + i % 2 + i / 2 * 8][group] = bf16_at(mine.b[i / 2], i % 2);
                sums[group + i / 2 * 8][pair + i % 2] = mine.d[i];
            }
        }
        for (unsigned m = 0; m < 16; m++) {
            Row sum, row;
            memcpy(&sum, sums[m], sizeof sum);
            for (unsigned k = 0; k < 16; k++) {
                memcpy(&row, b[k], sizeof row);
                sum += a[m][k] * row;
            }
            memcpy(sums[m], &sum, sizeof sum);
        }
        for (unsigned lane = 0; lane < WARP; lane++) {
            float *d = ((Mma *)arguments[lane])->d;
            for (unsigned i = 0; i < 4; i++) d[i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
};

// d += a·b
inline void mma_m16n8k16_bf16(float *d, const unsigned *a, const unsigned *b) {
    Mma arguments = {d, a, b};
    meet("mma", 0xffffffff, Mma::meeting, &arguments);
}

// `ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16`: each eight lanes name the rows of a matrix; of each matrix a lane gets
// two numbers side by side of row lane/4, or of its column if transposed (PTX ISA, "Warp-level matrix load instruction:
// ldmatrix").
template <bool transposed> struct Ldmatrix {
    unsigned *words;
    const void *row;
    static void meeting(void *const *arguments, unsigned mask) {
        if (mask != 0xffffffff) block->fail("ldmatrix without all lanes");
        const uint16_t *rows[WARP];
        for (unsigned i = 0; i < WARP; i++) {
            rows[i] = (const uint16_t *)((Ldmatrix *)arguments[i])->row;
            if ((uintptr_t)rows[i] % 16 != 0) block->fail("ldmatrix from an address that is no multiple of 16");
        }
        for (unsigned lane = 0; lane < WARP; lane++) {
            unsigned major = lane / 4, minor = lane % 4 * 2;
            for (unsigned i = 0; i < 4; i++) {
                const uint16_t *const *matrix = rows + 8 * i;
                unsigned first = transposed ? matrix[minor][major] : matrix[major][minor];
                unsigned second = transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
                ((Ldmatrix *)arguments[lane])->words[i] = first | second << 16;
            }
        }
    }
};

template <bool transposed> void ldmatrix_x4(unsigned *words, const void *row) {
    Ldmatrix<transposed> arguments = {words, row};
    meet(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffff, Ldmatrix<transposed>::meeting, &arguments);
}

// cp.async of `bytes`, of which `used` are read and the others zero.
inline void copy_async(void *to, const void *from, unsigned used, unsigned bytes = 16) {
    if ((uintptr_t)to % bytes != 0 || (uintptr_t)from % bytes != 0) block->fail("cp.async at an address that is not aligned");
    current->copies.back().push_back({to, from, used, bytes - used});
}

inline void close_copies() { current->copies.emplace_back(); }

// Until no more than `left` groups are under way: only now do the bytes come.
inline void await_copies(unsigned left) {
    auto &groups = current->copies;
    while (groups.size() > left + 1) {
        for (const Copy &copy : groups.front()) {
            memcpy(copy.to, copy.from, copy.bytes);
            memset((char *)copy.to + copy.bytes, 0, copy.zeros);
        }
        groups.erase(groups.begin());
    }
}

} // namespace host

inline void __syncthreads() { host::wait(host::State::AT_BARRIER); }
inline void __syncwarp(unsigned mask = 0xffffffff) { host::meet("__syncwarp", mask, host::no_exchange, (void *)nullptr); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return host::shuffle("__shfl_sync", mask, value, (threadIdx.x % 32 & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with) {
    return host::shuffle("__shfl_xor_sync", mask, value, (threadIdx.x % 32) ^ with);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = threadIdx.x % 32, place = lane % width;
    return host::shuffle("__shfl_down_sync", mask, value, place + by < (unsigned)width ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool yes) {
    host::Ballot arguments = {yes, 0};
    host::meet("__ballot_sync", mask, host::Ballot::meeting, &arguments);
    return arguments.all;
}
inline bool __any_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) != 0; }

// The entry of a library of kernels: 0 when the kernel ran, 1 when there is none of this name.
//     HOST_LAUNCH(KERNEL(first) KERNEL(second))
#define KERNEL(function)                                                                                                  \
    if (strcmp(kernel, #function) == 0) {                                                                                 \
        host::Launch{#function, grid, block, shared_bytes, args}.run(function);                                           \
        return 0;                                                                                                         \
    }
#define HOST_LAUNCH(kernels)                                                                                              \
    extern "C" __attribute__((visibility("default"))) int host_launch(                                                    \
        const char *kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes, void **args) {                 \
        kernels return 1;                                                                                                 \
    }

// For programs with a `main`: one row of blocks.
template <class Kernel> void launch(unsigned grid, unsigned block, Kernel kernel) {
    host::launch("a kernel", {grid, 1, 1}, block, 0, kernel);
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
