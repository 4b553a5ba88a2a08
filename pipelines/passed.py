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

    def include(self, other: Passed) -> None:
        """Count what ``other`` counted too."""
        for kind, count in other.counts.items():
            self.add(kind, other.first[kind])
            self.counts[kind] += count - 1

    def lines(self) -> list[str]:
        """One line a kind, the most frequent first."""
        kinds = sorted(self.counts, key=lambda kind: (-self.counts[kind], kind))
        return [f"{self.counts[kind]:,} x {kind} ({self.first[kind]})" for kind in kinds]


@runtime_checkable
class Passing(Protocol):
    """A source that may leave something out."""

    passed: Passed


@runtime_checkable
class Noting(Protocol):
    """A source of which a person should know something."""

    notes: tuple[str, ...]


def notes_of(source: object) -> tuple[str, ...]:
    """What ``source`` chose where there was a choice, a line each."""
    return source.notes if isinstance(source, Noting) else ()


def left_out(source: object) -> list[str]:
    """What ``source`` left out, in one line, where it left out anything."""
    found = source.passed.lines() if isinstance(source, Passing) else []
    return [f"not taken: {'; '.join(found)}"] if found else []
