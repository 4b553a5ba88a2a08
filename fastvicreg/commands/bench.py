"""``fastvicreg bench PART``: one table of medians and spreads; ``--json FILE`` for the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastvicreg.commandline import parse
from fastvicreg.commands import bench_swap
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

PARTS = (
    *("plan", "convert", "loader", "loss", "lars", "augment", "resample", "step", "swap", "trace"),
    *("ceilings", "correctness", "decoders"),
)
PICTURES = {"loader": ("pipeline", "workers"), "step": ("precision", "memory_format"), "swap": ("swap",)}
"""Parts whose images/s --plot draws, and the columns that name a bar."""


@dataclass(frozen=True)
class BenchOptions:
    """Measure one part against its reference and its peers, in interleaved repeats of one process."""

    part: Annotated[str, tyro.conf.Positional]
    """plan, convert, loader, loss, lars, augment, resample, step, swap (see bench swap --help), trace, ceilings,
    correctness, decoders; or all: checks first, then every part that DEVICE concerns, each in a process of its own."""
    data: str | None = None
    """loader, convert: folder of images (loader: or of shards, or a .beton); default: the embedded ones. trace: a
    trace file."""
    size: int = 224
    """loader, augment, resample: side of a view in pixels."""
    workers: int = 0
    """loader, convert: threads or processes; 0: one a core."""
    repeats: int = 5
    """Repeats of each measurement."""
    device: str = "cpu"
    """loss, lars, augment, step, swap, ceilings, correctness, all: cpu or cuda."""
    preset: str | None = None
    """step: default demo on the CPU, imagenet-100ep on CUDA."""
    small: bool = False
    """correctness: the fewest sizes that reach every path."""
    out: str | None = None
    """Folder that receives the figures as PART.json; all needs it."""
    json: str | None = None
    """Write the figures to this file."""
    plot: str | None = None
    """loader, step, swap: draw the images/s as bars, a .png or .svg file."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit code."""
    if arguments[:1] == ["swap"]:  # takes a whole run, as train does
        return bench_swap.main(arguments[1:])
    options = parse(BenchOptions, arguments, "bench")
    if options.part not in (*PARTS, "all"):
        raise UserError(unknown("part", options.part, (*PARTS, "all")))
    for flag, value, least in (
        ("repeats", options.repeats, 1),
        ("size", options.size, 1),
        ("workers", options.workers, 0),
    ):
        if value < least:
            raise UserError(f"--{flag} {value}: give {least} or more.")
    if options.part == "swap":
        raise UserError("bench swap takes the options of a run: write swap first, fastvicreg bench swap ...")
    if options.part == "all" and options.json:
        raise UserError(f"--json {options.json} takes one part's figures; with bench all give --out DIR.")
    if options.part == "all" and not options.out:
        raise UserError("bench all writes a file for every part: give --out DIR.")
    if options.plot and options.part not in PICTURES:
        raise UserError(f"--plot draws {', '.join(PICTURES)}, not {options.part}.")

    from fastvicreg.assemble import resolve_device
    from fastvicreg.profiles.charts import bars, require_picture
    from fastvicreg.profiles.measure import document, show, write_json

    if options.plot:
        require_picture(options.plot)
    part, device = options.part, resolve_device(options.device)
    if part == "all":
        return _all(device, Path(str(options.out)), options.repeats)
    module = import_module(f"fastvicreg.profiles.bench.{part}")
    rows: list[dict[str, Any]] = module.run(**_arguments(part, options, device))
    show(f"bench {part} (median of {options.repeats}, spread: interquartile range / median)", rows, module.COLUMNS)
    content = document(f"bench {part}", rows, options.repeats)
    if options.json:
        write_json(options.json, content)
    if options.out:
        write_json(Path(options.out) / f"{part}.json", content)
    if options.plot:
        # Synthetic data is no loader: beside it the bars of the others could not be told apart.
        drawn = [row for row in rows if row.get("pipeline") != "synthetic"]
        bars(options.plot, drawn, label=PICTURES[part], value="images_per_s", title=f"bench {part}")
    return 1 if part == "correctness" and module.failures(rows) else 0


def _all(device: str, out: Path, repeats: int) -> int:
    from fastvicreg.profiles.bench import suite
    from fastvicreg.profiles.measure import show

    rows = suite.run(device, out, repeats=repeats)
    show(f"bench all --device {device}: figures in {out}", rows, suite.COLUMNS)
    return 1 if suite.failed(rows) else 0


def _arguments(part: str, options: BenchOptions, device: str) -> dict[str, Any]:
    """What the part's ``run`` takes of the options."""
    if part in ("loader", "convert", "decoders"):
        from fastvicreg import embedded

        data = options.data or embedded.write_once() / "train"
        if part == "decoders":
            return {"data": data, "size": options.size, "repeats": options.repeats}
        taken: dict[str, Any] = {"data": data, "workers": options.workers, "repeats": options.repeats}
        return taken | ({"size": options.size} if part == "loader" else {})
    if part == "plan":
        return {"repeats": options.repeats}
    if part == "resample":
        return {"size": options.size, "repeats": options.repeats}
    if part == "augment":
        return {"size": options.size, "repeats": options.repeats, "device": device}
    if part == "trace":
        return {"data": options.data, "repeats": options.repeats}
    if part == "correctness":
        return {"device": device, "small": options.small}
    if part == "step":
        return {"name": options.preset, "repeats": options.repeats, "device": device}
    return {"repeats": options.repeats, "device": device}
