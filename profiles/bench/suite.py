"""``bench all``: every check and measurement of one device, each in a process of its own, then one table.

A kernel that brings its process down, or a part that takes too long, costs its own figures and no other's.
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
from typing import Any

from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.provenance import document, write_json

COLUMNS = ("part", "outcome", "seconds", "rows", "file")


DEVICE_FUNCTION = {
    "cu": re.compile(r"__global__\s+(?:void\s+|__launch_bounds__\([^)]*\)\s*)*(\w+)\s*\("),
    "py": re.compile(r"@triton\.jit.*?\ndef (\w+)", re.DOTALL),
}
"""What its definition looks like, by the file's ending."""

HOST = {"plan": 20, "resample": 60, "loader": 300}
"""Parts that use no device, and their budgets."""


@dataclass(frozen=True)
class Job:
    """One command; ``file`` receives its figures, ``budget`` is in seconds."""

    name: str
    arguments: tuple[str, ...]
    budget: float
    file: str = ""
    wrapper: tuple[str, ...] = ()


def jobs(device: str, out: Path, repeats: int) -> list[Job]:
    """What ``bench all`` runs on ``device``, correctness first; on a CPU the same comparisons at small sizes.

    The budgets of a GPU's jobs end within 9 minutes. A trace of a step lies below ``out``, where TensorBoard finds it.
    """
    gpu = device.startswith("cuda")

    def bench(part: str, budget: float, *more: str, name: str = "") -> Job:
        arguments = ("bench", part, *(() if part in HOST else ("--device", device)), "--repeats", str(repeats), *more)
        return Job(name or part, arguments, budget, f"{name or part}.json")

    checks = [bench("ceilings", 30), bench("correctness", 110)]
    if gpu and (sanitizer := shutil.which("compute-sanitizer")):
        for tool in ("memcheck", "racecheck"):
            small = bench("correctness", 50, "--small", name=f"sanitizer-{tool}")
            checks.append(Job(small.name, small.arguments, small.budget, small.file, sanitized(sanitizer, tool)))
    times = [bench("loss", 60 if gpu else 300), bench("lars", 30), bench("augment", 35), bench("step", 60)]
    run = (
        ("--preset", "imagenet-100ep", "--pipeline", "synthetic", "--batch-size", "256")
        if gpu
        else ("--preset", "demo")
    )
    times += [
        Job("swap", ("bench", "swap", *run, "--device", device, "--repeats", "3"), 60 if gpu else 180, "swap.json"),
        Job("profile", ("profile", *run, "--device", device, "--out", str(out)), 55, "profile.json"),
    ]
    host = [] if gpu else [bench(part, budget) for part, budget in HOST.items()]
    return [*checks, *times, *host]


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


def run(device: str, out: Path, *, repeats: int) -> list[dict[str, Any]]:
    """Run all jobs one after another and write their figures into ``out``; a row each, telling how it ended.

    ``all.json`` there holds every job's rows, ``NAME.log`` what it printed where it did not end well.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {}
    for job in jobs(device, out, repeats):
        print(f"{job.name} ...", flush=True)
        row = _run(job, out)
        rows.append(row)
        if row["rows"]:
            figures[job.name] = json.loads((out / job.file).read_text())["rows"]
    content = document(f"bench all --device {device}", rows, repeats)
    write_json(out / "all.json", {**content, "figures": figures})
    return rows


def failed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a job did not end well."""
    return any(row["outcome"] != "ok" for row in rows)


def _run(job: Job, out: Path) -> dict[str, Any]:
    figures, log = out / job.file, out / f"{job.name}.log"
    figures.unlink(missing_ok=True)
    command = [*job.wrapper, sys.executable, "-m", "fastvicreg", *job.arguments, "--json", str(figures)]
    started = time.monotonic()
    with log.open("w") as text:
        process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(timeout=job.budget)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    count = len(json.loads(figures.read_text())["rows"]) if figures.exists() else 0
    row = {"part": job.name, "outcome": _outcome(code, job), "seconds": time.monotonic() - started, "rows": count}
    if code == 0:
        print(log.read_text(), flush=True)
        log.unlink()
    else:
        print("\n".join(log.read_text().splitlines()[-20:]), flush=True)
    return row | {"file": figures.name if count else log.name}


def _outcome(code: int | None, job: Job) -> str:
    if code is None:
        return f"stopped after {job.budget:.0f} s"
    if code == 9 and job.wrapper:
        return "the sanitizer found errors"
    return {0: "ok", 1: "a check FAILED", 2: "cannot run here"}.get(code, f"ended with exit code {code}")
