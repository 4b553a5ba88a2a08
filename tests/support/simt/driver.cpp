// A stand-in for NVIDIA's driver library: it loads nothing and runs nothing, but prints each launch as it was asked for.
// With it the real cuda-core and cuda-bindings are gone through on a machine without a GPU.

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {
// Of `doubled(const float*, float*, long long, float)`.
const size_t SIZES[] = {8, 8, 8, 4};
void* const CONTEXT = (void*)0x77;

int done() { return 0; }
int version(int* found) { return *found = 13000, 0; }
int count(int* found) { return *found = 1, 0; }
int device(int* found, int index) { return *found = index, 0; }
int attribute(int* found, int, int) { return *found = 9, 0; }
int retain(void** context, int) { return *context = CONTEXT, 0; }
int current(void** context) { return *context = CONTEXT, 0; }
int current_device(int* found) { return *found = 0, 0; }
int load(void** library, const char* code) {
    printf("load %.3s\n", code + 1);
    return *library = (void*)0x1234, 0;
}
int kernel(void** found, void*, const char* name) {
    printf("kernel %s\n", name);
    return *found = (void*)0x5678, 0;
}
int parameter(void*, size_t index, size_t* offset, size_t* size) {
    if (index >= sizeof SIZES / sizeof *SIZES) return 1;
    *offset = 8 * index;
    if (size) *size = SIZES[index];
    return 0;
}
int set(int which, int value, void* function, int ordinal) {
    return printf("set %d to %d for %p on %d\n", which, value, function, ordinal), 0;
}
int launch(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
           void* stream, void** arguments, void**) {
    printf("launch %p grid %u %u %u block %u %u %u shared %u stream %p with %p %p %lld %g\n", function, gx, gy, gz, bx, by,
           bz, shared, stream, *(void**)arguments[0], *(void**)arguments[1], *(long long*)arguments[2],
           *(float*)arguments[3]);
    return 0;
}

struct { const char* name; void* function; } const KNOWN[] = {
    {"cuDriverGetVersion", (void*)version}, {"cuDeviceGetCount", (void*)count}, {"cuDeviceGet", (void*)device},
    {"cuDeviceGetAttribute", (void*)attribute}, {"cuDevicePrimaryCtxRetain", (void*)retain},
    {"cuCtxGetCurrent", (void*)current}, {"cuCtxPopCurrent", (void*)current}, {"cuCtxGetDevice", (void*)current_device},
    {"cuLibraryLoadData", (void*)load}, {"cuLibraryGetKernel", (void*)kernel},
    {"cuKernelGetParamInfo", (void*)parameter}, {"cuKernelSetAttribute", (void*)set}, {"cuLaunchKernel", (void*)launch},
};
}  // namespace

extern "C" int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    if (status) *status = 0;
    *function = strncmp(name, "cuGetProcAddress", 16) ? (void*)done : (void*)cuGetProcAddress_v2;
    for (const auto& known : KNOWN)
        if (!strcmp(known.name, name)) *function = known.function;
    return 0;
}
