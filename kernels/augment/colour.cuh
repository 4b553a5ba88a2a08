// Colour jitter and grayscale of pixels in fours, in registers: the arithmetic of reference.py, step by step.
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
// whole + floor(x * y) for a biased whole number; below 2^23, where a level is clipped, a fraction may be left.
__device__ __forceinline__ float plus_floor(float whole, float x, float y) { return __fmaf_rd(x, y, whole); }
// BIAS + floor(factor * (x - BIAS)) for a factor from 1/2 to 2: what is added is then exact.
__device__ __forceinline__ float scaled(float x, float factor) { return __fmaf_rd(factor, x, BIAS - factor * BIAS); }
__device__ __forceinline__ unsigned pick_bytes(unsigned x, unsigned y, unsigned selector) {
    return __byte_perm(x, y, selector);
}
// Within one unit in the last place.
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
__device__ inline float plus_floor(float whole, float x, float y) { return (float)(whole + floor((double)x * y)); }
__device__ inline float scaled(float x, float factor) {
    return (float)floor((double)factor * x + (BIAS - factor * BIAS));
}
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

// Pillow's mode "L" in 16-bit fixed point, below 2^24. The channels' own bits are multiplied: the weights' sum is 2^16,
// which takes their common upper bits out of the word.
__device__ __forceinline__ unsigned luma_fixed(float r, float g, float b) {
    return 19595 * __float_as_uint(r) + (38470 * __float_as_uint(g) + (7471 * __float_as_uint(b) + 32768));
}

__device__ __forceinline__ float luma_biased(float r, float g, float b) {
    return __uint_as_float(pick_bytes(luma_fixed(r, g, b), __float_as_uint(BIAS), 0x7652));
}

// Whether a blend of differences by ``factor`` is the same in one rounding as in Pillow's three, for the differences
// ``size`` and its negative: where their products are whole, or further from whole than those roundings reach.
// They are 2^-17 each, as a sum outside 0 to 255 is clipped.
__device__ __forceinline__ bool blends_at_once(float factor, float size) {
    const float whole = floor_biased(fmaf(factor, size, 0.5f)) - BIAS;
    const float rest = fabsf(fmaf(factor, size, -whole));
    return rest == 0.0f || rest >= 1.0f / 32768;
}

// Image.blend of a level with a degenerate one. A factor up to 1 stays between the two, so that nothing is clipped.
enum Blend { BETWEEN, CLIPPED, STEPWISE };

template <Blend BLEND>
__device__ __forceinline__ float blended(float x, float degenerate, float factor) {
    const float difference = x - degenerate;
    if (BLEND == STEPWISE) {
        const float mixed = __fadd_rn(degenerate - BIAS, __fmul_rn(factor, difference));
        return floor_biased(fminf(fmaxf(mixed, 0.0f), 255.0f));
    }
    const float mixed = plus_floor(degenerate, factor, difference);
    return BLEND == CLIPPED ? fminf(fmaxf(mixed, BIAS), BIAS + 255) : mixed;
}

