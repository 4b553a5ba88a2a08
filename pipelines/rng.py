"""The counter-based generator behind every random choice of the data pipeline: splitmix64, keyed by what is chosen.

A stream is named by a path of integers, (seed, epoch, purpose, sample, view), folded one after another into a 64-bit
key; its n-th draw depends on the key and n alone. No state exists, so workers, batching and resuming cannot move it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from fastvicreg.caches import njit

# Numba compiles these into their callers, whose on-disk caches do not notice an edit here: after one, delete
# pipelines/__pycache__/*.nb[ic]. The golden values in tests/pipelines notice a changed stream.

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: the generator's step
ONE = np.uint64(1)
FOLD = np.uint64(0xD1B54A32D192ED03)  # keeps a key's children apart from its draws


class Purpose(IntEnum):
    """What a stream decides; one each, so that changing one probability leaves every other choice as it was."""

    ORDER = 0
    BLOCKS = 1
    BOX = 2
    FLIP = 3
    JITTER = 4
    GRAYSCALE = 5
    BLUR = 6
    SOLARIZE = 7
    MEMBER = 8  # which caption, or which part of a sound
    DROP_PATH = 9  # whether a residual branch of the network is left out


@njit(nogil=True)
def mix(z: np.uint64) -> np.uint64:
    """The splitmix64 finalizer (Steele, Lea, Flood, OOPSLA 2014; constants of Stafford's variant 13): a bijection."""
    z = np.uint64(z)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True)
def bits(key: np.uint64, counter: int) -> np.uint64:
    """Draw ``counter`` (from 0) of the stream ``key``: 64 bits, as splitmix64 seeded with ``key`` gives them."""
    return mix(np.uint64(key) + GAMMA * (np.uint64(counter) + ONE))


@njit(nogil=True)
def fold_in(key: np.uint64, value: int) -> np.uint64:
    """The key of child ``value`` of ``key``: distinct for distinct values."""
    return bits(mix(np.uint64(key) ^ FOLD), value)


@njit(nogil=True)
def stream(seed: int, epoch: int, purpose: int) -> np.uint64:
    """The key of an epoch's choices of one kind; fold in the sample, then the view."""
    return fold_in(fold_in(fold_in(np.uint64(0), seed), epoch), purpose)


@njit(nogil=True)
def uniform(key: np.uint64, counter: int) -> float:
    """Draw ``counter`` as a multiple of 2^-53 in [0, 1)."""
    return np.float64(bits(key, counter) >> np.uint64(11)) * 2.0**-53


@njit(nogil=True)
def between(key: np.uint64, counter: int, low: float, high: float) -> float:
    """Draw ``counter``, uniform in [low, high)."""
    return low + (high - low) * uniform(key, counter)


@njit(nogil=True)
def below(key: np.uint64, counter: int, count: int) -> int:
    """Draw ``counter`` as an integer in [0, count), ``count`` < 2^53; each probability is exact to 2^-53."""
    return int(uniform(key, counter) * count)
