// NVIDIA's libraries without a GPU: what `src/device/nvidia` calls of the driver, of cuBLAS and of NVRTC, in one library. The
// source that NVRTC is given is compiled for the CPU (host.h), and cuBLAS multiplies by columns as its manual has it.
//
// It is stricter than a GPU where that finds mistakes: a call without a current context or with a handle that is none is refused;
// fresh memory is NaN, with a guard behind it; what may wait (copies, zeros, products) waits until a kernel or someone who asks
// for it makes it happen. What it refuses it names on stderr.
//
// Built with SOURCES, the folder of this file, and KEPT, where compiled programs go. FAKE_CUDA_MEMORY: bytes that the GPU has;
// FAKE_CUDA_PAGEABLE: it reads the CPU's memory by itself; FAKE_CUDA_VERSION: the driver's CUDA, as 12040;
// FAKE_NVRTC_VERSION: NVRTC's, as 13000; FAKE_NVRTC_NEWEST: the last architecture that NVRTC knows.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

using Address = uint64_t;
using HostLaunch = int (*)(const char *, const unsigned *, unsigned, unsigned, void **);

// CUresult
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
static constexpr size_t GUARD = 256, ALIGNMENT = 512;
static constexpr unsigned PLAIN_SHARED = 48 << 10, MOST_SHARED = 227 << 10;

struct Module { HostLaunch run; };
struct Function { HostLaunch run; std::string name; unsigned most_shared; };
struct Compilation { std::string name, source, code, ptx, log; };

static int context, stream, blas; // Their addresses are the handles.
static thread_local void *current = nullptr;
static bool initialized = false, stream_is_open = false, blas_has_stream = false, blas_has_workspace = false;
static unsigned retained = 0;
static std::map<Address, size_t> device_memory, pinned_memory;
static std::deque<std::function<void()>> waiting;
static std::vector<Module *> modules;
static std::vector<Function *> functions;

// Events: moments in the order of the stream, in milliseconds.
struct Event { double milliseconds; bool recorded; };
static std::vector<Event *> events;
static bool is_event(void *handle) { return std::find(events.begin(), events.end(), (Event *)handle) != events.end(); }

static int refuse(int code, const char *function, const char *why) {
    fprintf(stderr, "fake CUDA: %s: %s\n", function, why);
    return code;
}
#define REFUSE(code, why) return refuse(code, __func__, why)
#define NEED(condition) if (!(condition)) REFUSE(INVALID_VALUE, #condition)
#define NEED_CONTEXT if (!initialized || current != &context) REFUSE(INVALID_CONTEXT, "no current context")
#define NEED_STREAM(handle) if (!stream_is_open || (handle) != &stream) REFUSE(INVALID_HANDLE, "no stream of this context")

static bool within(const std::map<Address, size_t> &blocks, Address address, size_t bytes) {
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return false;
    auto block = std::prev(next);
    return address - block->first <= block->second && bytes <= block->second - (address - block->first);
}

static void run_waiting() {
    for (; !waiting.empty(); waiting.pop_front()) waiting.front()();
}

static bool guards_are_whole() {
    for (auto [address, bytes] : device_memory)
        for (size_t i = 0; i < GUARD; i++)
            if (((unsigned char *)address)[bytes + i] != 0x5a) return false;
    return true;
}

