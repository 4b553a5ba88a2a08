"""The compiled code of the CPU implementation: one view after another, each thread on its own.

It is one file, and takes nothing from others, because numba's on-disk cache sees changes of a function's own file
only. The arithmetic is that of ``reference``. Colour runs over float32 planes that stay in the L1 cache, in loops
without a branch, so that LLVM turns each into vector code; the blur runs over interleaved bytes.
"""

from __future__ import annotations

import numpy as np

from fastvicreg.caches import njit

CHUNK = 1024  # pixels; their three float32 planes take 12 KiB
BLOCK = 1024  # elements of a blur wider than usual
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering in ColorJitter

F = np.float32
LUMA_R, LUMA_G, LUMA_B = F(19595 / 65536), F(38470 / 65536), F(7471 / 65536)
ZERO, HALF, ONE, TWO, THREE, FOUR, SIX, TOP = F(0), F(0.5), F(1), F(2), F(3), F(4), F(6), F(255)
BYTES, HUE_SIXTHS, UNIT = F(256), F(6 / 255), F(1 / 255)

# No "contract": a fused multiply-add rounds once where Pillow rounds twice. The error model keeps a division from
# branching on zero.
OPTIONS = {"error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz"}}


@njit(nogil=True, **OPTIONS)
def augment_views(first, last, crops, turns, values, gray, radius, inner, outer, threshold, table, out):
    """``crops[first:last]`` of (N, H, W * 3) bytes, sample by sample and view by view, to ``out`` (V, N / V, H, W * 3).

    Per crop: ``turns`` (N, 4) jitter operations in order, -1 for none, and ``values`` (N, 4) by operation (hue's in
    bytes); ``gray``; ``radius``, ``inner``, ``outer`` of the blur's box (inner 2**24: no blur); ``threshold`` of
    solarization. ``table`` (3, 256) is what each byte becomes in the end.
    """
    height, row = crops.shape[1:]
    views = out.shape[0]
    margin = radius.max() + 1
    left, right = 3 * margin, 3 * margin + row
    for task in range(first, last):
        image = np.empty((height + 2 * margin, row + 6 * margin), np.uint8)
        spare = np.empty((height + 2 * margin, row + 6 * margin), np.uint8)
        view = out[task % views, task // views]
        coloured = _colour(crops[task], turns[task], values[task], gray[task], spare)
        levels = _solarized(table, threshold[task])
        if inner[task] < 1 << 24:
            for y in range(height):
                image[margin + y, left:right] = coloured[y]
            _blur(image, spare, margin, radius[task], inner[task], outer[task])
            for y in range(height):
                _look_up(image[margin + y, left:right], levels, view[y])
        else:
            for y in range(height):
                _look_up(coloured[y], levels, view[y])


@njit(**OPTIONS)
def _colour(crop, turns, values, gray, spare):
    """Jitter and grayscale: the result in the memory of ``spare``, or ``crop`` itself where nothing is to be done."""
    operations, factors = np.empty(5, np.int64), np.empty(5, np.float32)
    count, contrast_at = 0, -1
    for operation in turns:
        if operation == HUE or (operation >= 0 and values[operation] != 1):
            contrast_at = count if operation == CONTRAST else contrast_at
            operations[count], factors[count] = operation, values[operation]
            count += 1
    if gray > 0:
        operations[count], factors[count] = SATURATION, 0
        count += 1
    if count == 0:
        return crop
    planes = np.empty((3, CHUNK), np.float32)
    source, target = crop.reshape(-1), spare.reshape(-1)[: crop.size]
    mean, done = ZERO, 0
    if contrast_at >= 0:
        total = _recolour(source, target, planes, operations[:contrast_at], factors, mean, True)
        pixels = crop.size // 3
        mean, done = F((2 * total + pixels) // (2 * pixels)), contrast_at
        source = target if contrast_at else source
    _recolour(source, target, planes, operations[done:count], factors[done:count], mean, False)
    return target.reshape(crop.shape)


@njit(**OPTIONS)
def _recolour(source, target, planes, operations, values, gray_mean, measure):
    """Run ``operations`` with their ``values`` over RGB bytes, in order; ``gray_mean`` is what contrast blends with.

    ``source`` and ``target`` are flat and may be the same; without operations ``target`` is left as it is.
    Returns the sum of the results' luma where ``measure`` is true, else 0.
    """
    total = 0
    pixels = source.size // 3
    for start in range(0, pixels, CHUNK):
        count = min(CHUNK, pixels - start)
        r, g, b = planes[0, :count], planes[1, :count], planes[2, :count]
        _load(source[3 * start : 3 * (start + count)], r, g, b)
        for step in range(operations.size):
            operation, value = operations[step], values[step]
            if operation == BRIGHTNESS:
                _blend(r, g, b, ZERO, value)
            elif operation == CONTRAST:
                _blend(r, g, b, gray_mean, value)
            elif operation == HUE:
                _shift_hue(r, g, b, value)
            else:  # saturation; grayscale is saturation 0
                _blend_luma(r, g, b, value)
        if operations.size:
            _store(r, g, b, target[3 * start : 3 * (start + count)])
        if measure:
            total += _sum_luma(r, g, b)
    return total


@njit(**OPTIONS)
def _load(pixels, r, g, b):
    for i in range(r.size):
        r[i] = F(pixels[3 * i])
        g[i] = F(pixels[3 * i + 1])
        b[i] = F(pixels[3 * i + 2])


@njit(**OPTIONS)
def _store(r, g, b, pixels):
    for i in range(r.size):
        pixels[3 * i] = np.uint8(r[i])
        pixels[3 * i + 1] = np.uint8(g[i])
        pixels[3 * i + 2] = np.uint8(b[i])


@njit(**OPTIONS)
def _luma(r, g, b):
    return np.floor(LUMA_R * r + LUMA_G * g + LUMA_B * b + HALF)


@njit(**OPTIONS)
def _sum_luma(r, g, b):
    total = 0
    for i in range(r.size):
        total += np.int32(_luma(r[i], g[i], b[i]))
    return total


@njit(**OPTIONS)
def _mix(degenerate, x, factor):
    return np.floor(min(max(degenerate + factor * (x - degenerate), ZERO), TOP))


@njit(**OPTIONS)
def _blend(r, g, b, degenerate, factor):
    for i in range(r.size):
        r[i] = _mix(degenerate, r[i], factor)
        g[i] = _mix(degenerate, g[i], factor)
        b[i] = _mix(degenerate, b[i], factor)


@njit(**OPTIONS)
def _blend_luma(r, g, b, factor):
    for i in range(r.size):
        luma = _luma(r[i], g[i], b[i])
        r[i] = _mix(luma, r[i], factor)
        g[i] = _mix(luma, g[i], factor)
        b[i] = _mix(luma, b[i], factor)


@njit(**OPTIONS)
def _shift_hue(r, g, b, shift):
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        value = max(max(red, green), blue)
        least = min(min(red, green), blue)
        chroma = value - least
        share = (value - (red + green + blue - value - least)) / max(chroma, ONE)
        sector, past = FOUR, red - green
        sector, past = (TWO, blue - red) if green == value else (sector, past)
        sector, past = (ZERO, green - blue) if red == value else (sector, past)
        turn = (sector - ONE + share if past < ZERO else sector + ONE - share) / SIX
        turn = turn + ONE if turn < ZERO else turn
        h = np.floor(turn * TOP)
        h = (h - ONE if BYTES * turn - h < turn else h) + shift
        h = (h - BYTES if h >= BYTES else h) * HUE_SIXTHS
        vs = value * (np.floor(chroma * TOP / max(value, ONE)) * UNIT)
        value += HALF
        r[i] = np.floor(value - vs * _unit(TWO - abs(h - THREE)))
        g[i] = np.floor(value - vs * _unit(abs(h - TWO) - ONE))
        b[i] = np.floor(value - vs * _unit(abs(h - FOUR) - ONE))


@njit(**OPTIONS)
def _unit(x):
    return max(min(x, ONE), ZERO)


@njit(**OPTIONS)
def _blur(image, spare, margin, radius, inner, outer):
    """Blur ``image`` in place: (H + 2 margin, (W + 2 margin) * 3) bytes with the picture in the middle.

    ``radius`` < ``margin``; ``inner`` and ``outer`` weights in units of 2**-24. ``spare`` is scratch of that shape;
    what the margins hold afterwards is not defined.
    """
    rows, row = image.shape
    begin, end = margin * row, (rows - margin) * row
    source, target = image.reshape(-1), spare.reshape(-1)
    for _ in range(3):
        for y in range(margin, rows - margin):
            _repeat_ends(source[y * row : (y + 1) * row], margin)
        _box(source, target, begin, end, 3, radius, inner, outer)
        source, target = target, source
    for _ in range(3):
        for y in range(margin):
            source[y * row : (y + 1) * row] = source[begin : begin + row]
            source[end + y * row : end + (y + 1) * row] = source[end - row : end]
        _box(source, target, begin, end, row, radius, inner, outer)
        source, target = target, source


@njit(**OPTIONS)
def _repeat_ends(line, margin):
    last = line.size - 3 * margin
    for x in range(margin):
        for c in range(3):
            line[3 * x + c] = line[3 * margin + c]
            line[last + 3 * x + c] = line[last - 3 + c]


@njit(**OPTIONS)
def _box(source, target, begin, end, stride, radius, inner, outer):
    """``target[begin:end]``: one extended box; sums are below 2**32, Pillow's width, so nothing is rounded early."""
    out, centre = target[begin:end], source[begin:end]
    before, after = source[begin - stride : end - stride], source[begin + stride : end + stride]
    reach = (radius + 1) * stride
    first, last = source[begin - reach : end - reach], source[begin + reach : end + reach]
    if radius == 0:
        for k in range(out.size):
            ends = np.uint32(np.uint32(first[k]) + np.uint32(last[k]))
            out[k] = _round(np.uint32(centre[k]), ends, inner, outer)
    elif radius == 1:
        for k in range(out.size):
            ends = np.uint32(np.uint32(first[k]) + np.uint32(last[k]))
            near = np.uint32(np.uint32(before[k]) + np.uint32(centre[k]) + np.uint32(after[k]))
            out[k] = _round(near, ends, inner, outer)
    else:
        sums = np.empty(BLOCK, np.uint32)
        for start in range(0, out.size, BLOCK):
            count = min(BLOCK, out.size - start)
            sums[:count] = 0
            for j in range(-radius, radius + 1):
                shifted = source[begin + start + j * stride : begin + start + j * stride + count]
                for k in range(count):
                    sums[k] += shifted[k]
            for k in range(count):
                ends = np.uint32(np.uint32(first[start + k]) + np.uint32(last[start + k]))
                out[start + k] = _round(sums[k], ends, inner, outer)


@njit(**OPTIONS)
def _round(near, ends, inner, outer):
    return np.uint8(np.uint32(near * inner + ends * outer + np.uint32(1 << 23)) >> np.uint32(24))


@njit(**OPTIONS)
def _solarized(table, threshold):
    if threshold >= 256:
        return table
    inverted = table.copy()
    for level in range(256):
        if level >= threshold:
            inverted[:, level] = table[:, 255 - level]
    return inverted


@njit(**OPTIONS)
def _look_up(line, table, out):
    r, g, b = table[0], table[1], table[2]
    for x in range(line.size // 3):
        out[3 * x] = r[line[3 * x]]
        out[3 * x + 1] = g[line[3 * x + 1]]
        out[3 * x + 2] = b[line[3 * x + 2]]
