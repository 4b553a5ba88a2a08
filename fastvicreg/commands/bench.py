"""``fastvicreg bench PART``: one table of medians and spreads; ``--json FILE`` for the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

PARTS = ("plan", "convert", "loader", "loss", "lars", "augment", "resample")


@dataclass(frozen=True)
class BenchOptions:
    """Measure one part against its reference and its peers, in interleaved repeats of one process."""

    part: Annotated[str, tyro.conf.Positional]
    """plan, convert, loader, loss, lars, augment, resample or all."""
    data: str | None = None
    """loader, convert: folder of images (loader: or a .beton); default: the embedded ones."""
    size: int = 224
    """loader, augment, resample: side of a view in pixels."""
    workers: int = 0
    """loader, convert: threads or processes; 0: one a core."""
    repeats: int = 5
    """Repeats of each measurement."""
    device: str = "cpu"
    """loss, lars, augment: cpu or cuda."""
    out: str | None = None
    """Folder that receives one JSON file a part."""
    json: str | None = None
    """Write the figures to this file."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit code."""
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
    parts = PARTS if options.part == "all" else (options.part,)
    if options.json and len(parts) > 1:
        raise UserError("--json takes one part's figures; with `bench all` give --out DIR.")

    from fastvicreg.assemble import resolve_device
    from fastvicreg.profiles.measure import document, show, write_json

    device = resolve_device(options.device)
    for part in parts:
        module = import_module(f"fastvicreg.profiles.bench.{part}")
        rows: list[dict[str, Any]] = module.run(**_arguments(part, options, device))
        show(f"bench {part} (median of {options.repeats}, spread: interquartile range / median)", rows, module.COLUMNS)
        content = document(f"bench {part}", rows, options.repeats)
        if options.json:
            write_json(options.json, content)
        if options.out:
            write_json(Path(options.out) / f"{part}.json", content)
    return 0


def _arguments(part: str, options: BenchOptions, device: str) -> dict[str, Any]:
    """What the part's ``run`` takes of the options."""
    if part in ("loader", "convert"):
        from fastvicreg import embedded

        data = options.data or embedded.write_once() / "train"
        taken: dict[str, Any] = {"data": data, "workers": options.workers, "repeats": options.repeats}
        return taken | ({"size": options.size} if part == "loader" else {})
    if part == "plan":
        return {"repeats": options.repeats}
    if part == "resample":
        return {"size": options.size, "repeats": options.repeats}
    if part == "augment":
        return {"size": options.size, "repeats": options.repeats, "device": device}
    return {"repeats": options.repeats, "device": device}