static Address take(size_t bytes) {
    Address address = (Address)aligned_alloc(ALIGNMENT, (bytes + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset((void *)address, 0xff, bytes);
    memset((void *)(address + bytes), 0x5a, GUARD);
    return address;
}

static size_t total_memory() {
    const char *bytes = getenv("FAKE_CUDA_MEMORY");
    return bytes ? strtoull(bytes, nullptr, 10) : (size_t)2 << 30;
}

static size_t taken_memory() {
    size_t sum = 0;
    for (auto [address, bytes] : device_memory) sum += bytes;
    return sum;
}

API cuInit(unsigned flags) { NEED(flags == 0); initialized = true; return SUCCESS; }
API cuDriverGetVersion(int *version) {
    const char *number = getenv("FAKE_CUDA_VERSION");
    *version = number ? atoi(number) : 13000;
    return SUCCESS;
}
API cuGetErrorName(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
          : code == 1 ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
API cuGetErrorString(int code, const char **text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "refused"; return SUCCESS; }
API cuDeviceGetCount(int *count) { NEED(initialized); *count = 1; return SUCCESS; }
API cuDeviceGet(int *device, int number) {
    NEED(initialized);
    if (number != 0) REFUSE(INVALID_DEVICE, "there is one GPU");
    *device = 7;
    return SUCCESS;
}
API cuDeviceGetName(char *name, int length, int device) {
    NEED(device == 7);
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int device) {
    NEED(device == 7);
    // Compute capability; whether it reads pageable memory.
    switch (attribute) {
        case 75: *value = 9; return SUCCESS;
        case 76: *value = 0; return SUCCESS;
        case 88: *value = getenv("FAKE_CUDA_PAGEABLE") != nullptr; return SUCCESS;
        default: REFUSE(INVALID_VALUE, "an attribute that is not known here");
    }
}
API cuDevicePrimaryCtxRetain(void **handle, int device) { NEED(device == 7); retained++; *handle = &context; return SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int device) {
    NEED(device == 7 && retained > 0);
    if (--retained == 0 && (!device_memory.empty() || !pinned_memory.empty() || stream_is_open || !modules.empty() || !events.empty())) {
        REFUSE(INVALID_VALUE, "something was left open");
    }
    return SUCCESS;
}
API cuCtxSetCurrent(void *handle) { NEED(handle == &context && retained > 0); current = handle; return SUCCESS; }

API cuStreamCreate(void **handle, unsigned flags) {
    NEED_CONTEXT; NEED(flags <= 1 && !stream_is_open);
    stream_is_open = true;
    *handle = &stream;
    return SUCCESS;
}
API cuStreamSynchronize(void *handle) {
    NEED_CONTEXT; NEED_STREAM(handle);
    run_waiting();
    NEED(guards_are_whole());
    return SUCCESS;
}
API cuStreamDestroy_v2(void *handle) { NEED_CONTEXT; NEED_STREAM(handle); run_waiting(); stream_is_open = false; return SUCCESS; }

API cuEventCreate(void **handle, unsigned flags) {
    NEED_CONTEXT; NEED(flags == 0);
    events.push_back(new Event{0, false});
    *handle = events.back();
    return SUCCESS;
}
API cuEventRecord(void *handle, void *queue) {
    NEED_CONTEXT; NEED_STREAM(queue); NEED(is_event(handle));
    waiting.push_back([event = (Event *)handle] {
        auto now = std::chrono::steady_clock::now().time_since_epoch();
        *event = {std::chrono::duration<double, std::milli>(now).count(), true};
    });
    return SUCCESS;
}
API cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    NEED_CONTEXT; NEED(is_event(from) && is_event(to) && ((Event *)from)->recorded && ((Event *)to)->recorded);
    *milliseconds = (float)(((Event *)to)->milliseconds - ((Event *)from)->milliseconds);
    return SUCCESS;
}
API cuEventDestroy_v2(void *handle) {
    NEED_CONTEXT; NEED(is_event(handle));
    events.erase(std::find(events.begin(), events.end(), (Event *)handle));
    delete (Event *)handle;
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    NEED_CONTEXT;
    *total = total_memory();
    *free = *total - taken_memory();
    return SUCCESS;
}
API cuMemAlloc_v2(Address *address, size_t bytes) {
    NEED_CONTEXT; NEED(bytes > 0);
    if (taken_memory() + bytes > total_memory()) return OUT_OF_MEMORY;
    *address = take(bytes);
    device_memory[*address] = bytes;
    return SUCCESS;
}
API cuMemFree_v2(Address address) {
    NEED_CONTEXT; NEED(waiting.empty() && guards_are_whole());
    NEED(device_memory.erase(address) == 1);
    free((void *)address);
    return SUCCESS;
}
API cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    NEED_CONTEXT; NEED(bytes > 0);
    *address = (void *)take(bytes);
    pinned_memory[(Address)*address] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void *address) {
    NEED_CONTEXT; NEED(waiting.empty());
    NEED(pinned_memory.erase((Address)address) == 1);
    free(address);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *handle) {
    NEED_CONTEXT; NEED_STREAM(handle); NEED(bytes > 0 && within(device_memory, to, bytes));
    if (getenv("FAKE_CUDA_PAGEABLE")) {
        waiting.push_back([=] { memcpy((void *)to, from, bytes); }); // The worst that a GPU that reads it by itself may do.
        return SUCCESS;
    }
    std::vector<char> staged((const char *)from, (const char *)from + bytes);
    waiting.push_back([to, staged] { memcpy((void *)to, staged.data(), staged.size()); });
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *handle) {
    NEED_CONTEXT; NEED_STREAM(handle); NEED(bytes > 0 && within(device_memory, from, bytes));
    waiting.push_back([=] { memcpy(to, (void *)from, bytes); });
    return SUCCESS;
}
API cuMemcpyAsync(Address to, Address from, size_t bytes, void *handle) {
    NEED_CONTEXT; NEED_STREAM(handle); NEED(bytes > 0);
    NEED(within(device_memory, to, bytes) || within(pinned_memory, to, bytes));
    NEED(within(device_memory, from, bytes) || within(pinned_memory, from, bytes));
    waiting.push_back([=] { memmove((void *)to, (void *)from, bytes); });
    return SUCCESS;
}
API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *handle) {
    NEED_CONTEXT; NEED_STREAM(handle); NEED(bytes > 0 && within(device_memory, to, bytes));
    waiting.push_back([=] { memset((void *)to, value, bytes); });
    return SUCCESS;
}

