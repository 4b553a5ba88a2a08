"""``bench all``: every check and measurement of one device, each in a process of its own, then one table.

What training uses comes first, what only compares comes last, so that a budget cuts off what is worth least. Every
part's figures are on disk as they come: a part that brings its process down, or takes too long, costs its own and no
other's, and a machine that goes away costs what was running.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.profiles.bench import claims, goals_verdict
from fastvicreg.provenance import document, write_json

COLUMNS = ("part", "outcome", "seconds", "rows", "file")

LEAST = 15.0
"""Seconds; a part for which less is left of the budget is not begun."""
CORES_TO_SPARE = 8
"""With so many the next part's process starts, up to its imports, while the one before it measures."""

DEVICE_FUNCTION = {
    "cu": re.compile(r"__global__\s+(?:void\s+|__launch_bounds__\([^)]*\)\s*)*(\w+)\s*\("),
    "py": re.compile(r"@triton\.jit.*?\ndef (\w+)", re.DOTALL),
}
"""What its definition looks like, by the file's ending."""

HOST = {"plan": 20, "resample": 60, "loader": 300}
"""Parts that use no device, and the seconds they have."""

OFFICIAL, EAGER, JOINT, BARE = "official", "eager", "eager, joint views", "eager, joint views, parts alone"
OTHERWISE = ("recomputed", "blocks recomputed", "fp16", "tf32", "fp32", "stem on 4 channels")
STEPS = {
    "step": (OFFICIAL, "torch's norms", EAGER, JOINT, BARE, "graphed, joint views", "cached, joint views"),
    "step-precisions": (OFFICIAL, JOINT, *(f"{JOINT}, {how}" for how in OTHERWISE)),
    "step-compiled": (OFFICIAL, JOINT, "compiled, joint views"),
    "step-official-compiled": (OFFICIAL, "official, compiled"),
}
"""The variants of the step's table on a GPU, in the order of what they are worth; each part compiles what it must."""


@dataclass(frozen=True)
class Job:
    """One command; ``file`` receives its figures, ``limit`` is in seconds."""

    name: str
    arguments: tuple[str, ...]
    limit: float
    file: str = ""
    wrapper: tuple[str, ...] = ()

    def command(self, out: Path) -> list[str]:
        """The whole command line; what has no wrapper waits for a line on its standard input once it is ready."""
        program = ["-m", "fastvicreg"] if self.wrapper else ["-m", "fastvicreg.profiles.bench.ready"]
        return [*self.wrapper, sys.executable, *program, *self.arguments, "--json", str(out / self.file)]


def jobs(device: str, out: Path, repeats: int) -> list[Job]:
    """What ``bench all`` runs on ``device``, in the order of its worth; on a CPU the same comparisons at small sizes.

    On a GPU: the correctness of what training uses, the step's table, a run by every pipeline, the kernels' times and
    all their comparisons, a profile and the swap test, then what must be compiled first, compute-sanitizer and DALI's
    decoders. A trace of a step lies below ``out``, where TensorBoard finds it.
    """
    gpu = device.startswith("cuda")

    def bench(part: str, limit: float, *more: str, name: str = "") -> Job:
        arguments = ("bench", part, *(() if part in HOST else ("--device", device)), "--repeats", str(repeats), *more)
        return Job(name or part, arguments, limit, f"{name or part}.json")

    run = (
        ("--preset", "imagenet-100ep", "--pipeline", "synthetic", "--batch-size", "256")
        if gpu
        else ("--preset", "demo")
    )
    swap = Job("swap", ("bench", "swap", *run, "--device", device, "--repeats", "3"), 75 if gpu else 180, "swap.json")
    profile = Job("profile", ("profile", *run, "--device", device, "--out", str(out)), 60, "profile.json")
    if not gpu:
        checks = [bench("ceilings", 30), bench("correctness", 110)]
        times = [bench("loss", 300), bench("lars", 30), bench("augment", 35), bench("step", 60), swap, profile]
        return [*checks, *times, *(bench(part, limit) for part, limit in HOST.items())]
    steps = [
        bench("step", limit, "--only", *STEPS[name], name=name)
        for name, limit in zip(STEPS, (110, 90, 150, 170), strict=True)
    ]
    found = [bench("correctness", 60, "--training", name="correctness-training"), steps[0], bench("train", 60)]
    found += [bench("loss", 60), bench("norm", 30), bench("lars", 20), bench("augment", 25), bench("ceilings", 20)]
    goals = bench("goals", 60, "--only", "fed", "batch")  # the others are the step's own figures
    found += [bench("correctness", 90), steps[1], profile, swap, steps[2], goals]
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            small = bench("correctness", 90, "--small", name=f"sanitizer-{tool}")
            found.append(Job(small.name, small.arguments, small.limit, small.file, sanitized(sanitizer, tool)))
    decoders = Job("decoders", ("bench", "decoders", "--repeats", str(repeats)), 60, "decoders.json")
    return [*found, decoders, steps[3]]


def device_functions() -> list[str]:
    """The functions on the device, CUDA's and Triton's, of every kernel in the dispatcher's registry."""
    found: set[str] = set()
    for kernel in KERNELS.values():
        packages = {each.target.partition(":")[0].rpartition(".")[0] for each in kernel.implementations.values()}
        for path in (path for package in packages for path in files(package).iterdir()):
            if pattern := DEVICE_FUNCTION.get(path.name.rpartition(".")[2]):
                found.update(pattern.findall(path.read_text("utf-8")))
    return sorted(found)


