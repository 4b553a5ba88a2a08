// Pillow's Gaussian blur on packed bytes in shared memory: three extended boxes along an axis, in registers.
//
// Along a row each thread takes a run and a halo of 3 (radius + 1) on both sides, which shrinks box by box; down a
// column the boxes stream. Beyond the image the first and last pixels repeat, anew before each box, as Pillow reads
// them.
#pragma once

#include "colour.cuh"

constexpr int RUN = 16;  // pixels that a thread blurs along a row: a multiple of 4, which are three whole words

struct Box {
    int radius;             // -1: no blur
    unsigned inner, outer;  // weights in units of 2^-24
};

template <bool VALUE>
struct Constant {
    __device__ constexpr operator bool() const { return VALUE; }
};

__device__ __forceinline__ unsigned byte_of(unsigned word, int byte) { return pick_bytes(word, 0, 0x4440 | byte); }

__device__ __forceinline__ unsigned with_byte(unsigned word, int byte, unsigned source, unsigned source_byte) {
    const unsigned identity = 0x3210, place = 15u << 4 * byte;
    return pick_bytes(word, source, (identity & ~place) | (4 + source_byte) << 4 * byte);
}

// A box as Pillow has it: the sum of 2^-24 weights fills 32 bits, so that its top byte is the level.
template <int RADIUS>
struct WholeBox {
    static constexpr int REACH = RADIUS + 1, TAPS = 2 * REACH + 1;
    static constexpr unsigned BYTE = 3, ORIGIN = 0;  // where a sum's level is, and what index() exceeds it by
    using Level = unsigned;
    Box box;

    static __device__ __forceinline__ Level unpacked(unsigned word, int byte) { return byte_of(word, byte); }
    static __device__ __forceinline__ Level level(unsigned sum) { return sum >> 24; }
    static __device__ __forceinline__ unsigned bits(unsigned sum) { return sum; }
    static __device__ __forceinline__ unsigned index(unsigned sum) { return sum >> 24; }
    __device__ __forceinline__ unsigned over(const Level* taps) const {
        Level near = taps[REACH];
#pragma unroll
        for (int k = 1; k <= RADIUS; ++k) near += taps[REACH - k] + taps[REACH + k];
        return near * box.inner + ((taps[0] + taps[2 * REACH]) * box.outer + (1u << 23));
    }
};

// The same of radius 0 in one rounding, on biased levels: the level and the outer weight's share of a difference of at
// most 510. It ends on the other side of one half only where near_tie() finds one such difference.
struct FusedBox {
    static constexpr int REACH = 1, TAPS = 3;
    static constexpr unsigned BYTE = 0, ORIGIN = 0x4B000000;  // the bits of BIAS
    using Level = float;
    float outer;

    static __device__ __forceinline__ Level unpacked(unsigned word, int byte) {
        return __uint_as_float(pick_bytes(word, __float_as_uint(BIAS), 0x7650 | byte));
    }
    static __device__ __forceinline__ Level level(float sum) { return sum; }
    static __device__ __forceinline__ unsigned bits(float sum) { return __float_as_uint(sum); }
    static __device__ __forceinline__ unsigned index(float sum) { return bits(sum); }
    __device__ __forceinline__ float over(const Level* taps) const {
        return fmaf(outer, (taps[2] - taps[1]) - (taps[1] - taps[0]), taps[1]);
    }
};

// Whether the outer weight times ``difference`` lies within 2^-16 of a half. Else FusedBox is exact: WholeBox has
// floor((2^24 x + outer d + 2^23 - e x) / 2^24), where inner + 2 outer = 2^24 - e and e x is below 256.
__device__ __forceinline__ bool near_tie(Box box, int difference) {
    return (box.outer * difference + (1u << 23) + 256 & (1u << 24) - 1) <= 512;
}

// The three boxes over values[0, RUN + 2 HALO), of which values[HALO] begins the line where ``starts``, and
// values[HALO + last] ends it. The sum for values[HALO + j] is left in values[j].
template <class AnyBox>
__device__ __forceinline__ void three_boxes(typename AnyBox::Level (&values)[RUN + 6 * AnyBox::REACH],
                                            const AnyBox& box, bool starts, int last) {
    constexpr int REACH = AnyBox::REACH;
#pragma unroll
    for (int pass = 0; pass < 3; ++pass) {
        const int before = (3 - pass) * REACH, count = RUN + 2 * before;
        if (starts) {
#pragma unroll
            for (int i = 0; i < before; ++i) values[i] = values[before];
        }
        const int end = last + before;
        if (end < count - 1) {
#pragma unroll
            for (int i = before + 1; i < count; ++i) values[i] = i > end ? values[i - 1] : values[i];
        }
#pragma unroll
        for (int i = 0; i < count - 2 * REACH; ++i) {
            const auto sum = box.over(values + i);
            values[i] = pass < 2 ? AnyBox::level(sum) : sum;
        }
    }
}

