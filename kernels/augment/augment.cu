// Photometric augmentation on the device: bytes in, normalised views out, one block a view and one launch a batch.
//
// A block reads its crop once, recolours it in registers, eight pixels a thread, and keeps the bytes in shared memory:
// 224 x 224 pixels take 151,424 bytes, one block of 1024 threads on a multiprocessor of an A100, H100 or B200. Contrast
// needs the mean luma of what the operations before it give: they run first, their sum is taken on the way, and the
// others go on from shared memory. The blur runs along the rows in place, then down the columns straight into the view.
// Solarization and normalisation are one table of 256 levels a channel, made by the reference itself, so that a view's
// bits are the reference's in every dtype. Where an image exceeds a block (sm_120 holds 99 KiB, some images are
// larger) it is cut into strips of rows, a block each, with a halo for the blur; each then takes the mean on its own.
//
// A blend is one fused operation, where Pillow rounds three times, and so is a box of radius 0, where Pillow has whole
// numbers. The few factors and weights that may give another byte so are found beforehand (find_inexact) and are done
// as Pillow does them.
//
// Floor, 224 pixels to bf16 on an H200: 150,528 bytes in and 301,056 out at 4.3 TB/s are 105 ns a view, in which its
// 132 multiprocessors can issue 62 instructions a pixel. The official recipe takes about 182 on average: 123 for the
// jitter (hue 53, brightness, contrast and saturation 38, its two passes over the pixels 32), 108 for a blur of radius
// 0 and 158 for one of radius 1, view included, and 21 to write a view without one. So instructions bind it, not
// traffic: 2.9 times the floor at full issue, which no kernel reaches. These are counts from the machine code for
// sm_90, no other pipe of which is busier; bank conflicts of the table are not in them. It has not been timed.

#include "blur.cuh"
#include "colour.cuh"

#ifndef LEVEL_BYTES
#define LEVEL_BYTES 2  // of a view's element: 4 for float32
#endif
#if LEVEL_BYTES == 2
using Level = unsigned short;
#else
using Level = unsigned;
#endif

template <int COUNT>
struct __align__(COUNT * sizeof(Level)) Group {
    Level levels[COUNT];
};

constexpr int STEPS = 5;          // four of the jitter and grey
constexpr int FIXED_BYTES = 328;  // of shared memory, before the table
constexpr int TABLE = 6 * 256;    // every channel twice, so that neighbouring bytes' parts follow each other

// One view's row of the table that cuda.py's recipes() makes.
struct Recipe {
    int operation[STEPS];  // in order; -1: none
    float factor[STEPS];   // hue's in bytes
    int contrast;          // its place among the steps; -1: none
    Box box;
    float threshold;  // of solarization; 256: none
};

struct Fixed {
    unsigned long long sums[32];  // of each warp
    Level* volatile view;         // read where it is used: no register is to hold it all along
    Recipe recipe;
    unsigned inexact;  // as find_inexact() leaves it
};
static_assert(sizeof(Fixed) == FIXED_BYTES, "as cuda.py has it");

struct Image {
    const unsigned char* crop;
    unsigned* strip;  // rows of ``pitch`` words in shared memory
    int height, width, quads, pitch;
    bool word_aligned;
};

// Of the rows that a block makes, [top, bottom), and those that it holds for them, [first, end).
struct Span {
    int top, bottom, first, end;
};

// Threads laid over rows of ``columns``, as many rows at a time as fit the block; each keeps to its column and takes
// COUNT rows together.
template <int COUNT, class Visit>
__device__ __forceinline__ void over_rows(int rows, int columns, const Visit& visit) {
    const int across = min(columns, (int)blockDim.x), down = blockDim.x / across;
    const int x0 = threadIdx.x % across, y0 = threadIdx.x / across;
    if (y0 >= down) return;
    for (int x = x0; x < columns; x += across)
        for (int y = y0; y < rows; y += COUNT * down) visit(y, down, x);
}

__device__ __forceinline__ void load_quad(const Image& image, int y, int quad, unsigned (&words)[3]) {
    const unsigned char* at = image.crop + ((long long)y * image.width + 4 * quad) * 3;
    if (image.word_aligned) {
#pragma unroll
        for (int i = 0; i < 3; ++i) words[i] = ((const unsigned*)at)[i];
    } else {
        const int bytes = min(12, (image.width - 4 * quad) * 3);
        words[0] = words[1] = words[2] = 0;
#pragma unroll
        for (int i = 0; i < 12; ++i)
            if (i < bytes) words[i / 4] |= (unsigned)at[i] << 8 * (i % 4);
    }
}

