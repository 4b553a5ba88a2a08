// Colour jitter and grayscale of four pixels at a time, in registers: the arithmetic of reference.py, step by step.
//
// A channel is held as 2^23 plus its level: the lowest byte of such a float is the level itself, differences are exact,
// and one addition that rounds down is a floor. Products and sums that Pillow rounds apart are kept apart (__fmul_rn);
// fused ones are used only where every intermediate is exact.
#pragma once

// torchvision's numbering in ColorJitter; grey is saturation 0.
enum Operation { BRIGHTNESS, CONTRAST, SATURATION, HUE };

constexpr float BIAS = 8388608.0f;

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float floor_biased(float x) { return __fadd_rd(x, BIAS); }
__device__ __forceinline__ float floor_product_biased(float x, float y) { return __fmaf_rd(x, y, BIAS); }
__device__ __forceinline__ unsigned pick_bytes(unsigned x, unsigned y, unsigned selector) {
    return __byte_perm(x, y, selector);
}
// Within one unit in the last place; 1 / 0 is not asked for.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else  // the same values by other means, where the kernel is compiled for the host
#ifndef RECIPROCAL_ULPS
#define RECIPROCAL_ULPS 0  // how far the host's reciprocal errs, so that tests cover what a device may give
#endif
__device__ inline float floor_biased(float x) { return (float)(floor((double)x) + BIAS); }
__device__ inline float floor_product_biased(float x, float y) { return (float)(floor((double)x * y) + BIAS); }
__device__ inline unsigned pick_bytes(unsigned x, unsigned y, unsigned selector) {
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned picked = 0;
    for (int k = 0; k < 4; ++k) picked |= (unsigned)(bytes >> 8 * (selector >> 4 * k & 7) & 255) << 8 * k;
    return picked;
}
__device__ inline float reciprocal(float x) { return __int_as_float(__float_as_int(1.0f / x) + RECIPROCAL_ULPS); }
#endif

struct Quad {
    float r[4], g[4], b[4];  // biased
};

// Three words hold four pixels: byte 3 p + c is channel c of pixel p.
__device__ __forceinline__ Quad unpacked(const unsigned (&words)[3]) {
    auto level = [&](int byte) {
        return __uint_as_float(pick_bytes(words[byte / 4], __float_as_uint(BIAS), 0x7650 | byte % 4));
    };
    Quad quad;
#pragma unroll
    for (int p = 0; p < 4; ++p) quad.r[p] = level(3 * p), quad.g[p] = level(3 * p + 1), quad.b[p] = level(3 * p + 2);
    return quad;
}

__device__ __forceinline__ void pack(const Quad& quad, unsigned (&words)[3]) {
    auto four = [](float a, float b, float c, float d) {
        unsigned low = pick_bytes(__float_as_uint(a), __float_as_uint(b), 0x0040);
        return pick_bytes(low, pick_bytes(__float_as_uint(c), __float_as_uint(d), 0x0040), 0x5410);
    };
    words[0] = four(quad.r[0], quad.g[0], quad.b[0], quad.r[1]);
    words[1] = four(quad.g[1], quad.b[1], quad.r[2], quad.g[2]);
    words[2] = four(quad.b[2], quad.r[3], quad.g[3], quad.b[3]);
}

// Pillow's mode "L": 16-bit fixed point, in which float32 holds every intermediate exactly.
__device__ __forceinline__ float luma_biased(float r, float g, float b) {
    float sum = fmaf(19595.0f / 65536, r - BIAS, 0.5f);
    return floor_biased(fmaf(7471.0f / 65536, b - BIAS, fmaf(38470.0f / 65536, g - BIAS, sum)));
}

// Image.blend of a level with a degenerate one; a factor up to 1 stays between the two, so that nothing is clipped.
__device__ __forceinline__ float blended(float x, float degenerate, float factor) {
    float mixed = __fadd_rn(degenerate - BIAS, __fmul_rn(factor, x - degenerate));
    return floor_biased(factor > 1 ? fminf(fmaxf(mixed, 0.0f), 255.0f) : mixed);
}

// torchvision's adjust_hue on PIL images: Pillow's HSV with ``shift`` added to the byte H, and back.
__device__ __forceinline__ void shift_hue(float& r, float& g, float& b, float shift) {
    float low = fminf(r, g), high = fmaxf(r, g);
    float value = fmaxf(high, b), middle = fmaxf(low, fminf(high, b));
    float chroma = value - fminf(low, b), span = fmaxf(chroma, 1.0f), top = value - middle;
    // top / span, rounded as a division: one correction does it for all whole numbers up to 255.
    float inverse = reciprocal(span), quotient = top * inverse;
    float share = fmaf(fmaf(-quotient, span, top), inverse, quotient);
    bool red = r == value, green = g == value;
    bool back = (red ? g : green ? b : r) < (red ? b : green ? r : g);
    float sector = red ? 0.0f : green ? 2.0f : 4.0f;
    float sixths = back ? sector - 1.0f + share : sector + 1.0f - share;
    constexpr float SIXTH = 1.0f / 6;
    float turn = sixths * SIXTH;  // then a division by six, corrected likewise
    turn = fmaf(fmaf(-6.0f, turn, sixths), SIXTH, turn);
    turn = turn < 0.0f ? turn + 1.0f : turn;
    float h = floor_product_biased(turn, 255.0f) + (shift - BIAS);
    h = __fmul_rn(h >= 256.0f ? h - 256.0f : h, 6.0f / 255);
    // floor(chroma * 255 / value): the half keeps the reciprocal's error from a whole quotient.
    float plain = value - BIAS;
    float saturation = floor_product_biased(fmaf(chroma, 255.0f, 0.5f), reciprocal(fmaxf(plain, 1.0f))) - BIAS;
    float fall = __fmul_rn(plain, __fmul_rn(saturation, 1.0f / 255));
    plain += 0.5f;
    // How far each channel falls from the value: a trapezoid over the six sectors.
    r = floor_biased(__fadd_rn(plain, -__fmul_rn(fall, __saturatef(2.0f - fabsf(h - 3.0f)))));
    g = floor_biased(__fadd_rn(plain, -__fmul_rn(fall, __saturatef(fabsf(h - 2.0f) - 1.0f))));
    b = floor_biased(__fadd_rn(plain, -__fmul_rn(fall, __saturatef(fabsf(h - 4.0f) - 1.0f))));
}

// ``mean`` is the biased luma that contrast blends with.
__device__ __forceinline__ void apply(int operation, float factor, float mean, Quad& quad) {
    if (operation == HUE) {
#pragma unroll
        for (int p = 0; p < 4; ++p) shift_hue(quad.r[p], quad.g[p], quad.b[p], factor);
        return;
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        float degenerate = operation == BRIGHTNESS ? BIAS : mean;
        if (operation == SATURATION) degenerate = luma_biased(quad.r[p], quad.g[p], quad.b[p]);
        quad.r[p] = blended(quad.r[p], degenerate, factor);
        quad.g[p] = blended(quad.g[p], degenerate, factor);
        quad.b[p] = blended(quad.b[p], degenerate, factor);
    }
}
