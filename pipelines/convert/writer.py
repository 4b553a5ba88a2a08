"""The seam between conversion and a format: who writes samples one after another and can take up where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from fastvicreg.pipelines.convert.prepare import Sample
from fastvicreg.pipelines.convert.settings import Settings


class Writer(Protocol):
    """Writes samples below a temporary name, in order; where a sample goes depends on those before it alone.

    All methods raise ``OSError`` where the disk refuses. ``entries_N`` are rows of ``journal.ENTRY``, none skipped.
    """

    ending: str  # that the final name must have; "": a folder is written
    shuffled: bool  # whether samples come in an order drawn from the seed; else in the source's

    def __init__(self, data: Path, capacity: int, settings: Settings) -> None:
        """Write to ``data``, which may hold an interrupted conversion, at most ``capacity`` samples."""
        ...

    def resume(self, entries_N: np.ndarray) -> None:
        """Take these samples as written and drop what lies behind them; ``UserError`` where ``data`` lacks some."""
        ...

    def add(self, sample: Sample) -> None:
        """Write the next sample."""
        ...

    def sync(self) -> None:
        """Wait until all samples added are on the disk."""
        ...

    def finish(self, entries_N: np.ndarray) -> int:
        """Write what is known only at the end, wait for the disk; returns the XXH3-64 of the dataset's index."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What a person should know of the written file."""
        ...

    def close(self) -> None: ...