// torchvision's adjust_hue on PIL images: Pillow's HSV with ``shift`` added to the byte H, and back. In greys the
// quotients are no numbers: any hue does there, and saturation is 0.
__device__ __forceinline__ void shift_hue(float& r, float& g, float& b, float shift) {
    const float low = fminf(r, g), high = fmaxf(r, g);
    const float value = fmaxf(high, b), middle = fmaxf(low, fminf(high, b));
    const float chroma = value - fminf(low, b), top = value - middle;
    // top / chroma, rounded as a division: one correction does it for all whole numbers up to 255.
    const float inverse = reciprocal(chroma), quotient = top * inverse;
    const float share = fmaf(fmaf(-quotient, chroma, top), inverse, quotient);
    // Hue in sixths lies by that share from 1, 3 or 5: yellow, cyan, magenta. Beyond magenta the reference
    // goes round by -1, where no rounding falls below a whole level: a unit in the last place stands for that.
    const bool r_g = r < g, g_b = g < b, b_r = b < r;
    const float base = g_b ? (r_g ? 3.0f : b_r ? 5.0f + 0x1p-21f : 5.0f) : (b_r ? 1.0f : 3.0f);
    const float sixths = base + (r_g ^ g_b ^ b_r ? -share : share);
    // A sixth in two parts: the product is then rounded as a division by six.
    constexpr float SIXTH = 1.0f / 6, REST = (float)(1.0 / 6 - SIXTH);
    const float turn = fmaf(sixths, SIXTH, __fmul_rn(sixths, REST));
    const unsigned hue = __float_as_uint(plus_floor(shift, turn, 255.0f));
    const float hue_biased = __uint_as_float(pick_bytes(hue, __float_as_uint(BIAS), 0x7650));
    constexpr float DEGREE = 6.0f / 255, LEVEL = 1.0f / 255;  // fmaf(x + BIAS, k, -k BIAS) is the product k x, rounded
    const float h = fmaf(hue_biased, DEGREE, -DEGREE * BIAS);
    // floor(255 chroma / value): the excess keeps the reciprocal's error from a whole quotient and reaches no other.
    const float plain = value - BIAS;
    const float saturation = plus_floor(BIAS, __saturatef(chroma * reciprocal(plain)), 255.0f + 0x1p-12f);
    const float fall = __fmul_rn(plain, fmaf(saturation, LEVEL, -LEVEL * BIAS));
    const float rounded = value - (BIAS - 0.5f);
    // How far each channel falls from the value: a trapezoid over the six sectors.
    r = floor_biased(__fadd_rn(rounded, -__fmul_rn(fall, __saturatef(2.0f - fabsf(h - 3.0f)))));
    g = floor_biased(__fadd_rn(rounded, -__fmul_rn(fall, __saturatef(fabsf(h - 2.0f) - 1.0f))));
    b = floor_biased(__fadd_rn(rounded, -__fmul_rn(fall, __saturatef(fabsf(h - 4.0f) - 1.0f))));
}

template <Blend BLEND, int COUNT>
__device__ __forceinline__ void blend(bool saturation, float factor, float degenerate, Quad (&quads)[COUNT]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; ++i) {
        float &r = quads[i / 4].r[i % 4], &g = quads[i / 4].g[i % 4], &b = quads[i / 4].b[i % 4];
        const float other = saturation ? luma_biased(r, g, b) : degenerate;
        r = blended<BLEND>(r, other, factor);
        g = blended<BLEND>(g, other, factor);
        b = blended<BLEND>(b, other, factor);
    }
}

template <bool CLIPPED, int COUNT>
__device__ __forceinline__ void brighten(float factor, Quad (&quads)[COUNT]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; ++i) {
        const auto level = [&](float x) { return CLIPPED ? fminf(scaled(x, factor), BIAS + 255) : scaled(x, factor); };
        Quad& quad = quads[i / 4];
        quad.r[i % 4] = level(quad.r[i % 4]);
        quad.g[i % 4] = level(quad.g[i % 4]);
        quad.b[i % 4] = level(quad.b[i % 4]);
    }
}

// ``mean`` is the biased luma that contrast blends with; ``stepwise`` where blends_at_once() does not hold.
template <int COUNT>
__device__ __forceinline__ void apply(
    int operation, float factor, bool stepwise, float mean, Quad (&quads)[COUNT]) {
    const float degenerate = operation == BRIGHTNESS ? BIAS : mean;
    if (operation == HUE) {
#pragma unroll
        for (int i = 0; i < 4 * COUNT; ++i)
            shift_hue(quads[i / 4].r[i % 4], quads[i / 4].g[i % 4], quads[i / 4].b[i % 4], factor + BIAS);
    } else if (stepwise) {
        blend<STEPWISE>(operation == SATURATION, factor, degenerate, quads);
    } else if (operation == BRIGHTNESS && factor >= 0.5f && factor <= 2) {
        factor > 1 ? brighten<true>(factor, quads) : brighten<false>(factor, quads);
    } else if (operation == SATURATION) {
        factor > 1 ? blend<CLIPPED>(true, factor, mean, quads) : blend<BETWEEN>(true, factor, mean, quads);
    } else if (factor > 1) {
        blend<CLIPPED>(false, factor, degenerate, quads);
    } else {
        blend<BETWEEN>(false, factor, degenerate, quads);
    }
}
