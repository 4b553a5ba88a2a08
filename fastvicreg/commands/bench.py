"""``fastvicreg bench PART``: one table of medians and spreads; ``--json FILE`` for the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fastvicreg.commandline import parse, part_named
from fastvicreg.commands import bench_compare, bench_swap
from fastvicreg.errors import UserError
from fastvicreg.profiles.bench.registry import BENCHMARKS, SWAP, Benchmark, DeviceOptions, Output, benchmark


@dataclass(frozen=True)
class AllOptions(DeviceOptions):
    """Checks first, then every benchmark that the device concerns, each in a process of its own."""


Chosen = TypeVar("Chosen", bound=Output)

LEAST = {"repeats": 1, "size": 1, "workers": 0}
"""The least value of options that several benchmarks have."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit code."""
    own = {"swap": bench_swap.main, "compare": bench_compare.main, "all": _all}
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
    rows = measured.run(**arguments)
    repeats = arguments.get("repeats", 1)
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

    from fastvicreg.profiles.bench import suite
    from fastvicreg.profiles.measure import show

    rows = suite.run(options.device, Path(options.out), repeats=options.repeats)
    show(f"bench all --device {options.device}: figures in {options.out}", rows, suite.COLUMNS)
    return 1 if suite.failed(rows) else 0


def _checked(options: Chosen) -> Chosen:
    """The options with their device resolved; ``UserError`` for a value that no benchmark can have."""
    for name, least in LEAST.items():
        value = getattr(options, name, least)
        if value < least:
            raise UserError(f"--{name} {value}: give {least} or more.")
    if isinstance(options, DeviceOptions):
        from fastvicreg.train.assemble import resolve_device

        return replace(options, device=resolve_device(options.device))
    return options
