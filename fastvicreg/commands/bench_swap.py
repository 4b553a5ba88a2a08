"""``fastvicreg bench swap``: what holds a run back, by replacing one part of it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastvicreg.commands.as_train import parse_as_train
from fastvicreg.errors import UserError


@dataclass(frozen=True)
class SwapOptions:
    """Time a run and the same run with one part replaced, in interleaved rounds without a profiler.

    All options of ``fastvicreg train`` apply but --out; nothing is trained and nothing of a run is written.
    """

    repeats: int = 5
    """Rounds; every row has a turn in each."""
    window: int = 0
    """Timed steps of a turn; 0: as many as take about 0.4 s, at least 3."""
    out: str | None = None
    """Folder that receives swap.json."""
    json: str | None = None
    """Write the figures to this file."""
    plot: str | None = None
    """Draw the ceilings as bars: a .png or .svg file."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit code."""
    options, train = parse_as_train(SwapOptions, arguments, "bench swap")
    for flag, value, least in (("repeats", options.repeats, 1), ("window", options.window, 0)):
        if value < least:
            raise UserError(f"--{flag} {value}: give {least} or more.")

    from fastvicreg.display import Display
    from fastvicreg.distributed import launched, leave
    from fastvicreg.profiles.bench import swap
    from fastvicreg.profiles.charts import bars, require_picture
    from fastvicreg.profiles.measure import show
    from fastvicreg.provenance import document, write_json

    if options.plot:
        require_picture(options.plot)
    try:
        rows = swap.run(train.settings, repeats=options.repeats, window=options.window)
    finally:
        leave()
    if not launched().main:
        return 0
    title = f"bench swap (median of {options.repeats} rounds, spread: interquartile range / median)"
    show(title, rows, swap.COLUMNS)
    verdict = swap.verdict(rows, train.settings.data.pipeline)
    Display().note(verdict.text)
    content = document("bench swap", rows, options.repeats)
    content |= {"verdict": asdict(verdict), "config": asdict(train.settings)}
    if options.json:
        write_json(options.json, content)
    if options.out:
        write_json(Path(options.out) / "swap.json", content)
    if options.plot:
        bars(options.plot, rows, label=("swap",), value="images_per_s", title="what the run reaches without a part")
    return 0
