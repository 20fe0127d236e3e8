/* nvrtc LIBRARY SOURCE --gpu-architecture=...: compiles SOURCE with NVIDIA's run-time compiler; a GPU's code (of sm_...) or PTX (of
   compute_...) goes to stdout. Exits with 77 where the library cannot be loaded. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Program;

static void *find(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        exit(77);
    }
    return symbol;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int is_code = strstr(argv[3], "=sm_") != NULL;
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 77;
    }
    int (*create)(Program *, const char *, const char *, int, const char *const *, const char *const *) =
        find(library, "nvrtcCreateProgram");
    int (*compile)(Program, int, const char *const *) = find(library, "nvrtcCompileProgram");
    int (*log_size)(Program, size_t *) = find(library, "nvrtcGetProgramLogSize");
    int (*get_log)(Program, char *) = find(library, "nvrtcGetProgramLog");
    int (*image_size)(Program, size_t *) = find(library, is_code ? "nvrtcGetCUBINSize" : "nvrtcGetPTXSize");
    int (*get_image)(Program, char *) = find(library, is_code ? "nvrtcGetCUBIN" : "nvrtcGetPTX");

    FILE *file = fopen(argv[2], "rb");
    if (!file) return 2;
    size_t capacity = 1 << 20;
    char *source = calloc(capacity, 1);
    if (fread(source, 1, capacity - 1, file) == capacity - 1) return 2;
    Program program;
    if (create(&program, source, argv[2], 0, 0, 0) != 0) return 3;
    int failed = compile(program, argc - 3, (const char *const *)argv + 3);
    size_t size = 0;
    log_size(program, &size);
    if (size > 1) {
        char *text = calloc(size + 1, 1);
        get_log(program, text);
        fprintf(stderr, "%s\n", text);
    }
    if (failed) return 1;
    if (image_size(program, &size) != 0) return 3;
    char *image = calloc(size + 1, 1);
    if (get_image(program, image) != 0) return 3;
    fwrite(image, 1, is_code ? size : strlen(image), stdout);
    return 0;
}
