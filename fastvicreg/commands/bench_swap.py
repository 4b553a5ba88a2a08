"""``fastvicreg bench swap``: what holds a run back, by replacing one part of it at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastvicreg.commands.as_train import parse_as_train
from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.profiles.bench.swap import Progress


@dataclass(frozen=True)
class SwapOptions:
    """Time a run and the same run with one part replaced, in interleaved rounds without a profiler.

    All options of ``fastvicreg train`` apply but --out; nothing is trained and nothing of a run is written.
    """

    repeats: int = 5
    """Rounds; every row has a turn in each."""
    window: int = 0
    """Timed steps of a turn; 0: as many as take about 0.4 s, at least 3."""
    budget: float | None = None
    """Seconds that all may take: no round begins that would not fit, but one is always taken."""
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
    if options.budget is not None and not 0 < options.budget < float("inf"):
        raise UserError(f"--budget {options.budget}: give seconds, such as 120.")

    from fastvicreg.profiles.bench import swap
    from fastvicreg.profiles.bench.swap_verdict import verdict as judged
    from fastvicreg.profiles.charts import bars, require_picture
    from fastvicreg.profiles.measure import show
    from fastvicreg.provenance import document, write_json
    from fastvicreg.show.display import Display
    from fastvicreg.train.distributed import launched, leave

    if options.plot:
        require_picture(options.plot)
    try:
        with _shown(launched().main) as progress:
            rows = swap.run(
                train.settings,
                repeats=options.repeats,
                window=options.window,
                budget=options.budget,
                progress=progress,
            )
    finally:
        leave()
    if not launched().main:
        return 0
    rounds = max(row["n"] for row in rows)
    title = f"bench swap (median of {rounds} round{'s' * (rounds > 1)}, spread: interquartile range / median)"
    show(title, rows, swap.COLUMNS)
    verdict = judged(rows, train.settings.data.pipeline)
    Display().note(verdict.text)
    content = document("bench swap", rows, rounds)
    content |= {"verdict": asdict(verdict), "config": asdict(train.settings)}
    if options.json:
        write_json(options.json, content)
    if options.out:
        write_json(Path(options.out) / "swap.json", content)
    if options.plot:
        bars(options.plot, rows, label=("swap",), value="images_per_s", title="what the run reaches without a part")
    return 0


@contextmanager
def _shown(main: bool) -> Iterator[Progress | None]:
    """A line on a terminal's error stream that says how far the rounds are and how long they still take."""
    if not main or not sys.stderr.isatty():
        yield None
        return

    from rich.console import Console
    from rich.status import Status

    with Status("building the run and its replacements", console=Console(stderr=True)) as status:

        def progress(done: int, total: int, left_s: float) -> None:
            status.update(f"turn {done + 1} of {total}, about {left_s:,.0f} s left")

        yield progress
