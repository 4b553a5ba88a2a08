"""The generator: splitmix64's published values, uniform draws, and no echo between neighbouring streams."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from fastvicreg.pipelines.rng import Purpose, below, bits, fold_in, mix, stream, uniform

N = 1 << 16
SAMPLED = 1 << 8


@njit
def draws(key: np.uint64, count: int) -> NDArray[np.float64]:
    """The first ``count`` draws of one stream."""
    out = np.empty(count)
    for n in range(count):
        out[n] = uniform(key, n)
    return out


@njit
def first_draws(seed: int, epoch: int, purpose: int, first: int, count: int, view: int) -> NDArray[np.float64]:
    """Draw 0 of the streams of samples ``first`` to ``first + count``, as the plan keys them."""
    key = stream(seed, epoch, purpose)
    out = np.empty(count)
    for n in range(count):
        out[n] = uniform(fold_in(fold_in(key, first + n), view), 0)
    return out


@njit
def key_of(seed: int, epoch: int, purpose: int, sample: int, view: int) -> np.uint64:
    """A stream's key, kept unsigned from end to end."""
    return fold_in(fold_in(stream(seed, epoch, purpose), sample), view)


@njit
def integers(key: np.uint64, count: int, bound: int) -> NDArray[np.int64]:
    """The first ``count`` draws below ``bound``."""
    out = np.empty(count, np.int64)
    for n in range(count):
        out[n] = below(key, n, bound)
    return out


def chi2_excess(counts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """Pearson's statistic for equal probabilities, in standard deviations above its mean."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("seed", "published"),
    [
        (0, (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)),
        (1234567, (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)),
    ],
)
def test_draws_are_splitmix64(seed: int, published: tuple[int, ...]) -> None:
    assert tuple(int(bits(np.uint64(seed), n)) for n in range(4)) == published


def test_stream_keys_keep_their_values() -> None:
    assert int(stream(0, 0, Purpose.ORDER)) == 6440019298894186056
    assert int(key_of(7, 3, Purpose.BOX, 123456, 1)) == 15302472669936115786


def test_a_draw_uses_the_upper_53_bits() -> None:
    key = np.uint64(99)
    assert uniform(key, 5) == (int(bits(key, 5)) >> 11) / 2**53


def test_mix_is_invertible_on_neighbours() -> None:
    values = {int(mix(np.uint64(z))) for z in itertools.chain(range(1 << 12), range(2**64 - (1 << 12), 2**64))}
    assert len(values) == 1 << 13


def test_keys_of_a_small_grid_are_all_distinct() -> None:
    keys = {
        int(key_of(*path)) for path in itertools.product(range(3), range(3), map(int, Purpose), range(40), range(3))
    }
    assert len(keys) == 3 * 3 * len(Purpose) * 40 * 3


@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param(lambda: draws(stream(1, 2, Purpose.ORDER), N), id="draws of a stream"),
        pytest.param(lambda: first_draws(0, 0, Purpose.BOX, 0, N, 0), id="samples"),
        pytest.param(lambda: first_draws(0, 0, Purpose.BOX, 2**40, N, 1), id="far samples"),
        pytest.param(
            lambda: np.concatenate([first_draws(s, 0, Purpose.BOX, 0, SAMPLED, 0) for s in range(N // SAMPLED)]),
            id="seeds",
        ),
        pytest.param(
            lambda: np.concatenate([first_draws(0, e, Purpose.FLIP, 0, SAMPLED, 0) for e in range(N // SAMPLED)]),
            id="epochs",
        ),
        pytest.param(
            lambda: np.stack([first_draws(0, 0, Purpose.BLUR, 0, SAMPLED, v) for v in range(N // SAMPLED)], 1).ravel(),
            id="views",
        ),
    ],
)
def test_draws_are_uniform_and_uncorrelated(sequence: Callable[[], NDArray[np.float64]]) -> None:
    u = sequence()
    assert u.min() >= 0
    assert u.max() < 1
    assert chi2_excess(np.histogram(u, 256, (0, 1))[0]) < 5
    pairs = np.histogram2d(u[:-1], u[1:], 16, ((0, 1), (0, 1)))[0].ravel()
    assert chi2_excess(pairs) < 5
    for lag in (1, 2, 3, SAMPLED):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) * np.sqrt(len(u)) < 4


@pytest.mark.parametrize("low_bits", [8, 12])
def test_low_bits_are_uniform(low_bits: int) -> None:
    u = first_draws(5, 0, Purpose.BOX, 0, N, 0) * 2**53
    low = u.astype(np.int64) & ((1 << low_bits) - 1)
    assert chi2_excess(np.bincount(low, minlength=1 << low_bits)) < 5


def test_streams_that_differ_in_one_place_are_uncorrelated() -> None:
    base = (3, 5, int(Purpose.BOX), 0, N, 0)
    reference = first_draws(*base)
    for place, step in itertools.product((0, 1, 2, 5), (1, 2, 256)):
        other = list(base)
        other[place] += step
        assert abs(np.corrcoef(reference, first_draws(*other))[0, 1]) * np.sqrt(N) < 4, (place, step)


def test_children_of_a_key_are_apart_from_its_draws() -> None:
    key = np.uint64(stream(0, 0, Purpose.ORDER))
    assert not {int(fold_in(key, n)) for n in range(1000)} & {int(bits(key, n)) for n in range(1000)}


@pytest.mark.parametrize("bound", [1, 2, 3, 24, 1000])
def test_integers_below_a_bound_are_equally_likely(bound: int) -> None:
    values = integers(stream(2, 0, Purpose.JITTER), N, bound)
    counts = np.bincount(values, minlength=bound)
    assert len(counts) == bound
    assert bound == 1 or chi2_excess(counts) < 5


def key_before(output: int) -> np.uint64:
    """The key whose draw 0 is ``output``: splitmix64 run backwards."""
    word = 2**64
    z = output ^ (output >> 31) ^ (output >> 62)
    z = z * pow(0x94D049BB133111EB, -1, word) % word
    z = z ^ (z >> 27) ^ (z >> 54)
    z = z * pow(0xBF58476D1CE4E5B9, -1, word) % word
    z = z ^ (z >> 30) ^ (z >> 60)
    return np.uint64((z - 0x9E3779B97F4A7C15) % word)


@pytest.mark.parametrize("bound", [1, 3, 24, 2**31 - 1, 2**31, 2**52 + 1])
def test_the_largest_draw_stays_below_the_bound(bound: int) -> None:
    key = key_before(2**64 - 1)
    assert uniform(key, 0) == 1 - 2.0**-53
    assert below(key, 0, bound) == bound - 1
    assert below(key_before(0), 0, bound) == 0


def test_large_seeds_are_seeds_of_their_own() -> None:
    keys = {int(stream(seed, 0, Purpose.ORDER)) for seed in (0, 1, 2**31, 2**32, 2**62, 2**63 - 1)}
    assert len(keys) == 6
