"""The compiled loops of the plan: permutations, RandomResizedCrop boxes and photometric parameters, drawn by counter.

N samples, B batch, V views, P photometric parameters. A loop over samples returns the place of the first one that is
outside the source or empty, or -1; what it has written by then is void. No fastmath: a box must not depend on how a
loop was vectorised.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastvicreg.caches import njit
from fastvicreg.contracts import JITTER_ORDERS
from fastvicreg.pipelines.recipes import ViewRecipe
from fastvicreg.pipelines.rng import Purpose, below, between, fold_in, stream, uniform

TRIES = 10  # of RandomResizedCrop, before it falls back to a central crop
ORDERS = len(JITTER_ORDERS)

# A ViewRecipe as the loops read it.
FIELDS = (
    "scale_low scale_high ratio_low ratio_high log_low log_high flip_p jitter_p brightness contrast saturation hue "
    "grayscale_p blur_p sigma_low sigma_high solarize_p threshold"
)
VIEW_RECORD = np.dtype([(name, np.float64) for name in FIELDS.split()])


def view_records(views: tuple[ViewRecipe, ...]) -> NDArray[np.void]:
    """view_V of ``VIEW_RECORD``."""
    rows = [
        (
            *view.crop_scale,
            *view.crop_ratio,
            *map(math.log, view.crop_ratio),
            view.flip_p,
            view.jitter_p,
            view.brightness,
            view.contrast,
            view.saturation,
            view.hue,
            view.grayscale_p,
            view.blur_p,
            *view.blur_sigma,
            view.solarize_p,
            view.solarize_threshold,
        )
        for view in views
    ]
    return np.array(rows, VIEW_RECORD)


@njit(nogil=True)
def _shuffle(key: np.uint64, index_N: NDArray[np.int64], start: int, stop: int) -> None:
    """Fisher-Yates within [start, stop), in place."""
    for last in range(stop - 1, start, -1):
        other = start + below(key, last, last - start + 1)
        index_N[last], index_N[other] = index_N[other], index_N[last]


@njit(nogil=True)
def permutation(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """index_N: every sample once, all orders equally likely."""
    index_N = np.arange(samples)
    _shuffle(stream(seed, epoch, Purpose.ORDER), index_N, 0, samples)
    return index_N


@njit(nogil=True)
def block_permutation(seed: int, epoch: int, samples: int, block: int, group: int) -> NDArray[np.int64]:
    """index_N: blocks of ``block`` consecutive samples in random order, shuffled within each ``group`` of blocks."""
    blocks = np.arange((samples + block - 1) // block)
    _shuffle(stream(seed, epoch, Purpose.BLOCKS), blocks, 0, len(blocks))
    key = stream(seed, epoch, Purpose.ORDER)
    index_N = np.empty(samples, np.int64)
    group_start = filled = 0
    for place in range(len(blocks)):
        first = blocks[place] * block
        for sample in range(first, min(first + block, samples)):
            index_N[filled] = sample
            filled += 1
        if (place + 1) % group == 0 or place + 1 == len(blocks):
            _shuffle(key, index_N, group_start, filled)
            group_start = filled
    return index_N


@njit(nogil=True)
def _random_resized_crop(key: np.uint64, view: np.void, w: int, h: int) -> tuple[int, int, int, int]:
    """(x, y, w, h) as torchvision's RandomResizedCrop.get_params draws them."""
    for trial in range(TRIES):
        target = w * h * between(key, 2 * trial, view["scale_low"], view["scale_high"])
        ratio = math.exp(between(key, 2 * trial + 1, view["log_low"], view["log_high"]))
        crop_w = round(math.sqrt(target * ratio))
        crop_h = round(math.sqrt(target / ratio))
        if 0 < crop_w <= w and 0 < crop_h <= h:
            y = below(key, 2 * TRIES, h - crop_h + 1)
            x = below(key, 2 * TRIES + 1, w - crop_w + 1)
            return x, y, crop_w, crop_h
    crop_w, crop_h = w, h
    if w / h < view["ratio_low"]:
        crop_h = round(w / view["ratio_low"])
    elif w / h > view["ratio_high"]:
        crop_w = round(h * view["ratio_high"])
    return (w - crop_w) // 2, (h - crop_h) // 2, crop_w, crop_h


