"""What the processes tell each other after an epoch: their faults, and which of them made the others wait.

Processes meet in every step, so that all take as long as the slowest: the time of a step does not tell them apart,
nor does the wait of the process that writes the log. What a device is slow at shows only in a trace of each process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fastvicreg.contracts import FaultReport
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import Recorder, data_wait_share

MARGIN = 0.05
"""Share of an epoch by which one process must wait longer than the others before it is named."""


class Waits:
    """This process's wait since it was last asked."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def see(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of more steps."""
        self._rows += [{name: row[name] for name in ("images_per_s", "data_wait")} for row in rows]

    def take(self) -> float:
        """The share of these steps' time that was lost to waiting for images; 0 for no steps."""
        rows, self._rows = self._rows, []
        return data_wait_share(rows) if rows else 0.0


def tell_epoch(
    epoch: int, step: int, told: Sequence[tuple[FaultReport, float]], display: Display, recorder: Recorder
) -> None:
    """Show an epoch's faults and its straggler; ``told`` holds each process's faults and wait, by rank."""
    faults, named = Counter[str](), list[str]()
    for (counts, names), _ in told:
        faults.update(counts)
        named += names
    if faults:
        display.faults(epoch, faults, named)
    shares = [share for _, share in told]
    if len(shares) < 2:
        return
    slowest, longest, others = straggler(shares)
    recorder.processes(step, epoch, {"slowest": slowest, "data_wait": longest, "data_wait_of_others": others})
    if longest - others > MARGIN:
        display.note(
            f"epoch {epoch}: process {slowest} waited for its images {longest:.0%} of the time, the others "
            f"{others:.0%}, and all waited for it: its disk or cores are slower than theirs, or busy with other work."
        )


def straggler(shares: Sequence[float]) -> tuple[int, float, float]:
    """Of two or more processes' waits: the rank of the longest, that wait, and the median of the others'."""
    slowest = max(range(len(shares)), key=lambda rank: shares[rank])
    return slowest, shares[slowest], median(share for rank, share in enumerate(shares) if rank != slowest)
