// rows KERNEL ROWS WIDTH: reads the kernel's inputs one after the other from stdin, writes its output to stdout.
#include "host.h"
#include "prelude.cuh"
#include "rows.cu"

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    u64 rows = strtoull(argv[2], nullptr, 10), width = strtoull(argv[3], nullptr, 10), count = rows * width;
    size_t bytes;
    std::vector<float4> input = read_input(&bytes);
    const float *x = (const float *)input.data();
    std::vector<float> out(2 * count, NAN);
    float epsilon = 1e-5f;
    unsigned grid = (unsigned)((count + 255) / 256);
    if (strcmp(argv[1], "rms_norm") == 0) {
        launch_together((unsigned)rows, ROW_THREADS, [&] { rms_norm(x, x + count, out.data(), width, epsilon); });
    } else if (strcmp(argv[1], "rms_norm_backward") == 0) {
        const float *weight = x + count, *dy = weight + width;
        launch_together((unsigned)rows, ROW_THREADS, [&] { rms_norm_backward(x, weight, dy, out.data(), width, epsilon); });
    } else if (strcmp(argv[1], "swiglu") == 0) {
        launch(grid, 256, [&] { swiglu(x, x + count, out.data(), count); });
    } else if (strcmp(argv[1], "swiglu_backward") == 0) {
        launch(grid, 256, [&] { swiglu_backward(x, x + count, x + 2 * count, out.data(), count); });
        write_output(out.data(), 2 * count * sizeof(float));
        return 0;
    } else {
        return 2;
    }
    write_output(out.data(), count * sizeof(float));
    return 0;
}
