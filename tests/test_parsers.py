"""Whatever bytes a parser is given: what it reads lies in them, or it refuses them by its own error, in a line.

``FASTVICREG_SOAK=10`` tries ten times as many; ``make fuzz`` lets coverage guide it (tests/support/fuzzing.py).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import PARSERS
from seeds import SEEDS

TIMES = int(os.environ.get("FASTVICREG_SOAK", "1"))
EXAMPLES = {"trace": 60}
"""Of a parser whose files take tens of milliseconds; of the others 150."""
SECONDS, MEMORY = 20, 512 << 20
"""One file's, at most; these hold a few kilobytes."""
CORPUS = Path(__file__).parent / "corpus"
ODD = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"-1",
    b"1e999",
    b"\x80" + b"\0" * 11,
    b'"',
    b"{",
    b"[" * 900,
)
"""Bytes that mean something to one parser or another."""


@contextmanager
def bounded() -> Iterator[None]:
    """An end to hangs, and to memory beyond what this process has mapped."""

    def over(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"nothing after {SECONDS} s")

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, over)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


@st.composite
def damaged(draw: st.DrawFn, count: int) -> tuple[int, list[tuple[float, int, bytes]], float]:
    """(which seed, what is put where in place of how many bytes, where it is cut)."""
    edit = st.tuples(
        st.floats(0, 1),
        st.integers(0, 12) | st.integers(0, 2000),
        st.binary(max_size=12) | st.sampled_from(ODD),
    )
    return draw(st.tuples(st.integers(0, count - 1), st.lists(edit, max_size=5), st.floats(0, 1) | st.just(1.0)))


def apply(data: bytes, edits: list[tuple[float, int, bytes]], cut: float) -> bytes:
    for place, length, filling in edits:
        at = int(place * len(data))
        data = data[:at] + filling + data[at + length :]
    return data[: round(cut * len(data))]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_fuzzing_found_stays_mended(path: Path, tmp_path: Path) -> None:
    SEEDS[path.parent.name](tmp_path)
    with bounded():
        PARSERS[path.parent.name](path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_are_read_within_their_bounds_or_refused_by_name(name: str, tmp_path: Path) -> None:
    seeds = SEEDS[name](tmp_path)
    assert all(PARSERS[name](seed, tmp_path) for seed in seeds)
    told = {True: 0, False: 0}

    @given(damaged(len(seeds)))
    @settings(
        max_examples=TIMES * EXAMPLES.get(name, 150),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    def survives(drawn: tuple[int, list[tuple[float, int, bytes]], float]) -> None:
        which, edits, cut = drawn
        with bounded():
            told[PARSERS[name](apply(seeds[which], edits, cut), tmp_path)] += 1

    survives()
    assert min(told.values()) > 0, told
