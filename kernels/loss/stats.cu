// Column statistics of both views, and their rows centred and rounded: one block a strip of columns.
//
// HELD: the strip stays in shared memory between the mean and the centring, so that the embeddings are read once;
// else twice. Each thread sums its rows in order, the block its threads in a fixed one: a run repeats bit for bit.
// Needs THREADS, COLUMNS (of a strip), OPERAND and VEC.

#include "operand.cuh"

static const int LANES = COLUMNS / VEC;         // threads across a row
static const int ROWS = THREADS / LANES;        // rows at a time
static const int WARPS = THREADS / 32;

// Into every thread, for its own columns, the sum over the block's rows.
__device__ void add_rows(float (&values)[VEC], float (*shared)[COLUMNS]) {
    int lane = threadIdx.x % LANES, warp = threadIdx.x / 32;
#pragma unroll
    for (int v = 0; v < VEC; ++v)
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2) values[v] += __shfl_xor_sync(0xffffffffu, values[v], apart);
    if (threadIdx.x % 32 < LANES)
        for (int v = 0; v < VEC; ++v) shared[warp][lane * VEC + v] = values[v];
    __syncthreads();
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
        values[v] = 0;
        for (int w = 0; w < WARPS; ++w) values[v] += shared[w][lane * VEC + v];
    }
    __syncthreads();
}

// za, zb: (m, d). mean_2D: what to centre by, or null for the columns' own means. x_2MD, power_2D: centred rows and
// their sums of squares. distance_S: sums of (za - zb)^2, one a strip.
extern "C" __global__ void __launch_bounds__(THREADS) statistics(
    const element* __restrict__ za, const element* __restrict__ zb, const float* __restrict__ mean_2D,
    element* __restrict__ x_2MD, float* __restrict__ power_2D, float* __restrict__ distance_S, long long m,
    long long d) {
    extern __shared__ __align__(16) unsigned char strip_bytes[];
    __shared__ float partial[WARPS][COLUMNS];
    element* strip = reinterpret_cast<element*>(strip_bytes);  // [view][row][column]

    int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
    long long j = (long long)blockIdx.x * COLUMNS + lane * VEC;
    bool inside = j < d;  // d is a multiple of VEC: all of an access, or nothing

    // Distances to the first row rather than values are summed: an offset common to the rows costs no digits.
    float pivot_a[VEC] = {}, pivot_b[VEC] = {}, shift_a[VEC] = {}, shift_b[VEC] = {};
    if (inside && mean_2D) {
        load_floats(mean_2D + j, pivot_a);
        load_floats(mean_2D + d + j, pivot_b);
    } else if (inside) {
        load(za + j, pivot_a);
        load(zb + j, pivot_b);
    }
    if (HELD || !mean_2D) {
        if (inside) {
#pragma unroll 4
            for (long long i = first; i < m; i += ROWS) {
                float a[VEC], b[VEC];
                load(za + i * d + j, a);
                load(zb + i * d + j, b);
                if (HELD) {
                    store(strip + i * COLUMNS + lane * VEC, a);
                    store(strip + (m + i) * COLUMNS + lane * VEC, b);
                }
#pragma unroll
                for (int v = 0; v < VEC; ++v) shift_a[v] += a[v] - pivot_a[v], shift_b[v] += b[v] - pivot_b[v];
            }
        }
        add_rows(shift_a, partial);
        add_rows(shift_b, partial);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
            shift_a[v] = mean_2D ? 0.0f : shift_a[v] / (float)m;
            shift_b[v] = mean_2D ? 0.0f : shift_b[v] / (float)m;
        }
    }

    float power_a[VEC] = {}, power_b[VEC] = {}, distance[VEC] = {};
    if (inside) {
#pragma unroll 2
        for (long long i = first; i < m; i += ROWS) {
            float a[VEC], b[VEC];
            // A thread reads back what it wrote itself.
            load(HELD ? strip + i * COLUMNS + lane * VEC : za + i * d + j, a);
            load(HELD ? strip + (m + i) * COLUMNS + lane * VEC : zb + i * d + j, b);
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                distance[v] += (a[v] - b[v]) * (a[v] - b[v]);
                a[v] = wide(narrow((a[v] - pivot_a[v]) - shift_a[v]));
                b[v] = wide(narrow((b[v] - pivot_b[v]) - shift_b[v]));
                power_a[v] += a[v] * a[v];
                power_b[v] += b[v] * b[v];
            }
            store(x_2MD + i * d + j, a);
            store(x_2MD + (m + i) * d + j, b);
        }
    }
    add_rows(power_a, partial);
    add_rows(power_b, partial);
    add_rows(distance, partial);
    if (inside && first == 0) {
        for (int v = 0; v < VEC; ++v) {
            power_2D[j + v] = power_a[v];
            power_2D[d + j + v] = power_b[v];
            partial[0][lane * VEC + v] = distance[v];
        }
    } else if (first == 0) {
        for (int v = 0; v < VEC; ++v) partial[0][lane * VEC + v] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int c = 0; c < COLUMNS; ++c) sum += partial[0][c];
        distance_S[blockIdx.x] = sum;
    }
}