@njit(nogil=True)
def random_boxes(
    seed: int,
    epoch: int,
    samples: int,
    index_B: NDArray[np.int64],
    wh_B2: NDArray[np.int64],
    view_V: NDArray[np.void],
    box_BV4: NDArray[np.float64],
    flip_BV: NDArray[np.bool_],
) -> int:
    """Fill ``box_BV4`` (x, y, w, h) and ``flip_BV``."""
    box_key = stream(seed, epoch, Purpose.BOX)
    flip_key = stream(seed, epoch, Purpose.FLIP)
    for b in range(len(index_B)):
        sample, w, h = index_B[b], wh_B2[b, 0], wh_B2[b, 1]
        if sample < 0 or sample >= samples or w < 1 or h < 1:
            return b
        sample_box_key = fold_in(box_key, sample)
        sample_flip_key = fold_in(flip_key, sample)
        for v in range(len(view_V)):
            view = view_V[v]
            x, y, crop_w, crop_h = _random_resized_crop(fold_in(sample_box_key, v), view, w, h)
            box_BV4[b, v, 0] = x
            box_BV4[b, v, 1] = y
            box_BV4[b, v, 2] = crop_w
            box_BV4[b, v, 3] = crop_h
            flip_BV[b, v] = uniform(fold_in(sample_flip_key, v), 0) < view["flip_p"]
    return -1


@njit(nogil=True)
def central_boxes(
    resize: int,
    crop: int,
    samples: int,
    index_B: NDArray[np.int64],
    wh_B2: NDArray[np.int64],
    box_BV4: NDArray[np.float64],
) -> int:
    """Fill ``box_BV4`` of one view as torchvision's Resize and CenterCrop place it, in source pixels."""
    for b in range(len(index_B)):
        sample, short = index_B[b], min(wh_B2[b, 0], wh_B2[b, 1])
        if sample < 0 or sample >= samples or short < 1:
            return b
        for axis in range(2):
            resized = resize * wh_B2[b, axis] // short  # exactly `resize` on the shorter side
            scale = wh_B2[b, axis] / resized
            box_BV4[b, 0, axis] = round((resized - crop) / 2) * scale
            box_BV4[b, 0, 2 + axis] = crop * scale
    return -1


@njit(nogil=True)
def _factor(key: np.uint64, counter: int, strength: float) -> float:
    """A ColorJitter factor, uniform in 1 -+ strength and never negative."""
    return between(key, counter, max(0.0, 1.0 - strength), 1.0 + strength)


@njit(nogil=True)
def random_photometric(
    seed: int,
    epoch: int,
    samples: int,
    index_B: NDArray[np.int64],
    view_V: NDArray[np.void],
    params_BVP: NDArray[np.float32],
) -> int:
    """Fill ``params_BVP``, columns in the order of ``contracts.Photometric``."""
    jitter_key = stream(seed, epoch, Purpose.JITTER)
    grayscale_key = stream(seed, epoch, Purpose.GRAYSCALE)
    blur_key = stream(seed, epoch, Purpose.BLUR)
    solarize_key = stream(seed, epoch, Purpose.SOLARIZE)
    for b in range(len(index_B)):
        sample = index_B[b]
        if sample < 0 or sample >= samples:
            return b
        for v in range(len(view_V)):
            view = view_V[v]
            out = params_BVP[b, v]
            # Draw 0 of a stream decides whether, the later ones how much: the strengths outlive a changed probability.
            key = fold_in(fold_in(jitter_key, sample), v)
            out[0], out[1], out[2], out[3], out[4] = 1.0, 1.0, 1.0, 0.0, -1.0
            if uniform(key, 0) < view["jitter_p"]:
                out[0] = _factor(key, 1, view["brightness"])
                out[1] = _factor(key, 2, view["contrast"])
                out[2] = _factor(key, 3, view["saturation"])
                out[3] = between(key, 4, -view["hue"], view["hue"])
                out[4] = below(key, 5, ORDERS)
            key = fold_in(fold_in(grayscale_key, sample), v)
            out[5] = 1.0 if uniform(key, 0) < view["grayscale_p"] else 0.0
            key = fold_in(fold_in(blur_key, sample), v)
            blurred = uniform(key, 0) < view["blur_p"]
            out[6] = between(key, 1, view["sigma_low"], view["sigma_high"]) if blurred else 0.0
            key = fold_in(fold_in(solarize_key, sample), v)
            out[7] = view["threshold"] if uniform(key, 0) < view["solarize_p"] else 256.0
    return -1