API cuModuleLoadData(void **module, const void *image) {
    NEED_CONTEXT;
    // A line that says what it is, and a line with the library. The GPU's own code has no zero behind it.
    const char *path = strchr((const char *)image, '\n') + 1;
    void *library = dlopen(std::string(path, strchr(path, '\n')).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) REFUSE(INVALID_VALUE, dlerror());
    modules.push_back(new Module{(HostLaunch)dlsym(library, "host_launch")});
    *module = modules.back();
    return SUCCESS;
}
API cuModuleUnload(void *module) {
    NEED_CONTEXT;
    auto found = std::find(modules.begin(), modules.end(), (Module *)module);
    NEED(found != modules.end());
    modules.erase(found);
    delete (Module *)module;
    return SUCCESS;
}
API cuModuleGetFunction(void **function, void *module, const char *name) {
    NEED_CONTEXT;
    functions.push_back(new Function{((Module *)module)->run, name, PLAIN_SHARED});
    *function = functions.back();
    return SUCCESS;
}
API cuFuncSetAttribute(void *function, int attribute, int value) {
    NEED_CONTEXT; NEED(attribute == 8 && value >= 0 && (unsigned)value <= MOST_SHARED);
    ((Function *)function)->most_shared = value;
    return SUCCESS;
}
API cuLaunchKernel(void *handle, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void *queue, void **arguments, void **extra) {
    Function *function = (Function *)handle;
    NEED_CONTEXT; NEED_STREAM(queue); NEED(extra == nullptr && block_y == 1 && block_z == 1);
    NEED(x > 0 && x <= 0x7fffffff && y > 0 && y <= 65535 && z > 0 && z <= 65535 && block_x > 0 && block_x <= 1024);
    NEED(shared <= function->most_shared);
    run_waiting();
    const unsigned grid[3] = {x, y, z};
    if (function->run(function->name.c_str(), grid, block_x, shared, arguments) != 0) REFUSE(500, function->name.c_str());
    return SUCCESS;
}

