"""How every benchmark is timed and shown: interleaved repeats in alternating order, medians with spread."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

Key = TypeVar("Key")


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call; ``spread`` is the interquartile range as a share of the median, over ``n`` repeats."""

    ms: float
    spread: float
    n: int


def summarize(milliseconds: Sequence[float]) -> Timing:
    """Median, relative interquartile range and count of repeated measurements."""
    median = statistics.median(milliseconds)
    if len(milliseconds) < 2:
        return Timing(median, 0.0, len(milliseconds))
    low, _, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(median, (high - low) / median, len(milliseconds))


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], *, repeats: int = 7, min_ms: float = 20.0, device: str = "cpu"
) -> dict[str, Timing]:
    """Time the candidates in turn, A B C C B A ..., so that a drifting machine slows them alike.

    Each is warmed up once, then called as often per repeat as ``min_ms`` needs. On CUDA the device is
    synchronised around each repeat.
    """
    sync = partial(synchronize, device)

    def once(call: Callable[[], Any], times: int) -> float:
        sync()
        start = time.perf_counter()
        for _ in range(times):
            call()
        sync()
        return (time.perf_counter() - start) * 1e3 / times

    calls = {}
    for name, call in candidates.items():
        once(call, 1)
        calls[name] = max(1, round(min_ms / max(once(call, 1), 1e-3)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        for name in alternating(candidates, repeat):
            samples[name].append(once(candidates[name], calls[name]))
    return {name: summarize(values) for name, values in samples.items()}


def alternating(candidates: Iterable[Key], repeat: int) -> list[Key]:
    """The candidates in the order of that repeat, backwards in every second one.

    What one leaves in caches, or finds there, then falls on either of two that are compared.
    """
    return list(candidates)[:: -1 if repeat % 2 else 1]


Instant = Any
"""A moment of the host (seconds) or, on CUDA, an event of the current stream."""


def now(device: str) -> Instant:
    """This moment, on CUDA that at which the device reaches it: nothing here waits for the device."""
    if not device.startswith("cuda"):
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds(began: Instant, ended: Instant) -> float:
    """Between two instants of one device, which has to have reached both."""
    return (ended - began) * 1e3 if isinstance(began, float) else began.elapsed_time(ended)


def synchronize(device: str) -> None:
    """Wait for the device, where there is one to wait for."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def show(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], console: Console | None = None) -> None:
    """Print rows as one table; floats with three significant digits, what a row lacks left blank."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        values = (row.get(column, "") for column in columns)
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values))
    # A pipe has no width: wide enough that no figure is cut.
    (console or Console(width=None if sys.stdout.isatty() else 160)).print(table)
