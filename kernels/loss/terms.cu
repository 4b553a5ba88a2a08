// What surrounds the two matrix products: the first one's squares, the four terms, and the gradient of the second one.
//
// Needs THREADS, OPERAND and VEC. Sums go by partial results in a fixed order: a run repeats bit for bit.

#include "operand.cuh"

// The sum over the block, in its first thread.
__device__ float add_block(float value) {
    __shared__ float warps[THREADS / 32];
    for (int apart = 16; apart; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < THREADS / 32; ++w) sum += warps[w];
    __syncthreads();
    return sum;
}

// matrix_2PQ: P of both views, (2, p, q), of whose rows the first is the whole matrix's row first_row. product_2PQ: P
// off its diagonal in the operand's type, scaled by limit over its trace in a half type (may be matrix_2PQ itself in
// fp32). diagonal_2P: P's diagonal, and its squares count; or null. squares_2S: sums over (P / samples_less_1)^2.
// Grid: (S, 2).
extern "C" __global__ void __launch_bounds__(THREADS) squares(
    const float* matrix_2PQ, const float* trace_2, element* product_2PQ, float* diagonal_2P, float* squares_2S,
    long long p, long long q, long long first_row, float samples_less_1, float limit, float least_trace) {
    long long view = blockIdx.y;
    float scale = OPERAND ? limit / fmaxf(trace_2[view], least_trace) : 1.0f, less_1 = 1.0f / samples_less_1;
    float sum = 0;
    for (long long i = blockIdx.x; i < p; i += gridDim.x) {
        long long row = (view * p + i) * q;
#pragma unroll 4
        for (long long j = threadIdx.x; j < q; j += THREADS) {
            float value = matrix_2PQ[row + j];
            bool on_diagonal = j == first_row + i;
            if (on_diagonal && diagonal_2P) diagonal_2P[view * p + i] = value;
            float counted = on_diagonal && !diagonal_2P ? 0.0f : value * less_1;
            sum += counted * counted;
            product_2PQ[row + j] = narrow(on_diagonal ? 0.0f : value * scale);
        }
    }
    sum = add_block(sum);
    if (threadIdx.x == 0) squares_2S[view * gridDim.x + blockIdx.x] = sum;
}

// One block: every partial sum in its order, and the slopes of both views' columns, times size. gram: the squares
// include the diagonal of the Gram matrix, so that the variances' own squares are taken off.
extern "C" __global__ void __launch_bounds__(THREADS) terms(
    const float* power_2D, const float* squares_2S, const float* distance_S, float* slope_2D, float* total,
    float* invariance, float* variance, float* covariance, long long d, long long squares_count,
    long long distance_count, float elements, float samples_less_1, float invariance_weight, float variance_weight,
    float covariance_weight, float branch_share, float gamma, float eps, float size, int gram) {
    float sum = 0;
    for (long long s = threadIdx.x; s < distance_count; s += THREADS) sum += distance_S[s];
    float invariance_term = add_block(sum) / elements, variance_term = 0, covariance_term = 0;
    float less_1 = 1.0f / samples_less_1, columns = 1.0f / (float)d;
    float hinge_slope = -variance_weight * branch_share * columns * less_1;
    float own_slope = -4 * covariance_weight * columns * less_1;
    for (int view = 0; view < 2; ++view) {
        float hinges = 0, squares = 0, own = 0;
        for (long long s = threadIdx.x; s < squares_count; s += THREADS)
            squares += squares_2S[view * squares_count + s];
        for (long long j = threadIdx.x; j < d; j += THREADS) {
            float var = power_2D[view * d + j] * less_1, std = sqrtf(var + eps), below = gamma - std;
            hinges += below <= 0 ? 0.0f : below;  // a NaN passes, as torch's relu lets it
            float slope = below > 0 ? hinge_slope * rsqrtf(var + eps) : 0.0f;
            if (gram) {
                own += var * var;
                slope += own_slope * var;
            }
            slope_2D[view * d + j] = slope * size;
        }
        variance_term += branch_share * (add_block(hinges) * columns);
        covariance_term += (add_block(squares) - add_block(own)) * columns;
    }
    if (threadIdx.x == 0) {
        *invariance = invariance_term;
        *variance = variance_term;
        *covariance = covariance_term;
        *total = invariance_weight * invariance_term + variance_weight * variance_term +
                 covariance_weight * covariance_term;
    }
}

// Of views first_view, first_view + 1, ..., their own rows: scale (push P X + slope X + pull (z - other)). sum_VND: the
// products of the scaled P and X, of those views alone; x_2MD, diagonal_2N (null: none) and trace_2: as kept, the own
// rows of x being the n from first_row on; grad_first, grad_next: one view's each.
// Grid: (columns / (THREADS VEC), rows, views).
extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    const float* __restrict__ scale, const float* __restrict__ sum_VND, const element* __restrict__ za_ND,
    const element* __restrict__ zb_ND, const element* __restrict__ x_2MD, const float* __restrict__ diagonal_2N,
    const float* __restrict__ slope_2D, const float* __restrict__ trace_2, element* __restrict__ grad_first,
    element* __restrict__ grad_next, long long n, long long d, long long m, long long first_row, int first_view,
    float push, float pull, float limit, float least_trace) {
    long long j = ((long long)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (j >= d) return;
    long long view = first_view + blockIdx.z;
    const element* z_ND = view ? zb_ND : za_ND;
    const element* other_ND = view ? za_ND : zb_ND;
    const element* x_ND = x_2MD + (view * m + first_row) * d;
    const float* sum_ND = sum_VND + blockIdx.z * n * d;
    element* grad_ND = blockIdx.z ? grad_next : grad_first;
    float by = *scale, unscale = OPERAND ? fmaxf(trace_2[view], least_trace) / limit : 1.0f;
    float slope[VEC];
    load_floats(slope_2D + view * d + j, slope);
    for (long long i = blockIdx.y; i < n; i += gridDim.y) {
        float sum[VEC], z[VEC], other[VEC], x[VEC];
        load_floats(sum_ND + i * d + j, sum);
        load(z_ND + i * d + j, z);
        load(other_ND + i * d + j, other);
        load(x_ND + i * d + j, x);
        float diagonal = diagonal_2N ? push * diagonal_2N[view * n + i] : 0.0f;
#pragma unroll
        for (int v = 0; v < VEC; ++v)
            z[v] = by * (push * unscale * sum[v] + (slope[v] + diagonal) * x[v] + pull * (z[v] - other[v]));
        store(grad_ND + i * d + j, z);
    }
}
