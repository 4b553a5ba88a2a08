// Photometric augmentation on the device: bytes in, normalised views out, one block a view and one launch a batch.
//
// A block reads its crop once, recolours it in registers, four pixels a thread, and keeps the bytes in shared memory:
// 224 x 224 pixels take 151,424 bytes, one block of 1024 threads on a multiprocessor of an A100, H100 or B200. Contrast
// needs the mean luma of what the operations before it give: they run first, their sum is taken on the way, and the
// others go on from shared memory. The blur runs along the rows in place, then down the columns straight into the view.
// Solarization and normalisation are one table of 256 levels a channel, made by the reference itself, so that a view's
// bits are the reference's in every dtype. Where an image exceeds a block (sm_120 holds 99 KiB, some images are
// larger) it is cut into strips of rows, a block each, with a halo for the blur; each then takes the mean on its own.
//
// Floor, 224 pixels to bf16 on an H200: 150,528 bytes in and 301,056 out at 4.3 TB/s are 105 ns a view, in which its
// 132 multiprocessors can issue 62 instructions a pixel. The official recipe takes about 180: 110 for the jitter (hue
// alone 60), 100 to 120 for a blur, and 18 to write a view without one. So instructions bind it, not traffic: 2.9 times
// the floor at full issue. These are counts from the machine code for sm_90; it has not been timed.

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
constexpr int FIXED_BYTES = 320;  // a sum for each warp, and the recipe
constexpr int TABLE = 6 * 256;    // every channel twice, so that neighbouring bytes' parts follow each other

// One view's row of the table that cuda.py's recipes() makes.
struct Recipe {
    int operation[STEPS];  // in order; -1: none
    float factor[STEPS];   // hue's in bytes
    int contrast;          // its place among the steps; -1: none
    Box box;
    float threshold;  // of solarization; 256: none
};

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

// Threads laid over rows of ``columns``, as many rows at a time as fit the block.
template <class Visit>
__device__ __forceinline__ void over_rows(int rows, int columns, const Visit& visit) {
    const int across = min(columns, (int)blockDim.x), down = blockDim.x / across;
    const int x0 = threadIdx.x % across, y0 = threadIdx.x / across;
    if (y0 >= down) return;
    for (int y = y0; y < rows; y += down)
        for (int x = x0; x < columns; x += across) visit(y, x);
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
__device__ unsigned recolour(const Image& image, const Recipe& recipe, int first, int last, float mean, int top,
                             int rows, bool load, bool store, bool measure) {
    unsigned total = 0;
    over_rows(rows, image.quads, [&](int y, int x) {
        unsigned* place = image.strip + y * image.pitch + 3 * x;
        unsigned words[3];
        if (load) {
            load_quad(image, top + y, x, words);
        } else {
#pragma unroll
            for (int i = 0; i < 3; ++i) words[i] = place[i];
        }
        Quad quad = unpacked(words);
        for (int step = first; step < last; ++step)
            if (recipe.operation[step] >= 0) apply(recipe.operation[step], recipe.factor[step], mean, quad);
        if (measure) {
            // Pixels beyond the row's end are black, which no operation changes: they add nothing.
#pragma unroll
            for (int p = 0; p < 4; ++p)
                total += __float_as_uint(luma_biased(quad.r[p], quad.g[p], quad.b[p])) & 255;
        }
        if (store) {
            pack(quad, words);
#pragma unroll
            for (int i = 0; i < 3; ++i) place[i] = words[i];
        }
    });
    return total;
}

// Row after row of one column of BYTES neighbouring bytes to the view, through the table.
template <int BYTES>
struct Writer {
    const Level* table;  // of the first byte's channel; the next ones' follow
    Level* at;
    int stride;
    int ragged;  // elements to store one by one; 0: all of them at once

    __device__ Writer(const Level* levels, Level* view, int y, int column, int width)
        : table(levels + BYTES * column % 3 * 256),
          at(view + (long long)y * width * 3 + BYTES * column),
          stride(3 * width),
          ragged(3 * width % BYTES ? min(BYTES, 3 * width - BYTES * column) : 0) {}

    __device__ __forceinline__ void operator()(const unsigned (&bytes)[BYTES]) {
        Group<BYTES> group;
#pragma unroll
        for (int k = 0; k < BYTES; ++k) group.levels[k] = table[256 * k + bytes[k]];
        if (ragged == 0) {
            *(Group<BYTES>*)at = group;
        } else {
#pragma unroll
            for (int k = 0; k < BYTES; ++k)
                if (k < ragged) at[k] = group.levels[k];
        }
        at += stride;
    }
};

template <int RADIUS>
__device__ void blur(const Image& image, const Span& span, Box box, const Level* table, Level* view) {
    constexpr int BYTES = 2;  // of a column: what 64 registers hold
    blur_rows<RADIUS>(image.strip, image.pitch, 3 * image.quads, span.end - span.first, image.width, box);
    const int columns = (3 * image.width + BYTES - 1) / BYTES;
    const int parts = max(1, (int)blockDim.x / columns), rows = (span.bottom - span.top + parts - 1) / parts;
    for (int task = threadIdx.x; task < parts * columns; task += blockDim.x) {
        const int column = task % columns, top = span.top + task / columns * rows;
        const unsigned char* bytes = (const unsigned char*)image.strip + BYTES * column;
        Writer<BYTES> write(table, view, top, column, image.width);
        blur_column<RADIUS, BYTES>(bytes, 4 * image.pitch, span.first, top, min(top + rows, span.bottom), image.height,
                                   box, write);
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
    unsigned long long* sums = (unsigned long long*)shared;
    Recipe& recipe = *(Recipe*)(sums + 32);
    Level* table = (Level*)(shared + FIXED_BYTES);
    const long long number = blockIdx.x, size = (long long)height * width * 3;
    if (threadIdx.x < sizeof(Recipe) / 4) ((int*)&recipe)[threadIdx.x] = ((const int*)(recipes + number))[threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.x; i < TABLE; i += blockDim.x)
        table[i] = levels[((float)(i & 255) < recipe.threshold ? i : i ^ 255) % 768];

    const int quads = (width + 3) / 4;
    const Image image = {
        crops + number * size, (unsigned*)(table + TABLE), height, width, quads, 3 * quads | 1, word_aligned != 0};
    Level* view = out + (number % views * batch + number / views) * size;
    const Box box = recipe.box;
    const int top = blockIdx.y * strip_rows, bottom = min(top + strip_rows, height), halo = 3 * (box.radius + 1);
    const Span span = {top, bottom, max(top - halo, 0), min(bottom + halo, height)};

    float mean = BIAS;
    int done = 0;
    const bool measured = recipe.contrast >= 0, kept = measured && strip_rows >= height;
    if (measured) {
        unsigned total = recolour(image, recipe, 0, recipe.contrast, mean, 0, height, true, kept, true);
        mean = mean_luma(total, height * width, sums);
        if (kept) done = recipe.contrast;
    }
    recolour(image, recipe, done, STEPS, mean, span.first, span.end - span.first, !kept, true, false);
    __syncthreads();

    if (box.radius < 0) {
        over_rows(bottom - top, 3 * quads, [&](int y, int x) {
            const unsigned word = image.strip[y * image.pitch + x];
            unsigned bytes[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) bytes[k] = byte_of(word, k);
            Writer<4>(table, view, top + y, x, width)(bytes);
        });
    } else if (box.radius == 0) {
        blur<0>(image, span, box, table, view);
    } else {
        blur<1>(image, span, box, table, view);
    }
}
