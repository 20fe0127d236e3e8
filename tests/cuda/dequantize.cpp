// The kernels that read blocks: as a library for the CPU, and as a program.
// dequantize KERNEL COUNT: the bytes of blocks from stdin, their numbers to stdout.
#include "host.h"
#include "prelude.cuh"
#include "dequantize.cu"

#define EACH_TYPE(name) KERNEL(dequantize_##name##_f32) KERNEL(dequantize_##name##_bf16)

HOST_LAUNCH(
    EACH_TYPE(f32) EACH_TYPE(f16) EACH_TYPE(bf16) EACH_TYPE(q4_0) EACH_TYPE(q4_1) EACH_TYPE(q5_0) EACH_TYPE(q5_1)
    EACH_TYPE(q8_0) EACH_TYPE(q2k) EACH_TYPE(q3k) EACH_TYPE(q4k) EACH_TYPE(q5k) EACH_TYPE(q6k)
    EACH_TYPE(iq4_nl) EACH_TYPE(iq4_xs) EACH_TYPE(nf4))

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const char *type = strrchr(argv[1], '_');
    u64 count = strtoull(argv[2], nullptr, 10), bytes = count * (type && strcmp(type, "_bf16") == 0 ? 2 : 4);
    size_t read;
    std::vector<float4> input = read_input(&read);
    // What lies behind the numbers must stay as it is.
    std::vector<float4> output(bytes / 16 + 2);
    memset(output.data(), 0x5a, output.size() * 16);
    const void *from = input.data();
    void *to = output.data();
    void *args[] = {&from, &to, &count};
    unsigned grid[] = {(unsigned)((count + 8 * 256 - 1) / (8 * 256)), 1, 1};
    if (host_launch(argv[1], grid, 256, 0, args) != 0) {
        fprintf(stderr, "no kernel %s\n", argv[1]);
        return 2;
    }
    const u8 *end = (const u8 *)output.data() + bytes;
    for (int i = 0; i < 16; i++) {
        if (end[i] != 0x5a) {
            fprintf(stderr, "the kernel wrote behind its numbers\n");
            return 4;
        }
    }
    write_output(output.data(), bytes);
    return 0;
}