def sanitized(sanitizer: str, tool: str) -> tuple[str, ...]:
    """What goes before a command whose kernels compute-sanitizer is to check by that tool; it exits 9 for an error."""
    # An exit code of its own: told apart from the command's 1 and 2.
    # Neither at cuBLAS's kernels nor at torch's.
    only = f"regex=^({'|'.join(device_functions())})"
    command = (sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name", only)
    # Python takes its time until it first calls CUDA, and starts compilers, which never do.
    command += ("--target-processes", "application-only", "--launch-timeout", "0")
    if tool != "memcheck":
        return command
    # In torch's pool of memory an access past a tensor's end meets another tensor, and is none; calls that libraries
    # make to see what the driver offers fail by design.
    return "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", *command, "--report-api-errors", "no"


def run(device: str, out: Path, *, repeats: int, budget: float = 0.0) -> list[dict[str, Any]]:
    """Run all jobs one after another and write their figures into ``out``; a row each, telling how it ended.

    ``all.json`` there holds every job's rows and is written after each, ``NAME.log`` what it printed where it did not
    end well, ``hardware.md`` the table of what has run on this GPU. After ``budget`` seconds (0: no limit) nothing new
    begins, and what runs is ended; the parts that it left out are rows too.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + (budget or float("inf"))
    early = device.startswith("cuda") and len(os.sched_getaffinity(0)) >= CORES_TO_SPARE
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    waiting = jobs(device, out, repeats)
    for name in ("all.json", claims.FILE, *(name for job in waiting for name in (job.file, f"{job.name}.log"))):
        (out / name).unlink(missing_ok=True)  # an earlier run's, which a part that is left out would not replace
    current: _Started | None = None
    following: _Started | None = None
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` too must leave no part behind
    try:
        while waiting:
            job = waiting.pop(0)
            if ends - time.monotonic() < LEAST:
                left = {"outcome": "left out: the budget is spent", "seconds": 0.0, "rows": 0, "file": ""}
                rows += [{"part": each.name, **left} for each in (job, *waiting)]
                break
            print(f"{job.name} ...", flush=True)
            current = following or _Started(job, out)
            following = _Started(waiting[0], out) if early and waiting and not waiting[0].wrapper else None
            rows.append(current.finish(ends))
            if rows[-1]["rows"]:
                figures[job.name] = json.loads((out / job.file).read_text())["rows"]
            _write(device, out, repeats, rows, figures)
    finally:
        for started in (current, following):  # each has a session of its own, which Ctrl-C does not reach
            if started:
                started.kill()
        signal.signal(signal.SIGTERM, before)
    _write(device, out, repeats, rows, figures)
    return rows


def _write(device: str, out: Path, repeats: int, rows: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    content = document(f"bench all --device {device}", rows, repeats)
    write_json(out / "all.json", {**content, "figures": figures})
    if device.startswith("cuda"):
        outcomes = {row["part"]: row["outcome"] for row in rows}
        gpus = content["hardware"]["gpus"]
        reached = goals_verdict.table(figures, gpus[0] if gpus else "no GPU")
        (out / claims.FILE).write_text(claims.table(outcomes, figures, content) + reached)


def failed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a job did not end well."""
    return any(row["outcome"] != "ok" for row in rows)


class _Started:
    """A job's process, which has imported what it needs or is about to, and waits to be let go."""

    def __init__(self, job: Job, out: Path) -> None:
        self._job, self._figures, self._log = job, out / job.file, out / f"{job.name}.log"
        with self._log.open("w") as text:
            self._process = subprocess.Popen(
                job.command(out),
                stdin=subprocess.PIPE,
                stdout=text,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, ends: float) -> dict[str, Any]:
        """Let it go and wait for its end, at most until its own limit or the moment ``ends``; its row."""
        started = time.monotonic()
        limit = min(self._job.limit, ends - started)
        try:
            _let_go(self._process.stdin)
            code: int | None = self._process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
            self.kill()
        count, whole = _rows_of(self._figures)
        outcome = _outcome(code, self._job, limit)
        row = {"part": self._job.name, "outcome": outcome, "seconds": time.monotonic() - started, "rows": count}
        if code == 0 and whole:
            print(self._log.read_text(), flush=True)
            self._log.unlink()
        else:
            print("\n".join(self._log.read_text().splitlines()[-20:]), flush=True)
        return row | {"file": self._figures.name if count else self._log.name}

    def kill(self) -> None:
        """End it and all that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _let_go(pipe: IO[bytes] | None) -> None:
    if pipe is None:
        return
    try:
        pipe.write(b"\n")
        pipe.close()
    except BrokenPipeError:
        pass  # it has ended already; its exit code tells


def _rows_of(figures: Path) -> tuple[int, bool]:
    """How many rows were written, and whether the file can be read."""
    try:
        return len(json.loads(figures.read_text())["rows"]), True
    except FileNotFoundError:
        return 0, True
    except (ValueError, KeyError, UserError):
        figures.unlink()
        return 0, False


def _outcome(code: int | None, job: Job, limit: float) -> str:
    if code is None:
        return f"stopped after {limit:.0f} s"
    if code == 9 and job.wrapper:
        return "the sanitizer found errors"
    return {0: "ok", 1: "a check FAILED", 2: "cannot run here"}.get(code, f"ended with exit code {code}")
