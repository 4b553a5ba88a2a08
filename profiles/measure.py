"""How every benchmark is timed and written down: interleaved repeats, medians with spread, provenance beside them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastvicreg.errors import UserError

PACKAGES = (
    *("fastvicreg", "torch", "numpy", "numba", "pillow", "simplejpeg", "ffcv", "nvidia-dali-cuda130"),
    *("triton", "cuda-core", "nvidia-cuda-nvrtc", "msgspec"),
)


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
    """Time the candidates in turn, A B C A B C ..., so that a drifting machine slows them alike.

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
    for _ in range(repeats):
        for name, call in candidates.items():
            samples[name].append(once(call, calls[name]))
    return {name: summarize(values) for name, values in samples.items()}


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


def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpus": _gpus(), "system": platform.system()}


def _gpus() -> list[str]:
    """By torch where it is loaded; a command that only reads files need not load it to name them."""
    if torch := sys.modules.get("torch"):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        found += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return found


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with "-dirty" where it has changes outside results/; "installed" outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root:
            return "installed"  # in an environment that some other checkout holds
        head = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain", "--", ".", ":(exclude)profiles/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return "installed"
    return f"{head}-dirty" if changed else head


def document(command: str, rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """The form in which every measuring command writes its figures."""
    return {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "n": n,
        "rows": list(rows),
    }


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content``; ``UserError`` where the place cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the figures to {path}: {error.strerror}") from error


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
