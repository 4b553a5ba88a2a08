"""The trace benchmark: one file summarised by us and by the tools that others use, each in a process of its own."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from fastvicreg.errors import UserError
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.profiles.measure import summarize

COLUMNS = ("reader", "events", "mb", "seconds", "spread", "cpu_s", "peak_mb", "children_mb", "ratio", "error")

LIMIT_SECONDS = 900
"""A reader that takes longer is stopped and reported so."""

READERS: dict[str, tuple[str, str]] = {
    "fastvicreg": (
        "fastvicreg",
        "import sys; from fastvicreg.cli import main; assert main(['trace', 'summary', sys.argv[1]]) == 0",
    ),
    "torch-tb-profiler": (
        "torch_tb_profiler",
        "import sys, tempfile; from torch_tb_profiler.profiler.data import RunProfileData; "
        "RunProfileData.parse('worker', 0, sys.argv[1], tempfile.mkdtemp()).process()",
    ),
    "hta": (
        "hta",
        "import sys, os; from hta.trace_analysis import TraceAnalysis; "
        "t = TraceAnalysis({0: sys.argv[1]}, os.path.dirname(sys.argv[1])); "
        "t.get_temporal_breakdown(visualize=False); t.get_idle_time_breakdown(visualize=False); "
        "t.get_gpu_kernel_breakdown(visualize=False)",
    ),
}
"""Module that must be there, and the program: what each tool's own documentation begins with."""


# A child's ru_maxrss begins at its parent's size, VmHWM at its own.
_LAST_WORDS = """
import re, resource, time
print()
children = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu_s = time.process_time() + children.ru_utime + children.ru_stime
print(cpu_s, re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
_LOOK_S = 0.1
_PEAK = re.compile(r"VmHWM:\s*(\d+)")


class Run(NamedTuple):
    """One reader: its wall and processor seconds, its peak resident size, and its last line where it failed.

    Its children's processor seconds count; ``children_mb`` is the sum of their peaks.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    children_mb: float
    error: str | None


