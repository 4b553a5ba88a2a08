"""What a source left out of what it found, counted by kind: nothing is passed over in silence."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Passed:
    """Files and folders that were not taken, counted by kind, each kind with its first path."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first[kind] = min(path, self.first.get(kind, path))  # a folder's entries come in any order

    def lines(self) -> list[str]:
        """One line a kind, the most frequent first."""
        kinds = sorted(self.counts, key=lambda kind: (-self.counts[kind], kind))
        return [f"{self.counts[kind]:,} x {kind} ({self.first[kind]})" for kind in kinds]


@runtime_checkable
class Passing(Protocol):
    """A source that may leave something out."""

    passed: Passed


def left_out(source: object) -> list[str]:
    """A line a kind of what ``source`` left out."""
    return source.passed.lines() if isinstance(source, Passing) else []