// cuBLAS: matrices by columns, `ld` numbers from column to column.
API cublasCreate_v2(void **handle) { NEED_CONTEXT; *handle = &blas; return SUCCESS; }
API cublasDestroy_v2(void *handle) { NEED_CONTEXT; NEED(handle == &blas); blas_has_stream = false; return SUCCESS; }
API cublasSetStream_v2(void *handle, void *queue) { NEED(handle == &blas); NEED_STREAM(queue); blas_has_stream = true; blas_has_workspace = false; return SUCCESS; }
// A stream takes an own workspace back, so that it is set behind it.
API cublasSetWorkspace_v2(void *handle, void *address, size_t bytes) {
    NEED(handle == &blas && blas_has_stream && (Address)address % 256 == 0 && within(device_memory, (Address)address, bytes));
    blas_has_workspace = true;
    return SUCCESS;
}
API cublasGetProperty(int which, int *value) { NEED(which >= 0 && which < 3); *value = which == 0 ? 13 : which; return SUCCESS; }
API cublasLtGetProperty(int which, int *value) { return cublasGetProperty(which, value); }
extern "C" __attribute__((visibility("default"))) const char *cublasGetStatusName(int) { return "CUBLAS_STATUS_OTHER"; }
extern "C" __attribute__((visibility("default"))) const char *nvrtcGetErrorString(int code) {
    return code == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "NVRTC_ERROR_COMPILATION";
}
API cublasSetMathMode(void *handle, int mode) { NEED(handle == &blas && mode == 16); return SUCCESS; }

enum { R_32F = 0, R_16BF = 14 };

static float number(const void *numbers, int type, size_t place) {
    if (type == R_32F) return ((const float *)numbers)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)numbers)[place] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void set_number(void *numbers, int type, size_t place, float value) {
    if (type == R_32F) {
        ((float *)numbers)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)numbers)[place] = value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

API cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const float *beta, void *c, int type_c, int ldc, int compute, int algorithm) {
    NEED_CONTEXT; NEED(handle == &blas && blas_has_stream && blas_has_workspace);
    NEED((op_a == 0 || op_a == 1) && (op_b == 0 || op_b == 1) && m >= 0 && n >= 0 && k >= 0);
    NEED(compute == 68 && algorithm == -1); // CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT
    NEED(type_a == type_b && (type_a == R_32F || type_a == R_16BF) && (type_c == R_32F || type_c == type_a));
    int rows_a = op_a == 0 ? m : k, rows_b = op_b == 0 ? k : n, columns_a = op_a == 0 ? k : m, columns_b = op_b == 0 ? n : k;
    NEED(lda >= std::max(1, rows_a) && ldb >= std::max(1, rows_b) && ldc >= std::max(1, m));
    auto size = [](int type) { return type == R_32F ? 4 : 2; };
    auto bytes = [&](int rows, int columns, int ld, int type) { return size(type) * ((size_t)ld * (columns - 1) + rows); };
    if (m == 0 || n == 0) return SUCCESS;
    NEED(k == 0 || within(device_memory, (Address)a, bytes(rows_a, columns_a, lda, type_a)));
    NEED(k == 0 || within(device_memory, (Address)b, bytes(rows_b, columns_b, ldb, type_b)));
    NEED(within(device_memory, (Address)c, bytes(m, n, ldc, type_c)));
    waiting.push_back([=, alpha = *alpha, beta = *beta] {
        std::vector<float> left((size_t)m * k), right((size_t)n * k);
        for (int i = 0; i < m; i++)
            for (int p = 0; p < k; p++)
                left[(size_t)i * k + p] = number(a, type_a, op_a == 0 ? (size_t)p * lda + i : (size_t)i * lda + p);
        for (int j = 0; j < n; j++)
            for (int p = 0; p < k; p++)
                right[(size_t)j * k + p] = number(b, type_b, op_b == 0 ? (size_t)j * ldb + p : (size_t)p * ldb + j);
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                float sum = 0;
                for (int p = 0; p < k; p++) sum += left[(size_t)i * k + p] * right[(size_t)j * k + p];
                size_t place = (size_t)j * ldc + i;
                set_number(c, type_c, place, alpha * sum + (beta == 0 ? 0 : beta * number(c, type_c, place)));
            }
    });
    return SUCCESS;
}

