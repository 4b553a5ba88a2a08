"""How far a walk over a dataset is: a bar with rate and time left on a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

BAR_SECONDS = 0.1
PLAIN_SECONDS = 10.0


class WalkProgress:
    """A context; call ``update`` after each sample, as often as one likes."""

    def __init__(self, what: str, faults: str, console: Console | None = None, unit: str = "images") -> None:
        """``what`` is done to the samples ("converting"), ``faults`` what the bad ones are called ("skipped")."""
        self._unit = unit
        self._console = console or Console(stderr=True)
        self._what, self._faults = what, faults
        self._first: tuple[float, int, int] | None = None  # time, samples and bytes at the first update
        self._shown = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> WalkProgress:
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(
                TextColumn(self._what), *columns, TimeRemainingColumn(), console=self._console, transient=True
            )
            self._task = self._bar.add_task("", total=None, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, size: int, faults: int) -> None:
        """``done`` of ``total`` samples in ``size`` bytes, ``faults`` of them bad; what was done before is no rate."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done, size)
            self._shown = now
        if now - self._shown < (BAR_SECONDS if self._bar else PLAIN_SECONDS) and done < total:
            return
        self._shown = now
        start, before, bytes_before = self._first
        seconds = max(now - start, 1e-3)
        rate = (done - before) / seconds
        text = f"{rate:,.0f} {self._unit}/s  {(size - bytes_before) / seconds / 1e6:,.0f} MB/s"
        if faults:
            text += f"  {faults:,} {self._faults}"
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, rate=text)
        elif done < total:
            left = f"{(total - done) / rate:,.0f} s left" if rate else "no rate yet"
            line = f"{self._what} {done:,} of {total:,}  {text}  {left}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
