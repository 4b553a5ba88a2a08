// Pillow's Gaussian blur on packed bytes in shared memory: three extended boxes along an axis, in registers.
//
// Along a row each thread takes a run and a halo of 3 (radius + 1) on both sides, which shrinks box by box; down a
// column the boxes stream. Beyond the image the first and last pixels repeat, anew before each box, as Pillow reads
// them. A sum of 2^-24 weights fills 32 bits, so that its top byte is the level.
#pragma once

#include "colour.cuh"

constexpr int RUN = 16;  // pixels that a thread blurs along a row: a multiple of 4, which are three whole words

template <bool VALUE>
struct Constant {
    __device__ constexpr operator bool() const { return VALUE; }
};

struct Box {
    int radius;             // -1: no blur
    unsigned inner, outer;  // weights in units of 2^-24
};

// The three boxes over values[0, RUN + 2 HALO), of which values[HALO] is at ``position`` and ``last`` ends the line.
// The result for ``position`` + j is left in the top byte of values[j].
template <int RADIUS>
__device__ __forceinline__ void three_boxes(
    unsigned (&values)[RUN + 6 * (RADIUS + 1)], Box box, int position, int last) {
    constexpr int REACH = RADIUS + 1;
#pragma unroll
    for (int pass = 0; pass < 3; ++pass) {
        const int before = (3 - pass) * REACH, count = RUN + 2 * before;
        if (position == 0) {
#pragma unroll
            for (int i = 0; i < before; ++i) values[i] = values[before];
        }
        const int end = last - position + before;
        if (end < count - 1) {
#pragma unroll
            for (int i = before + 1; i < count; ++i) values[i] = i > end ? values[i - 1] : values[i];
        }
#pragma unroll
        for (int i = REACH; i < count - REACH; ++i) {
            unsigned near = values[i];
#pragma unroll
            for (int k = 1; k <= RADIUS; ++k) near += values[i - k] + values[i + k];
            unsigned sum = near * box.inner + ((values[i - REACH] + values[i + REACH]) * box.outer + (1u << 23));
            values[i - REACH] = pass < 2 ? sum >> 24 : sum;
        }
    }
}

__device__ __forceinline__ unsigned byte_of(unsigned word, int byte) { return pick_bytes(word, 0, 0x4440 | byte); }

__device__ __forceinline__ unsigned with_byte(unsigned word, int byte, unsigned sum) {
    const unsigned identity = 0x3210, place = 15u << 4 * byte;
    return pick_bytes(word, sum, (identity & ~place) | 7u << 4 * byte);
}

// Every row of the strip, in place: a round of whole rows is read before any of it is written.
template <int RADIUS>
__device__ void blur_rows(unsigned* strip, int pitch, int row_words, int rows, int width, Box box) {
    constexpr int HALO = 3 * (RADIUS + 1);
    constexpr int SIDE = (3 * HALO + 3) / 4, CENTRE = RUN * 3 / 4, SKIP = 4 * SIDE - 3 * HALO;
    const int runs = (width + RUN - 1) / RUN;
    const int rounds = (rows * runs + blockDim.x - 1) / blockDim.x;
    const int share = min((rows + rounds - 1) / rounds, (int)blockDim.x / runs);
    for (int top = 0; top < rows; top += share) {
        const int count = min(share, rows - top);
        // Neighbouring threads take neighbouring rows: an odd pitch spreads them over the banks.
        const int run = threadIdx.x / count, x = run * RUN;
        const bool active = run < runs;
        unsigned* row = strip + (top + threadIdx.x % count) * pitch;
        const int first = run * CENTRE;
        unsigned words[CENTRE + 2 * SIDE];
        if (active) {
#pragma unroll
            for (int i = 0; i < CENTRE + 2 * SIDE; ++i) {
                int word = first - SIDE + i;
                words[i] = row[i < SIDE ? max(word, 0) : min(word, row_words - 1)];
            }
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                unsigned values[RUN + 2 * HALO];
#pragma unroll
                for (int i = 0; i < RUN + 2 * HALO; ++i) {
                    const int byte = SKIP + 3 * i + c;
                    values[i] = byte_of(words[byte / 4], byte % 4);
                }
                three_boxes<RADIUS>(values, box, x, width - 1);
#pragma unroll
                for (int i = 0; i < RUN; ++i) {
                    const int byte = 4 * SIDE + 3 * i + c;
                    words[byte / 4] = with_byte(words[byte / 4], byte % 4, values[i]);
                }
            }
        }
        __syncthreads();
        if (active) {
#pragma unroll
            for (int i = 0; i < CENTRE; ++i)
                if (first + i < row_words) row[first + i] = words[SIDE + i];
        }
    }
    __syncthreads();
}

