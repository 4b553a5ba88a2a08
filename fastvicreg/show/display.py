"""What a person sees while a run trains: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastvicreg.contracts import Column
from fastvicreg.show.metrics import data_wait_share

SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_SECONDS = 10.0
EVALUATED = {"knn": "kNN", "probe": "probe", "recall_ab": "R@1 a to b", "recall_ba": "R@1 b to a"}
"""Figures of an evaluation in percent, and what they are called."""


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last ``width`` values as a line of blocks, scaled to their own range."""
    values = [v for v in values if math.isfinite(v)][-width:]
    if not values:
        return ""
    low, high = min(values), max(values)
    return "".join(SPARKS[int((v - low) / ((high - low) or 1.0) * (len(SPARKS) - 1))] for v in values)


def _ranks(row: Mapping[str, Any]) -> str:
    """ "a 12.3, b 11.9 of 128"."""
    sides = {name.removeprefix("std_") for name in row if name.startswith("std_")}
    return ", ".join(f"{side} {row[f'rank_{side}']:.1f}" for side in sorted(sides)) + f" of {row['rank_most']}"


class Display:
    """``quiet`` shows notes and faults only.

    A console that can no longer be written to (a lost terminal, a pipe without a reader, a full disk) is left alone
    from then on: what shows a run never ends it.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console()
        self._quiet = quiet
        self._live: Live | None = None
        self._totals: list[float] = []
        self._row: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Any] = {}
        self._last_line = 0.0
        self._ranks = ""

    def start(
        self,
        description: str,
        *,
        columns: Sequence[Column],
        schedules: Sequence[str],
        total: int,
        done: int,
        per_epoch: int,
    ) -> None:
        """Show what begins: ``total`` steps of which ``done`` are done; rows are shown by ``columns``."""
        if self._quiet:
            return
        self._total = total
        self._columns, self._schedules = tuple(columns), tuple(schedules)
        self._totals, self._row, self._evaluation = [], {}, {}
        self.note(description)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            expand=True,
        )
        self._task = self._progress.add_task("", total=total, completed=done, epoch=done // per_epoch)
        if self.console.is_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4)
            with self._console_may_be_gone():
                self._live.start()

    def step(self, rows: Sequence[Mapping[str, Any]], spreads: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take the rows of the steps done since the last call, and those of how embeddings spread."""
        if self._quiet:
            return
        self._ranks = _ranks(spreads[-1]) if spreads else self._ranks
        # One step's wait alone says little: crops come in bursts.
        self._row = {**rows[-1], "data_wait": data_wait_share(rows)}
        self._totals.extend(row["total"] for row in rows)
        del self._totals[:-400]
        if self._live:
            self._progress.update(self._task, completed=self._row["step"], epoch=self._row["epoch"])
            self._live.update(self._render())
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or self._row["step"] == self._total:
            self._last_line = time.monotonic()
            row = self._row
            self.note(
                f"epoch {row['epoch']}  step {row['step']}/{self._total}  loss {row['total']:.3f}  "
                + "".join(f"{column.short} {row[column.name]:.3f}  " for column in self._columns)
                + (f"rank {self._ranks}  " if self._ranks else "")
                + "".join(f"{name} {row[name]:.4g}  " for name in self._schedules)
                + f"{row['images_per_s']:.0f} img/s  data-wait {row['data_wait']:.0%}"
            )

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Take an evaluation's row."""
        if self._quiet:
            return
        self._evaluation = row
        if self._live:
            self._live.update(self._render())
        else:
            shown = "".join(f"{title} {row[name]:.1f} %  " for name, title in EVALUATED.items() if name in row)
            self.note(f"epoch {row['epoch']}  {shown}RankMe {row['rankme']:.1f}")

    def faults(self, epoch: int, counts: Mapping[str, int], named: Sequence[str]) -> None:
        """Name the samples that an epoch replaced."""
        causes = ", ".join(f"{count} {cause}" for cause, count in counts.items())
        self.note(f"epoch {epoch}: {sum(counts.values())} samples replaced by a neighbour ({causes}):")
        for name in named:
            self.note(f"  {name}")

    def note(self, text: str) -> None:
        """One line that stays on the screen."""
        with self._console_may_be_gone():
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def stop(self) -> None:
        """Leave the last state on the screen."""
        if self._live:
            live, self._live = self._live, None
            with self._console_may_be_gone():
                try:
                    live.update(self._render(), refresh=True)
                finally:
                    live.stop()

    @contextmanager
    def _console_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SystemExit):  # rich ends the process where a pipe has no reader
            self.console.quiet = True

    def _render(self) -> Group:
        row, shown = self._row, Table.grid(padding=(0, 2))
        if row:
            shown.add_row("loss", f"{row['total']:8.3f}", Text(sparkline(self._totals), style="cyan"))
            for column in self._columns:
                beside = ", ".join(f"{label} {row[part]:.3f}" for label, part in column.beside.items())
                shown.add_row(column.name.replace("_", " "), f"{row[column.name]:8.4f}", beside)
            if self._ranks:
                shown.add_row("rank", self._ranks, "RankMe of a batch's embeddings")
            waits = Text(f"data-wait {row['data_wait']:.0%}", style="red" if row["data_wait"] > 0.1 else "green")
            shown.add_row("images/s", f"{row['images_per_s']:8.0f}", waits)
            for name in self._schedules:
                shown.add_row(name, f"{row[name]:8.4g}", "")
        if self._evaluation:
            value = self._evaluation
            for name, title in EVALUATED.items():
                if name in value:
                    shown.add_row(title, f"{value[name]:8.1f} %", f"epoch {value['epoch']}")
            shown.add_row("RankMe", f"{value['rankme']:8.1f}", f"epoch {value['epoch']}")
        return Group(self._progress, shown)
