"""Samples that could not be delivered: counted by cause, named, and stopping the run above a budget."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from fastvicreg.contracts import Fault
from fastvicreg.errors import UserError

NAMED = 20
"""Faulty samples kept by name in an epoch; the rest are only counted."""


@dataclass(frozen=True)
class FaultBudget:
    """A run stops when an epoch has replaced more than ``count`` samples AND more than ``share`` of those delivered."""

    count: int = 10
    share: float = 0.01


class FaultLog:
    """One epoch's faults; worker threads record, the delivering thread checks."""

    def __init__(self, budget: FaultBudget | None = None) -> None:
        self.budget = budget or FaultBudget()
        self._lock = threading.Lock()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the last epoch's faults."""
        with self._lock:
            self._causes: Counter[str] = Counter()
            self._named: list[str] = []
            self._delivered = 0

    def record(self, fault: Fault, name: str, reason: str) -> None:
        """Count one replaced sample."""
        with self._lock:
            self._causes[fault.name.lower()] += 1
            if len(self._named) < NAMED:
                self._named.append(f"{name}: {reason}")

    def delivered(self, samples: int) -> None:
        """Count a batch and compare with the budget; ``UserError`` above it."""
        with self._lock:
            self._delivered += samples
            faults = sum(self._causes.values())
            over = faults > self.budget.count and faults > self.budget.share * self._delivered
            first = self._named[0] if self._named else ""
        if over:
            raise UserError(
                f"{faults} of the {self._delivered} samples of this epoch could not be read (first: {first}): "
                f"mend the data, or allow more with --fault-count and --fault-share."
            )

    def counts(self) -> dict[str, int]:
        """Faults since the epoch's start, by cause."""
        with self._lock:
            return dict(self._causes)

    def named(self) -> tuple[str, ...]:
        """The first faulty samples since the epoch's start, with the reason."""
        with self._lock:
            return tuple(self._named)