// Every row of the strip, in place: a round of whole rows is read before any of it is written.
template <class AnyBox>
__device__ __forceinline__ void blur_rows(
    unsigned* strip, int pitch, int row_words, int rows, int width, const AnyBox& box) {
    constexpr int HALO = 3 * AnyBox::REACH;
    constexpr int SIDE = (3 * HALO + 3) / 4, CENTRE = RUN * 3 / 4, SKIP = 4 * SIDE - 3 * HALO;
    const int runs = (width + RUN - 1) / RUN;
    const int rounds = (rows * runs + blockDim.x - 1) / blockDim.x;
    const int share = min((rows + rounds - 1) / rounds, (int)blockDim.x / runs);
    for (int top = 0; top < rows; top += share) {
        const int count = min(share, rows - top);
        // Neighbouring threads take neighbouring rows: an odd pitch spreads them over the banks.
        const int run = threadIdx.x / count, held = row_words - run * CENTRE;
        const bool active = run < runs, inside = held >= CENTRE + SIDE;
        unsigned* centre = strip + (top + threadIdx.x % count) * pitch + run * CENTRE;
        unsigned words[CENTRE + 2 * SIDE];
        if (active) {
            // What lies beyond the row's ends is replaced: any words do, at its beginning those before the strip.
            const unsigned* left = (run > 0 ? centre : strip) - SIDE;
#pragma unroll
            for (int i = 0; i < SIDE; ++i) words[i] = left[i];
            if (inside) {
#pragma unroll
                for (int i = 0; i < CENTRE + SIDE; ++i) words[SIDE + i] = centre[i];
            } else {
#pragma unroll
                for (int i = 0; i < CENTRE + SIDE; ++i) words[SIDE + i] = centre[min(i, held - 1)];
            }
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                typename AnyBox::Level values[RUN + 2 * HALO];
#pragma unroll
                for (int i = 0; i < RUN + 2 * HALO; ++i) {
                    const int byte = SKIP + 3 * i + c;
                    values[i] = AnyBox::unpacked(words[byte / 4], byte % 4);
                }
                three_boxes(values, box, run == 0, width - 1 - run * RUN);
#pragma unroll
                for (int i = 0; i < RUN; ++i) {
                    const int byte = 4 * SIDE + 3 * i + c;
                    words[byte / 4] = with_byte(words[byte / 4], byte % 4, AnyBox::bits(values[i]), AnyBox::BYTE);
                }
            }
        }
        __syncthreads();
        if (active && inside) {
#pragma unroll
            for (int i = 0; i < CENTRE; ++i) centre[i] = words[SIDE + i];
        } else if (active) {
#pragma unroll
            for (int i = 0; i < CENTRE; ++i)
                if (i < held) centre[i] = words[SIDE + i];
        }
    }
    __syncthreads();
}

// One column of BYTES neighbouring bytes, 1 or 2, downwards: rows [top, bottom) to ``write_of()(levels)``, from a strip
// that holds all rows that they depend on; ``column`` is where row 0 is or would be. The boxes follow each other REACH
// rows apart. Only near the ends of the rows and of the image is anything checked: in between, ROWS rows are one
// straight piece of code, whose windows move by naming.
template <int BYTES, class AnyBox, class WriteOf>
__device__ __forceinline__ void blur_column(const unsigned char* column, int pitch_bytes, int top,
                                            int bottom, int height, const AnyBox& box, const WriteOf& write_of) {
    constexpr int REACH = AnyBox::REACH, TAPS = AnyBox::TAPS, ROWS = TAPS == 3 ? 2 * TAPS : TAPS;
    using Level = typename AnyBox::Level;
    Level windows[3][BYTES][TAPS] = {};  // what each box reads, newest last
    const auto advance = [&](auto checked, int y, auto&& write) {
        const int from = checked ? min(max(y, 0), height - 1) : y;
        const unsigned char* at = column + from * pitch_bytes;
        const unsigned word = BYTES == 2 ? *(const unsigned short*)at : *at;
        Level levels[BYTES];
        unsigned bytes[BYTES];
#pragma unroll
        for (int k = 0; k < BYTES; ++k) levels[k] = AnyBox::unpacked(word, k);
#pragma unroll
        for (int pass = 0; pass < 3; ++pass) {
            const int row = y - pass * REACH;
#pragma unroll
            for (int k = 0; k < BYTES; ++k) {
                auto& window = windows[pass][k];
                if (checked && row >= height) levels[k] = window[TAPS - 1];
#pragma unroll
                for (int i = 0; i < TAPS - 1; ++i) window[i] = window[i + 1];
                window[TAPS - 1] = levels[k];
                if (checked && row == 0) {  // stands for the rows above it too
#pragma unroll
                    for (int i = 0; i < TAPS - 1; ++i) window[i] = levels[k];
                }
                const auto sum = box.over(window);
                levels[k] = AnyBox::level(sum);
                bytes[k] = AnyBox::index(sum);
            }
        }
        write(bytes);
    };
    const int end = bottom + 3 * REACH, filled = top + 3 * REACH;
    int y = top - 3 * REACH;
    const auto drop = [](const unsigned (&)[BYTES]) {};
    for (; y >= 0 && y + ROWS <= min(filled, height); y += ROWS) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) advance(Constant<false>{}, y + row, drop);
    }
    for (; y < filled; ++y) advance(Constant<true>{}, y, drop);
    auto write = write_of();
    for (; y + ROWS <= min(end, height); y += ROWS) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) advance(Constant<false>{}, y + row, write);
    }
    for (; y < end; ++y) advance(Constant<true>{}, y, write);
}
