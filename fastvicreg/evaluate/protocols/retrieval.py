"""Image retrieval by the cosine of frozen features: the validation images ask, the training images answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.evaluate.subject import Subject


@dataclass(frozen=True)
class Retrieval:
    """By how many of the nearest training images are of the query's class: recall at 1, 5, 10 and mean precision."""

    recall: tuple[int, ...] = (1, 5, 10)
    """Ranks within which an image of the query's class counts as found."""

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first rank that is not there."""
        if not self.recall:
            raise UserError("--recall needs a value: give one or several ranks, such as 1 5 10.")
        for rank in self.recall:
            if not 1 <= rank <= len(subject.bank):
                raise UserError(f"--recall {rank}: give between 1 and the bank's {len(subject.bank)} images.")

    def measure(self, subject: Subject, told: Callable[[str], None]) -> list[dict[str, Any]]:
        """See ``evaluate.ranking.retrieval``."""
        from fastvicreg.evaluate.ranking import retrieval

        bank, queries = subject.features()
        return [retrieval(bank, queries, self.recall)]
