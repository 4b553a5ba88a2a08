// CUDA's language for a host compiler: qualifiers, vector types and intrinsics, for sources that use no library.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// All of a block's shared variables lie in one section, which is poisoned before each block.
#define __shared__ static __attribute__((section("simt_shared")))

#define threadIdx (simt::now->index)
#define blockIdx (simt::block_index)
#define blockDim (simt::block_size)
#define gridDim (simt::grid_size)
static const int warpSize = 32;

#define SIMT_VECTORS(T, name, align2, align4)                                                      \
    struct __align__(align2) name##2 { T x, y; };                                                  \
    struct name##3 { T x, y, z; };                                                                 \
    struct __align__(align4) name##4 { T x, y, z, w; };                                            \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                      \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)
#undef SIMT_VECTORS

static inline void __syncthreads(int line = __builtin_LINE()) { simt::sync_block(line); }
static inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { simt::sync_warp(mask, line); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// A lane outside the mask gives poison, as its value is undefined; one outside the segment gives the caller's own.
namespace simt {
template <class T> T exchange(unsigned mask, T value, int lane, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    memcpy(warp().slot[now->lane()], &value, sizeof(T));
    sync_warp(mask, line);
    T found;
    if (mask >> lane & 1) memcpy(&found, warp().slot[lane], sizeof(T));
    else memset(&found, 0xFF, sizeof(T));
    sync_warp(mask, line);
    return found;
}
}  // namespace simt
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, int line = __builtin_LINE()) {
    int own = simt::now->lane();
    return simt::exchange(mask, value, (own & ~(width - 1)) + (lane & (width - 1)), line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
    int own = simt::now->lane(), last = own | (width - 1);
    return simt::exchange(mask, value, (own ^ bits) > last ? own : own ^ bits, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, int line = __builtin_LINE()) {
    int own = simt::now->lane(), last = own | (width - 1);
    return simt::exchange(mask, value, own + by > last ? own : own + by, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, int line = __builtin_LINE()) {
    int own = simt::now->lane(), first = own & ~(width - 1);
    return simt::exchange(mask, value, own - by < first ? own : own - by, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    int set = predicate != 0;
    memcpy(simt::warp().slot[simt::now->lane()], &set, sizeof set);
    simt::sync_warp(mask, line);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) memcpy(&set, simt::warp().slot[lane], sizeof set), bits |= (unsigned)set << lane;
    simt::sync_warp(mask, line);
    return bits;
}
static inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) == mask;
}

// Threads run one at a time, so that a read and a write make an atomic operation.
template <class T, class V> T atomicAdd(T* at, V value) { T old = *at; *at = (T)(old + value); return old; }
template <class T, class V> T atomicMax(T* at, V value) { T old = *at; if ((T)value > old) *at = (T)value; return old; }
template <class T, class V> T atomicMin(T* at, V value) { T old = *at; if ((T)value < old) *at = (T)value; return old; }
template <class T, class V> T atomicExch(T* at, V value) { T old = *at; *at = (T)value; return old; }
template <class T, class V> T atomicOr(T* at, V value) { T old = *at; *at = old | (T)value; return old; }
template <class T> T atomicCAS(T* at, T expected, T value) { T old = *at; if (old == expected) *at = value; return old; }

template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> T __ldcg(const T* at) { return *at; }
template <class T> T __ldlu(const T* at) { return *at; }
template <class T> void __stcs(T* at, T value) { *at = value; }
template <class T> void __stcg(T* at, T value) { *at = value; }

template <class To, class From> To simt_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline int __float_as_int(float x) { return simt_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return simt_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// glibc declares these names itself.
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline unsigned __float2uint_rn(float x) { return (unsigned)nearbyintf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
#define SIMT_MIN_MAX(T)                                                \
    static inline T min(T x, T y) { return y < x ? y : x; }            \
    static inline T max(T x, T y) { return x < y ? y : x; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
static inline float min(float x, float y) { return fminf(x, y); }
static inline float max(float x, float y) { return fmaxf(x, y); }
static inline double min(double x, double y) { return fmin(x, y); }
static inline double max(double x, double y) { return fmax(x, y); }
