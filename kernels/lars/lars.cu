// The LARS update of many tensors: norms by chunk, a ratio by tensor, momentum and update by chunk.
//
// Traffic, bytes a parameter in fp32: 8 for the norms (parameter, gradient), 20 for the update (parameter, gradient
// and buffer read, parameter and buffer written). Sums are taken in a fixed order, with no atomics: equal inputs give
// equal bits. What changes from step to step (learning rate, loss scale, found_inf) may lie on the device, so that a
// captured step replays with new values.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef GRAD
#define GRAD float
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef CHUNK
#define CHUNK 16384  // elements one block takes: a multiple of 4
#endif
#ifndef RECORDS
#define RECORDS 96  // by value in one launch: 3840 of the 4096 bytes that arguments may take
#endif

constexpr int LANES = 4;   // elements of one 16-byte access
constexpr int UNROLL = 2;  // accesses to each array under way in a thread
constexpr int STRIDE = THREADS * LANES * UNROLL;

// One tensor; adapted ones come first, so that the first chunks are those that need norms.
struct Record {
    float* param;
    const GRAD* grad;
    float* buffer;
    long long size;
    int first_chunk;
    int adapted;
};

struct Records {
    Record of[RECORDS];
};

template <class T>
struct alignas(sizeof(T) * LANES) Four {
    T at[LANES];
};

struct Sums {
    float param, direction;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

// The records' pointers tell the compiler no address space, these instructions do; L1 keeps nothing read but once.
template <class Bits, class T>
__device__ __forceinline__ Four<T> load_as(const T* from) {
    const Bits bits = __ldcg(reinterpret_cast<const Bits*>(from));
    return *reinterpret_cast<const Four<T>*>(&bits);
}
__device__ __forceinline__ Four<float> load(const float* from) { return load_as<float4>(from); }
__device__ __forceinline__ Four<__nv_bfloat16> load(const __nv_bfloat16* from) { return load_as<uint2>(from); }
__device__ __forceinline__ Four<__half> load(const __half* from) { return load_as<uint2>(from); }
__device__ __forceinline__ void store(float* to, const Four<float>& value) {
    __stcs(reinterpret_cast<float4*>(to), *reinterpret_cast<const float4*>(&value));
}

template <class T>
__device__ __forceinline__ bool aligned(const T* pointer) {
    return reinterpret_cast<unsigned long long>(pointer) % sizeof(Four<T>) == 0;
}

__device__ __forceinline__ bool skipped(const float* found_inf) { return found_inf != nullptr && *found_inf != 0.0f; }

__device__ __forceinline__ float inverse(const float* scale) { return scale == nullptr ? 1.0f : 1.0f / *scale; }

// A chunk of a tensor: pointers to its first element and how many there are.
struct Chunk {
    float* param;
    const GRAD* grad;
    float* buffer;
    int count;
    int vectors;  // elements that may be taken four at a time
};

__device__ __forceinline__ Chunk chunk_of(const Record& record, int chunk) {
    const long long start = static_cast<long long>(chunk - record.first_chunk) * CHUNK;
    const long long left = record.size - start;
    Chunk found = {record.param + start, record.grad + start, record.buffer + start, 0, 0};
    found.count = left < CHUNK ? static_cast<int>(left) : CHUNK;
    if (aligned(found.param) && aligned(found.grad) && aligned(found.buffer)) found.vectors = found.count & ~(LANES - 1);
    return found;
}

// The block's sum in its first thread, always in the same order.
template <class T>
__device__ T block_sum(T value) {
    __shared__ T by_warp[THREADS / 32];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, offset);
    __syncthreads();  // the last call's values have been read
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = 0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < THREADS / 32; ++warp) sum += by_warp[warp];
    return sum;
}

// One block a record: puts it into the table and its number beside each of its chunks.
extern "C" __global__ void __launch_bounds__(THREADS)
    lars_table(const __grid_constant__ Records records, int first, Record* table, int* tensor_of_chunk) {
    const Record record = records.of[blockIdx.x];
    const int number = first + blockIdx.x;
    if (threadIdx.x == 0) table[number] = record;
    const int chunks = static_cast<int>((record.size + CHUNK - 1) / CHUNK);
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS)
        tensor_of_chunk[record.first_chunk + chunk] = number;
}

