"""``fastvicreg bench PART``: one table of medians and spreads; ``--json FILE`` for the figures."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from fastvicreg.commandline import parse, part_named
from fastvicreg.commands import bench_compare, bench_swap
from fastvicreg.errors import UserError
from fastvicreg.profiles.bench.registry import BENCHMARKS, SWAP, Benchmark, DeviceOptions, Output, benchmark


@dataclass(frozen=True)
class AllOptions(DeviceOptions):
    """What training uses first, then every benchmark that the device concerns, each in a process of its own."""

    budget: int = 0
    """Seconds for all of it; what is worth least comes last and is left out. 0: on CUDA 540, on a CPU no limit."""


@dataclass(frozen=True)
class PackOptions:
    """What a GPU machine that has torch, and no network, needs to run bench all and the tests that wait for it."""

    file: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.tar.gz")] = None
    """The archive to write."""
    python: str = "{}.{}".format(*sys.version_info)
    """The machine's version of Python."""
    there: str | None = None
    """What `pip list --format=freeze` prints there; default: torch, numpy and Triton with what they require."""
    limit_mb: int = 60
    """No larger archive is written."""


GPU_BUDGET = 540
"""Seconds of ``bench all`` on a GPU, which is lent or paid for by the minute."""

OFTEN = 1.0
"""Seconds after which rows that came meanwhile are written."""

Chosen = TypeVar("Chosen", bound=Output)

LEAST = {"repeats": 1, "size": 1, "workers": 0, "epochs": 1}
"""The least value of options that several benchmarks have."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit code."""
    own = {"swap": bench_swap.main, "compare": bench_compare.main, "all": _all, "pack": _pack}
    if (named := part_named(arguments, "bench", "part", usage, (*BENCHMARKS, *own))) is None:
        return 2
    part, rest = named
    if part in own:
        return own[part](rest)
    measured = benchmark(part)
    options = _checked(parse(measured.options, rest, f"bench {part}"))
    if options.plot and measured.picture is None:
        raise UserError(f"--plot {options.plot}: bench {part} has no picture.")
    return _measure(part, measured, options)


def usage() -> str:
    """The help text."""
    others = {
        "all": "every check and measurement of one device into a folder",
        "pack": "an archive with which a GPU machine without a network runs all of it",
        "compare": "two results: OLD.json NEW.json, with --fail-above 5%",
    }
    lines = [f"  {name:12} {text}" for name, text in (BENCHMARKS | SWAP | others).items()]
    return "\n".join(
        [
            "usage: fastvicreg bench PART [options]",
            "",
            "Measure one part against its reference and its peers, in interleaved repeats of one process.",
            "",
            *lines,
            "",
            "fastvicreg bench PART --help shows a part's options.",
        ]
    )


def _measure(part: str, measured: Benchmark, options: Output) -> int:
    from fastvicreg.profiles.charts import bars, require_picture
    from fastvicreg.profiles.measure import show
    from fastvicreg.provenance import document, write_json

    if options.plot:
        require_picture(options.plot)
    arguments = measured.arguments(options)
    repeats = arguments.get("repeats", 1)
    rows: list[dict[str, Any]] = []
    written = time.monotonic()
    for row in measured.run(**arguments):
        rows.append(row)
        if options.json and time.monotonic() - written > OFTEN:  # what ends the program early leaves what is there
            write_json(options.json, document(f"bench {part}", rows, repeats))
            written = time.monotonic()
    title = measured.title or f"median of {repeats}, spread: interquartile range / median"
    show(f"bench {part} ({title})", rows, measured.columns)
    content = document(f"bench {part}", rows, repeats)
    if options.json:
        write_json(options.json, content)
    if options.out:
        write_json(Path(options.out) / f"{part}.json", content)
    if options.plot and (picture := measured.picture):
        drawn = [row for row in rows if picture.leave_out is None or not picture.leave_out(row)]
        bars(options.plot, drawn, label=picture.label, value=picture.value, title=f"bench {part}")
    return 1 if measured.failures and measured.failures(rows) else 0


def _all(arguments: Sequence[str]) -> int:
    options = _checked(parse(AllOptions, arguments, "bench all"))
    if options.json:
        raise UserError(f"--json {options.json} takes one part's figures; with bench all give --out DIR.")
    if options.plot:
        raise UserError(f"--plot {options.plot} draws one part's figures, not those of bench all.")
    if not options.out:
        raise UserError("bench all writes a file for every part: give --out DIR.")

    from fastvicreg.profiles.bench import claims, suite
    from fastvicreg.profiles.measure import show

    if options.budget < 0:
        raise UserError(f"--budget {options.budget}: give seconds, or 0.")
    budget = options.budget or (GPU_BUDGET if options.device.startswith("cuda") else 0)
    rows = suite.run(options.device, Path(options.out), repeats=options.repeats, budget=budget)
    show(f"bench all --device {options.device}: figures in {options.out}", rows, suite.COLUMNS)
    if (turned := Path(options.out) / claims.FILE).is_file():
        print(turned.read_text())
    return 1 if suite.failed(rows) else 0


def _pack(arguments: Sequence[str]) -> int:
    options = parse(PackOptions, arguments, "bench pack")
    if options.file is None:
        raise UserError("bench pack writes an archive: give its name, such as gpu-check.tar.gz.")
    if not re.fullmatch(r"3\.\d+", options.python):
        raise UserError(f"--python {options.python}: give a version such as 3.12.")
    if options.limit_mb < 1:
        raise UserError(f"--limit-mb {options.limit_mb}: give 1 or more.")

    from fastvicreg.profiles.bench import pack

    there = pack.read_packages(options.there) if options.there else None
    target = pack.assumed(options.python) if there is None else pack.Target(options.python, there)
    sizes = pack.pack(options.file, target, limit=options.limit_mb * 1_000_000)
    print(", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()))
    print(f"there: tar xzf {Path(options.file).name} && sh fastvicreg-gpu-check/run.sh OUT")
    return 0


def _checked(options: Chosen) -> Chosen:
    """The options with their device resolved; ``UserError`` for a value that no benchmark can have."""
    for name, least in LEAST.items():
        value = getattr(options, name, least)
        if value < least:
            raise UserError(f"--{name} {value}: give {least} or more.")
    if isinstance(options, DeviceOptions):
        from fastvicreg.train.device import resolve_device

        return replace(options, device=resolve_device(options.device))
    return options