// One column of BYTES neighbouring bytes downwards: rows [top, bottom) to ``write(levels)``, from a strip that begins
// with row ``first`` and holds all that they depend on. The boxes follow each other REACH rows apart. Only near the
// ends of the rows and of the image is anything checked: in between, TAPS rows are one straight piece of code.
template <int RADIUS, int BYTES, class Write>
__device__ __forceinline__ void blur_column(
    const unsigned char* column, int pitch_bytes, int first, int top, int bottom, int height, Box box, Write& write) {
    constexpr int REACH = RADIUS + 1, TAPS = 2 * REACH + 1;
    unsigned ring[3][TAPS][BYTES] = {};  // what each box reads, newest at ``slot``
    const auto advance = [&](auto checked, int slot, int y) {
        const int from = checked ? min(max(y, 0), height - 1) : y;
        const unsigned char* at = column + (from - first) * pitch_bytes;
        const unsigned word = BYTES == 4 ? *(const unsigned*)at : *(const unsigned short*)at;
#pragma unroll
        for (int k = 0; k < BYTES; ++k) ring[0][slot][k] = byte_of(word, k);
        unsigned levels[BYTES];
#pragma unroll
        for (int pass = 0; pass < 3; ++pass) {
            const auto tap = [&](int back, int k) { return ring[pass][(slot - back + TAPS) % TAPS][k]; };
#pragma unroll
            for (int k = 0; k < BYTES; ++k) {
                unsigned near = tap(REACH, k);
#pragma unroll
                for (int i = 1; i <= RADIUS; ++i) near += tap(REACH - i, k) + tap(REACH + i, k);
                levels[k] = (near * box.inner + ((tap(0, k) + tap(2 * REACH, k)) * box.outer + (1u << 23))) >> 24;
            }
            if (pass == 2) break;
            auto& next = ring[pass + 1];
#pragma unroll
            for (int k = 0; k < BYTES; ++k) next[slot][k] = levels[k];
            const int row = y - (pass + 1) * REACH;
            if (checked && row == 0) {  // stands for the rows above it too
#pragma unroll
                for (int i = 0; i < TAPS * BYTES; ++i) next[i / BYTES][i % BYTES] = levels[i % BYTES];
            }
            if (checked && row >= height) {
#pragma unroll
                for (int k = 0; k < BYTES; ++k) next[slot][k] = next[(slot + TAPS - 1) % TAPS][k];
            }
        }
        if (!checked || y - 3 * REACH >= top) write(levels);
    };
    const int end = bottom + 3 * REACH;
    for (int y = top - 3 * REACH; y < end; y += TAPS) {
        if (y >= top + 3 * REACH && y + TAPS <= min(end, height)) {
#pragma unroll
            for (int slot = 0; slot < TAPS; ++slot) advance(Constant<false>{}, slot, y + slot);
        } else {
#pragma unroll
            for (int slot = 0; slot < TAPS; ++slot)
                if (y + slot < end) advance(Constant<true>{}, slot, y + slot);
        }
    }
}
