"""Samples that could not be delivered: counted by cause, named, and stopping the run above a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fastvicreg.contracts import Fault, FaultReport
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.manifest import ChangedError

NAMED = 20
"""Faulty samples kept by name in an epoch; the rest are only counted."""


@dataclass(frozen=True)
class FaultBudget:
    """A run stops when an epoch has replaced more than ``count`` samples AND more than ``share`` of those delivered."""

    count: int = 10
    share: float = 0.01


def cause_of(error: OSError | DecodeError) -> tuple[Fault, str]:
    """Why a sample cannot be delivered, of the error that reading or decoding it raised: its kind, and in words."""
    if isinstance(error, DecodeError):
        return error.fault, str(error)
    if isinstance(error, ChangedError):
        return Fault.CHANGED, str(error)
    return Fault.UNREADABLE, error.strerror or str(error)


class Replaced(NamedTuple):
    """A sample that could not be delivered: its place in the batch, and why."""

    place: int
    fault: Fault
    name: str
    reason: str


class FaultLog:
    """One epoch's faults, of the batches delivered: what is decoded ahead does not count yet."""

    def __init__(self, budget: FaultBudget | None = None) -> None:
        self.budget = budget or FaultBudget()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the last epoch's faults."""
        self._causes: Counter[str] = Counter()
        self._named: list[str] = []
        self._delivered = 0

    def deliver(self, samples: int, replaced: Iterable[Replaced]) -> None:
        """Count a batch of ``samples`` and what was replaced in it; ``UserError`` above the budget."""
        for _, fault, name, reason in sorted(replaced):
            self._causes[fault.name.lower()] += 1
            if len(self._named) < NAMED:
                self._named.append(f"{name}: {reason}")
        self._delivered += samples
        faults = self._causes.total()
        if faults > self.budget.count and faults > self.budget.share * self._delivered:
            raise UserError(
                f"{faults} of the {self._delivered} samples of this epoch could not be read (first: {self._named[0]}): "
                f"mend the data, or allow more with --fault-count and --fault-share."
            )

    def report(self) -> FaultReport:
        """The faults since the epoch's start."""
        return FaultReport(dict(self._causes), tuple(self._named))