// One block a chunk of an adapted tensor: sums of squares of the parameters and of the decayed gradients.
extern "C" __global__ void __launch_bounds__(THREADS)
    lars_norms(const Record* __restrict__ table, const int* __restrict__ tensor_of_chunk, Sums* __restrict__ sums,
               float weight_decay, const float* grad_scale, const float* found_inf) {
    if (skipped(found_inf)) return;
    const float unscale = inverse(grad_scale);
    const Chunk chunk = chunk_of(table[tensor_of_chunk[blockIdx.x]], blockIdx.x);
    Sums own = {0.0f, 0.0f};
    auto add = [&](float param, GRAD grad) {
        const float direction = fmaf(weight_decay, param, widen(grad) * unscale);
        own.param = fmaf(param, param, own.param);
        own.direction = fmaf(direction, direction, own.direction);
    };
    for (int base = threadIdx.x * LANES; base < chunk.vectors; base += STRIDE) {
        Four<float> param[UNROLL];
        Four<GRAD> grad[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int i = base + u * THREADS * LANES;
            if (i < chunk.vectors) param[u] = load(chunk.param + i), grad[u] = load(chunk.grad + i);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane)
                if (base + u * THREADS * LANES < chunk.vectors) add(param[u].at[lane], grad[u].at[lane]);
    }
    for (int i = chunk.vectors + threadIdx.x; i < chunk.count; i += THREADS) add(chunk.param[i], chunk.grad[i]);

    own.param = block_sum(own.param);
    own.direction = block_sum(own.direction);
    if (threadIdx.x == 0) sums[blockIdx.x] = own;
}

// One block an adapted tensor: eta ||p|| / ||u||, and 1 where either norm is 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    lars_ratios(const Record* __restrict__ table, const Sums* __restrict__ sums, float* __restrict__ ratios, float eta,
                const float* found_inf) {
    if (skipped(found_inf)) return;
    const Record record = table[blockIdx.x];
    const int chunks = static_cast<int>((record.size + CHUNK - 1) / CHUNK);
    double param = 0.0, direction = 0.0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
        param += sums[record.first_chunk + chunk].param;
        direction += sums[record.first_chunk + chunk].direction;
    }
    param = block_sum(param);
    direction = block_sum(direction);
    if (threadIdx.x == 0) {
        const float param_norm = static_cast<float>(sqrt(param)), direction_norm = static_cast<float>(sqrt(direction));
        const bool both = param_norm > 0.0f && direction_norm > 0.0f;
        ratios[blockIdx.x] = both ? eta * param_norm / direction_norm : 1.0f;
    }
}

// One block a chunk, the last first: what lars_norms read last may still be in the cache.
extern "C" __global__ void __launch_bounds__(THREADS)
    lars_apply(const Record* __restrict__ table, const int* __restrict__ tensor_of_chunk,
               const float* __restrict__ ratios, float lr_value, const float* lr_tensor, float weight_decay,
               float momentum, const float* grad_scale, const float* found_inf) {
    if (skipped(found_inf)) return;
    const float unscale = inverse(grad_scale);
    const float lr = lr_tensor == nullptr ? lr_value : *lr_tensor;
    const int number = gridDim.x - 1 - blockIdx.x;
    const int tensor = tensor_of_chunk[number];
    const Record record = table[tensor];
    const Chunk chunk = chunk_of(record, number);
    const float decay = record.adapted ? weight_decay : 0.0f;
    const float ratio = record.adapted ? ratios[tensor] : 1.0f;
    auto step = [&](float& param, GRAD grad, float& buffer) {
        const float direction = fmaf(decay, param, widen(grad) * unscale);
        buffer = fmaf(momentum, buffer, ratio * direction);
        param = fmaf(-lr, buffer, param);
    };
    for (int base = threadIdx.x * LANES; base < chunk.vectors; base += STRIDE) {
        Four<float> param[UNROLL], buffer[UNROLL];
        Four<GRAD> grad[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int i = base + u * THREADS * LANES;
            if (i < chunk.vectors) {
                param[u] = load(chunk.param + i);
                grad[u] = load(chunk.grad + i);
                buffer[u] = load(chunk.buffer + i);
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const int i = base + u * THREADS * LANES;
            if (i < chunk.vectors) {
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) step(param[u].at[lane], grad[u].at[lane], buffer[u].at[lane]);
                store(chunk.param + i, param[u]);
                store(chunk.buffer + i, buffer[u]);
            }
        }
    }
    for (int i = chunk.vectors + threadIdx.x; i < chunk.count; i += THREADS) {
        float param = chunk.param[i], buffer = chunk.buffer[i];
        step(param, chunk.grad[i], buffer);
        chunk.param[i] = param;
        chunk.buffer[i] = buffer;
    }
}