// NVRTC: 0 is success, 5 an invalid option, 6 a failed compilation.
static const int ARCHITECTURES[] = {70, 75, 80, 86, 89, 90};

static int newest() {
    const char *number = getenv("FAKE_NVRTC_NEWEST");
    return number ? atoi(number) : 90;
}

API nvrtcGetNumSupportedArchs(int *count) {
    *count = 0;
    for (int architecture : ARCHITECTURES) *count += architecture <= newest();
    return 0;
}
API nvrtcGetSupportedArchs(int *all) {
    for (int architecture : ARCHITECTURES)
        if (architecture <= newest()) *all++ = architecture;
    return 0;
}
API nvrtcVersion(int *major, int *minor) {
    const char *number = getenv("FAKE_NVRTC_VERSION");
    int version = number ? atoi(number) : 13000;
    *major = version / 1000, *minor = version % 1000 / 10;
    return 0;
}
API nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *, const char *const *) {
    NEED(headers == 0 && name);
    *program = new Compilation{name, source, "", ""};
    return 0;
}
API nvrtcDestroyProgram(void **program) { delete (Compilation *)*program; *program = nullptr; return 0; }
API nvrtcCompileProgram(void *handle, int count, const char *const *options) {
    Compilation &program = *(Compilation *)handle;
    NEED(count == 1);
    std::string option = options[0], code = "--gpu-architecture=sm_", ptx = "--gpu-architecture=compute_";
    bool is_code = option.rfind(code, 0) == 0;
    if (!is_code && option.rfind(ptx, 0) != 0) REFUSE(5, options[0]);
    int architecture = atoi(option.c_str() + (is_code ? code : ptx).size());
    // The GPU's own code, where this compiler makes it.
    if (architecture != std::min(90, newest()) || is_code != (newest() >= 90)) REFUSE(5, options[0]);
    // The source as it was given, and what the kernels' shell says of their names.
    std::string name = program.name.substr(0, program.name.rfind(".cu")), line;
    static unsigned compiled = 0;
    std::string file = std::string(KEPT) + "/" + name + "-" + std::to_string(getpid()) + "-" + std::to_string(compiled++);
    std::ifstream shell(std::string(SOURCES) + "/" + name + ".cpp");
    std::ofstream all(file + ".cpp");
    all << "#include \"host.h\"\n" << program.source << "\n";
    while (std::getline(shell, line))
        if (line.rfind("#include", 0) != 0) all << line << "\n";
    all.close();
    std::string command = "c++ -std=c++17 -O2 -pthread -shared -fPIC -ffp-contract=off -fno-strict-aliasing -w -I " SOURCES
                          " " + file + ".cpp -o " + file + ".so 2>" + file + ".log";
    if (system(command.c_str()) != 0) {
        std::stringstream log;
        log << std::ifstream(file + ".log").rdbuf();
        program.log = log.str();
        return 6;
    }
    (is_code ? program.code : program.ptx) = (is_code ? "\x7f" "fake code\n" : "fake PTX\n") + file + ".so\n";
    return 0;
}
// Of code, its bytes; of text, a zero behind it. There is none of what was not asked for.
static int give(const std::string &text, char *to, size_t end = 1) { memcpy(to, text.c_str(), text.size() + end); return 0; }
API nvrtcGetCUBINSize(void *program, size_t *bytes) { *bytes = ((Compilation *)program)->code.size(); return 0; }
API nvrtcGetCUBIN(void *program, char *to) { return give(((Compilation *)program)->code, to, 0); }
API nvrtcGetPTXSize(void *program, size_t *bytes) { *bytes = ((Compilation *)program)->ptx.size() + 1; return 0; }
API nvrtcGetPTX(void *program, char *to) { return give(((Compilation *)program)->ptx, to); }
API nvrtcGetProgramLogSize(void *program, size_t *bytes) { *bytes = ((Compilation *)program)->log.size() + 1; return 0; }
API nvrtcGetProgramLog(void *program, char *to) { return give(((Compilation *)program)->log, to); }
