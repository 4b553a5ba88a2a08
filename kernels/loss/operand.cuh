// The embeddings' type, chosen by OPERAND (0 float, 1 bfloat16, 2 half), and accesses of VEC of them: 16 bytes, or one.
#pragma once

#if OPERAND == 0
typedef float element;
__device__ __forceinline__ float wide(element value) { return value; }
__device__ __forceinline__ element narrow(float value) { return value; }
#elif OPERAND == 1
#include <cuda_bf16.h>
typedef __nv_bfloat16 element;
__device__ __forceinline__ float wide(element value) { return __bfloat162float(value); }
__device__ __forceinline__ element narrow(float value) { return __float2bfloat16_rn(value); }
#else
#include <cuda_fp16.h>
typedef __half element;
__device__ __forceinline__ float wide(element value) { return __half2float(value); }
__device__ __forceinline__ element narrow(float value) { return __float2half_rn(value); }
#endif

static_assert(VEC == 1 || VEC * sizeof(element) == 16, "an access is one element or 16 bytes");

__device__ __forceinline__ void load(const element* from, float (&values)[VEC]) {
#if VEC == 1
    values[0] = wide(from[0]);
#else
    uint4 words = *reinterpret_cast<const uint4*>(from);
    element elements[VEC];
    memcpy(elements, &words, 16);
#pragma unroll
    for (int v = 0; v < VEC; ++v) values[v] = wide(elements[v]);
#endif
}

__device__ __forceinline__ void store(element* to, const float (&values)[VEC]) {
#if VEC == 1
    to[0] = narrow(values[0]);
#else
    element elements[VEC];
#pragma unroll
    for (int v = 0; v < VEC; ++v) elements[v] = narrow(values[v]);
    uint4 words;
    memcpy(&words, elements, 16);
    *reinterpret_cast<uint4*>(to) = words;
#endif
}

__device__ __forceinline__ void load_floats(const float* from, float (&values)[VEC]) {
#if VEC == 1
    values[0] = from[0];
#else
#pragma unroll
    for (int v = 0; v < VEC; v += 4) {
        float4 four = *reinterpret_cast<const float4*>(from + v);
        values[v] = four.x, values[v + 1] = four.y, values[v + 2] = four.z, values[v + 3] = four.w;
    }
#endif
}