// Steps [first, last) over rows [top, top + rows), from the crop or in place in the strip, whose first row is ``top``.
// Returns the sum of this thread's luma where ``measure``.
__device__ unsigned recolour(const Image& image, const Recipe& recipe, unsigned inexact, int first, int last,
                             float mean, int top, int rows, bool load, bool store, bool measure) {
    constexpr int QUADS = 2;
    unsigned total = 0;
    over_rows<QUADS>(rows, image.quads, [&](int y, int down, int x) {
        unsigned* place = image.strip + y * image.pitch + 3 * x;
        // Pixels beyond the rows' ends and the last row are black: to the sum of luma they add nothing.
        unsigned words[QUADS][3] = {};
        Quad quads[QUADS];
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
            if (y + q * down >= rows) continue;
            if (load) {
                load_quad(image, top + y + q * down, x, words[q]);
            } else {
#pragma unroll
                for (int i = 0; i < 3; ++i) words[q][i] = place[q * down * image.pitch + i];
            }
        }
#pragma unroll
        for (int q = 0; q < QUADS; ++q) quads[q] = unpacked(words[q]);
        for (int step = first; step < last; ++step)
            if (recipe.operation[step] >= 0)
                apply(recipe.operation[step], recipe.factor[step], inexact >> step & 1, mean, quads);
#pragma unroll
        for (int q = 0; q < QUADS; ++q) {
            if (measure) {
#pragma unroll
                for (int p = 0; p < 4; ++p)
                    total += luma_fixed(quads[q].r[p], quads[q].g[p], quads[q].b[p]) >> 16;
            }
            if (store && y + q * down < rows) {
                pack(quads[q], words[q]);
#pragma unroll
                for (int i = 0; i < 3; ++i) place[q * down * image.pitch + i] = words[q][i];
            }
        }
    });
    return total;
}

// One column of BYTES neighbouring bytes to the view, through the table, every ``step`` rows from row ``y``. Bytes come
// as words that exceed them by ``origin``.
template <int BYTES>
struct Writer {
    const unsigned char* table;
    Level* at;
    unsigned offset;  // of the first byte's channel, less the origin; 32 bits that wrap, so that one operation adds it
    int stride;

    __device__ __forceinline__ Writer(
        const Level* levels, unsigned origin, Level* view, int y, int step, int column, int width)
        : table((const unsigned char*)levels),
          at(view + (long long)y * width * 3 + BYTES * column),
          offset((BYTES * column % 3 * 256 - origin) * (unsigned)sizeof(Level)),
          stride(3 * width * step) {}

    __device__ __forceinline__ void operator()(const unsigned (&bytes)[BYTES]) {
        Group<BYTES> group;
#pragma unroll
        for (int k = 0; k < BYTES; ++k) {
            const unsigned place = bytes[k] * (unsigned)sizeof(Level) + offset;
            group.levels[k] = *(const Level*)(table + 256 * k * sizeof(Level) + place);
        }
        *(Group<BYTES>*)at = group;
        at += stride;
    }
};

// The strip's rows as they are, ``BYTES`` at a time, of which a row is a multiple.
template <int BYTES>
__device__ void write_rows(const Image& image, const Span& span, const Level* table, Level* view) {
    const int columns = 3 * image.width / BYTES, across = min(columns, (int)blockDim.x), down = blockDim.x / across;
    const int top = span.top + threadIdx.x / across;
    if (top >= span.top + down) return;
    for (int x = threadIdx.x % across; x < columns; x += across) {
        Writer<BYTES> write(table, 0, view, top, down, x, image.width);
        const unsigned char* at = (const unsigned char*)(image.strip + (top - span.first) * image.pitch) + BYTES * x;
        for (int y = top; y < span.bottom; y += down, at += 4 * down * image.pitch) {
            const unsigned word = BYTES == 4 ? *(const unsigned*)at : *at;
            unsigned bytes[BYTES];
#pragma unroll
            for (int k = 0; k < BYTES; ++k) bytes[k] = byte_of(word, k);
            write(bytes);
        }
    }
}

template <int BYTES, class AnyBox>
__device__ void blur_columns(
    const Image& image, const Span& span, const AnyBox& box, const Level* table, const Fixed& fixed) {
    const int columns = 3 * image.width / BYTES;
    const int across = min(columns, (int)blockDim.x), parts = blockDim.x / across, part = threadIdx.x / across;
    const int rows = (span.bottom - span.top + parts - 1) / parts;
    const int top = span.top + part * rows, bottom = min(top + rows, span.bottom);
    if (part >= parts) return;
    for (int column = threadIdx.x % across; column < columns; column += across) {
        const unsigned char* bytes = (const unsigned char*)(image.strip - span.first * image.pitch) + BYTES * column;
        const auto write_of = [&] {
            return Writer<BYTES>(table, AnyBox::ORIGIN, fixed.view, top, 1, column, image.width);
        };
        blur_column<BYTES>(bytes, 4 * image.pitch, top, bottom, image.height, box, write_of);
    }
}

