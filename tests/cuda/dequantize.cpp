// dequantize KERNEL COUNT: the bytes of blocks from stdin, their numbers to stdout.
#include "host.h"
#include "prelude.cuh"
#include "dequantize.cu"

template <class Out> static int run(void (*kernel)(const u8 *, Out *, u64), u64 count) {
    size_t bytes;
    std::vector<float4> input = read_input(&bytes);
    // What lies behind the numbers must stay as it is.
    std::vector<float4> output(count * sizeof(Out) / 16 + 2);
    memset(output.data(), 0x5a, output.size() * 16);
    unsigned grid = (unsigned)((count + 8 * 256 - 1) / (8 * 256));
    launch(grid, 256, [&] { kernel((const u8 *)input.data(), (Out *)output.data(), count); });
    const u8 *end = (const u8 *)output.data() + count * sizeof(Out);
    for (int i = 0; i < 16; i++) {
        if (end[i] != 0x5a) {
            fprintf(stderr, "the kernel wrote behind its numbers\n");
            return 4;
        }
    }
    write_output(output.data(), count * sizeof(Out));
    return 0;
}

#define TRY(name)                                                                                \
    if (strcmp(argv[1], "dequantize_" #name "_f32") == 0) return run(dequantize_##name##_f32, count); \
    if (strcmp(argv[1], "dequantize_" #name "_bf16") == 0) return run(dequantize_##name##_bf16, count);

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    u64 count = strtoull(argv[2], nullptr, 10);
    TRY(f32) TRY(f16) TRY(bf16) TRY(q4_0) TRY(q4_1) TRY(q5_0) TRY(q5_1) TRY(q8_0)
    TRY(q2k) TRY(q3k) TRY(q4k) TRY(q5k) TRY(q6k)
    fprintf(stderr, "no kernel %s\n", argv[1]);
    return 2;
}
