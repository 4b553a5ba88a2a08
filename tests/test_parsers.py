"""Whatever bytes a parser is given: what it reads lies in them, or it refuses them by its own error, in a line.

``FASTVICREG_SOAK=10`` tries ten times as many; ``make fuzz`` lets coverage guide it (tests/support/fuzzing.py).
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import PARSERS
from safetensors.numpy import load, save
from seeds import SEEDS

from fastvicreg.pipelines.manifest import KEY, UNSIGNED

TIMES = int(os.environ.get("FASTVICREG_SOAK", "1"))
EXAMPLES = {"trace": 60}
"""Of a parser whose files take tens of milliseconds; of the others 150."""
SECONDS, MEMORY = 20, 512 << 20
"""One file's, at most; these hold a few kilobytes."""
CORPUS = Path(__file__).parent / "corpus"
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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
    b"[" * 3000,
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


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["\ud800", "\n\x1b[31m", "9" * 5000, "../x", 1 << 63, -1, 0, 1e308, float("inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of a JSON document, inner ones included."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with ``value`` at ``place``."""
    content = copy.deepcopy(content)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return content


def documents(name: str, seeds: list[bytes]) -> tuple[list[Any], Callable[[Any], bytes]]:
    """(the JSON documents that these files hold, how a file is made of one)."""
    if name != "manifest":
        return [json.loads(seed) for seed in seeds], lambda content: json.dumps(content).encode()
    arrays = load(seeds[1])
    metadata = {KEY: UNSIGNED}

    def file(content: Any) -> bytes:
        text = np.frombuffer(json.dumps(content).encode(), np.uint8)
        return save({**arrays, "json": text}, metadata)

    return [json.loads(arrays["json"].tobytes())], file


@pytest.mark.parametrize("name", ["config", "state", "manifest"])
def test_odd_values_are_taken_or_refused_by_name(name: str, tmp_path: Path) -> None:
    contents, file = documents(name, SEEDS[name](tmp_path))
    known = [(content, place) for content in contents for place in places(content)]
    told = {True: 0, False: 0}

    @given(at=st.integers(0, len(known) - 1), value=VALUES)
    @settings(FUZZ, max_examples=TIMES * 150)
    def survives(at: int, value: Any) -> None:
        with bounded():
            told[PARSERS[name](file(replaced(*known[at], value)), tmp_path)] += 1

    survives()
    assert min(told.values()) > 0, told


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
    @settings(FUZZ, max_examples=TIMES * EXAMPLES.get(name, 150))
    def survives(drawn: tuple[int, list[tuple[float, int, bytes]], float]) -> None:
        which, edits, cut = drawn
        with bounded():
            told[PARSERS[name](apply(seeds[which], edits, cut), tmp_path)] += 1

    survives()
    assert min(told.values()) > 0, told
