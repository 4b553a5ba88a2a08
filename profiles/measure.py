"""How every benchmark is timed and shown: interleaved repeats in alternating order, medians with spread."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

Key = TypeVar("Key")
Result = TypeVar("Result")


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
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    min_ms: float = 20.0,
    device: str = "cpu",
    flush: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Time the candidates in turn, A B C C B A ..., so that a drifting machine slows them alike.

    Each is warmed up once, then called as often per repeat as ``min_ms`` needs. ``flush`` runs before each call and is
    not counted; on CUDA it empties the L2 cache unless another is given, as a step would between two uses of a kernel.
    There a call costs the time between two events on the device around it.
    """
    flush = flush or _flush_of(device)

    def once(call: Callable[[], Any], times: int) -> float:
        synchronize(device)
        calls: list[tuple[Instant, Instant]] = []
        began = now(device)
        for _ in range(times):
            if flush:
                flush()
                began = now(device)
            call()
            if flush:
                calls.append((began, now(device)))
        ended = now(device)
        synchronize(device)
        return sum(milliseconds(*pair) for pair in calls or [(began, ended)]) / times

    calls = {}
    for name, call in candidates.items():
        once(call, 1)
        calls[name] = max(1, round(min_ms / max(once(call, 1), 1e-3)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        for name in alternating(candidates, repeat):
            samples[name].append(once(candidates[name], calls[name]))
    return {name: summarize(values) for name, values in samples.items()}


def _flush_of(device: str) -> Callable[[], Any] | None:
    """Writes twice the size of a CUDA device's L2 cache; None on a CPU, whose steps find their operands cached too."""
    if not device.startswith("cuda"):
        return None
    import torch

    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(2 * size, dtype=torch.uint8, device=device).zero_


def in_turn(
    calls: Mapping[str, Callable[[], Result]], *, repeats: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, Result]]:
    """(milliseconds of each repeat, last result) of each call, in alternating order and without a warm-up.

    For calls that take seconds: ``interleaved`` would make each twice before it measures.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Result] = {}
    for repeat in range(repeats):
        for name in alternating(calls, repeat):
            synchronize(device)
            began = time.perf_counter()
            results[name] = calls[name]()
            synchronize(device)
            samples[name].append((time.perf_counter() - began) * 1e3)
    return samples, results


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