template <class AnyBox>
__device__ void blur(
    const Image& image, const Span& span, const AnyBox& box, const Level* table, const Fixed& fixed) {
    blur_rows(image.strip, image.pitch, 3 * image.quads, span.end - span.first, image.width, box);
    if (image.width % 2 == 0) {
        blur_columns<2>(image, span, box, table, fixed);  // what 64 registers hold
    } else {
        blur_columns<1>(image, span, box, table, fixed);
    }
}

// Which steps take Pillow's operations one by one, a bit each, and whether the box does, the bit after them: a thread
// tries one of the differences that there are between levels.
__device__ void find_inexact(const Recipe& recipe, unsigned* inexact) {
    for (int size = threadIdx.x; size < 512; size += blockDim.x) {
        for (int step = 0; step < STEPS; ++step) {
            const int operation = recipe.operation[step];
            if (operation >= 0 && operation != HUE && size < 256 && !blends_at_once(recipe.factor[step], size))
                atomicOr(inexact, 1u << step);
        }
        if (recipe.box.radius == 0 && near_tie(recipe.box, size)) atomicOr(inexact, 1u << STEPS);
    }
}

// The rounded mean of the luma, biased, in every thread. Whole sums: no order of summation changes them.
__device__ float mean_luma(unsigned total, int pixels, unsigned long long* sums) {
    unsigned long long sum = total;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += sums[warp];
    return BIAS + (float)((2 * sum + pixels) / (2ull * pixels));
}

// crops (batch, views, height, width, 3); recipes (batch, views); levels (3, 256), what each byte becomes;
// out (views, batch, height, width, 3). The grid has a block for each crop and strip of ``strip_rows``; dynamic shared
// memory holds the warps' sums, the recipe, the table and the strip with its halo.
extern "C" __global__ void __launch_bounds__(1024) augment(
    const unsigned char* __restrict__ crops, const Recipe* __restrict__ recipes, const Level* __restrict__ levels,
    Level* __restrict__ out, int batch, int views, int height, int width, int strip_rows, int word_aligned) {
    extern __shared__ __align__(16) unsigned char shared[];
    Fixed& fixed = *(Fixed*)shared;
    Recipe& recipe = fixed.recipe;
    Level* table = (Level*)(shared + FIXED_BYTES);
    const long long number = blockIdx.x, size = (long long)height * width * 3;
    if (threadIdx.x < sizeof(Recipe) / 4) ((int*)&recipe)[threadIdx.x] = ((const int*)(recipes + number))[threadIdx.x];
    if (threadIdx.x == 0) {
        fixed.view = out + (number % views * batch + number / views) * size;
        fixed.inexact = 0;
    }
    __syncthreads();
    find_inexact(recipe, &fixed.inexact);
    for (int i = threadIdx.x; i < TABLE; i += blockDim.x)
        table[i] = levels[((float)(i & 255) < recipe.threshold ? i : i ^ 255) % 768];
    __syncthreads();

    const int quads = (width + 3) / 4;
    const Image image = {
        crops + number * size, (unsigned*)(table + TABLE), height, width, quads, 3 * quads | 1, word_aligned != 0};
    const Box box = recipe.box;
    const int top = blockIdx.y * strip_rows, bottom = min(top + strip_rows, height), halo = 3 * (box.radius + 1);
    const Span span = {top, bottom, max(top - halo, 0), min(bottom + halo, height)};

    float mean = BIAS;
    int done = 0;
    const bool measured = recipe.contrast >= 0, kept = measured && strip_rows >= height;
    if (measured) {
        unsigned total = recolour(image, recipe, fixed.inexact, 0, recipe.contrast, mean, 0, height, true, kept, true);
        mean = mean_luma(total, height * width, fixed.sums);
        if (kept) done = recipe.contrast;
    }
    recolour(image, recipe, fixed.inexact, done, STEPS, mean, span.first, span.end - span.first, !kept, true, false);
    __syncthreads();

    if (box.radius < 0) {
        if (width % 4 == 0) {
            write_rows<4>(image, span, table, fixed.view);
        } else {
            write_rows<1>(image, span, table, fixed.view);
        }
    } else if (box.radius == 0) {
        if (fixed.inexact >> STEPS & 1) {
            blur(image, span, WholeBox<0>{box}, table, fixed);
        } else {
            blur(image, span, FusedBox{(float)box.outer * 0x1p-24f}, table, fixed);
        }
    } else {
        blur(image, span, WholeBox<1>{box}, table, fixed);
    }
}