def run(data: str | Path | None = None, events: int = 1_300_000, repeats: int = 3) -> list[dict[str, Any]]:
    """One row a reader, interleaved; without ``data`` on a trace of ``events`` events written for it.

    ``ratio`` is how many times longer than ours; ``peak_mb`` the process's largest resident size and
    ``children_mb`` that of the processes it starts, added up: no more than both together. ``UserError`` where
    the file cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(data) if data else write_trace(Path(folder) / "rank0.json", events)
        if not path.is_file():
            raise UserError(f"no trace at {path}: give --data a .json or .json.gz file.")
        count = count_events(path)
        runs: dict[str, list[Run]] = {reader: [] for reader in READERS}
        for _ in range(repeats):
            for reader, (module, program) in READERS.items():
                failed = any(one.error for one in runs[reader])
                if find_spec(module) and not failed:
                    runs[reader].append(parse_once(program, path))
        size = path.stat().st_size / 1e6
    ours = statistics.median(one.seconds for one in runs["fastvicreg"])
    return [_row(reader, taken, ours) | {"events": count, "mb": size} for reader, taken in runs.items()]


def write_trace(path: Path, events: int) -> Path:
    """A training loop as the profiler writes it: nested operators with shapes, launches, kernels, flows; not timed."""
    with path.open("w") as file:
        head = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA A100-SXM4-80GB"}]}
        file.write(json.dumps(head, indent=2)[:-2] + ',\n  "traceEvents": [\n')
        for number, event in enumerate(_loop(events)):
            file.write(",\n" * bool(number) + "  " + json.dumps(event))
        file.write("\n  ]\n}\n")
    return path


def _loop(events: int) -> Iterator[dict[str, Any]]:
    shapes = {"Input Dims": [[256, 512, 28, 28], [512, 512, 3, 3], []], "Input type": ["float", "float", ""]}
    host = {"ph": "X", "pid": 100, "tid": 100}
    at, step, per_step = 0.0, 0, 6 * 500 + 1
    while events > 0:
        yield host | {"cat": "user_annotation", "name": f"ProfilerStep#{step}", "ts": at, "dur": 500 * 40.0, "args": {}}
        for call in range(min(500, events // 6 + 1)):
            ts, number = at + 40 * call, 500 * step + call + 1
            ids = {"External id": number, "correlation": number}
            outer = {"cat": "cpu_op", "name": f"aten::conv2d_{call % 50}", "ts": ts, "dur": 36.0}
            yield host | outer | {"args": {"External id": 0, **shapes}}
            inner = {"cat": "cpu_op", "name": "aten::cudnn_convolution", "ts": ts + 3, "dur": 30.0}
            yield host | inner | {"args": {"External id": number, **shapes}}
            yield host | {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": ts + 20, "dur": 8.0, "args": ids}
            kernel = {"cat": "kernel", "name": f"sm80_xmma_fprop_{call % 80}", "ts": ts + 30, "dur": 25.0, "pid": 0}
            device = {"device": 0, "context": 1, "stream": 7, "grid": [512, 1, 1], "block": [256, 1, 1]}
            yield {"ph": "X", "tid": 7, **kernel, "args": ids | device}
            flow = {"id": number, "cat": "ac2g", "name": "ac2g"}
            yield {"ph": "s", "pid": 100, "tid": 100, "ts": ts + 20, **flow}
            yield {"ph": "f", "pid": 0, "tid": 7, "ts": ts + 30, "bp": "e", **flow}
        at, step, events = at + 500 * 40.0, step + 1, events - per_step


def count_events(path: Path) -> int:
    from fastvicreg.profiles.trace.decode import Stream

    return sum(len(chunk) for chunk in Stream(path).chunks())


def parse_once(program: str, path: Path) -> Run:
    began = time.perf_counter()
    command = [sys.executable, "-c", f"{program}\n{_LAST_WORDS}", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with _Children(process.pid) as children:
        try:
            output, errors = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Run(LIMIT_SECONDS, 0.0, 0.0, 0.0, f"more than {LIMIT_SECONDS} s")
        seconds = time.perf_counter() - began
    if process.returncode != 0:
        lines = errors.strip().splitlines() or [f"exit {process.returncode}"]
        return Run(seconds, 0.0, 0.0, 0.0, lines[-1][:100])
    cpu_s, peak_kb = map(float, output.strip().splitlines()[-1].split())
    return Run(seconds, cpu_s, peak_kb / 1024, children.peak_mb, None)


class _Children:
    """Looks at the peak sizes of the processes that a process starts, as long as they live."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_kb, self._over = pid, dict[int, int](), Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Children:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """The sum of their peaks."""
        return sum(self._peak_kb.values()) / 1024

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            for child in _descendants(self._pid):
                with suppress(OSError):  # it has ended
                    if found := _PEAK.search(Path(f"/proc/{child}/status").read_text()):
                        self._peak_kb[child] = int(found[1])


def _descendants(pid: int) -> Iterator[int]:
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _descendants(child)


def _row(reader: str, runs: list[Run], ours: float) -> dict[str, Any]:
    if not runs:
        return {"reader": reader, "error": f"not run: {READERS[reader][0]} is not installed"}
    timing = summarize([one.seconds * 1e3 for one in runs])
    error = next((one.error for one in runs if one.error), None)
    row = {
        "reader": reader,
        "seconds": timing.ms / 1e3,
        "spread": timing.spread,
        "repeats": timing.n,
        "cpu_s": statistics.median(one.cpu_s for one in runs),
        "peak_mb": statistics.median(one.peak_mb for one in runs),
        "children_mb": statistics.median(one.children_mb for one in runs),
    }
    return row | ({"error": error} if error else {"ratio": row["seconds"] / ours})


@dataclass(frozen=True)
class BenchOptions(Options):
    """Reading a trace."""

    data: str | None = None
    """A trace file; default: one made here."""


BENCHMARK = Benchmark(run, COLUMNS, key=("reader", "events"), figure="seconds", options=BenchOptions)
