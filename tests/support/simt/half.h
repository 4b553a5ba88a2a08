// Half types for a host compiler: conversions by bits, rounded to nearest even, and no arithmetic of their own.
#pragma once

#include "simt.h"

struct __nv_bfloat16 { unsigned short x; };
struct __align__(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct __half { unsigned short x; };
struct __align__(4) __half2 { __half x, y; };
typedef __half half;
typedef __half2 half2;

static inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float((unsigned)h.x << 16); }
static inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};  // a NaN must not round to infinity
    return {(unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}

static inline float __half2float(__half h) {
    unsigned sign = (unsigned)(h.x & 0x8000) << 16, exponent = h.x >> 10 & 31, fraction = h.x & 1023;
    float magnitude = exponent == 31  ? __uint_as_float(0x7F800000u | fraction << 13)
                      : exponent == 0 ? ldexpf((float)fraction, -24)
                                      : ldexpf((float)(fraction | 1024), (int)exponent - 25);
    return __uint_as_float(__float_as_uint(magnitude) | sign);
}
static inline __half __float2half_rn(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return {0x7FFF};
    if (magnitude >= 0x477FF000u) return {(unsigned short)(sign | 0x7C00)};  // 65520 and above round to infinity
    if (magnitude < 0x38800000u)  // below 2^-14: a multiple of 2^-24, which nearbyintf rounds to even
        return {(unsigned short)(sign | (unsigned)nearbyintf(ldexpf(__uint_as_float(magnitude), 24)))};
    return {(unsigned short)(sign | (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13)};
}

static inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
static inline __half __float2half(float value) { return __float2half_rn(value); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
static inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
static inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
static inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }
static inline unsigned short __half_as_ushort(__half h) { return h.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
static inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
