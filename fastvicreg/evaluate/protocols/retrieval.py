"""Retrieval by cosine: validation images ask for training images of their class, members of pairs for each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.evaluate.subject import Subject


@dataclass(frozen=True)
class Retrieval:
    """By how many of the nearest training images are of the query's class: recall at 1, 5, 10, mean average
    precision. Of a run of pairs: how often a validation sample's own caption, or sound, is among the nearest, and the
    other way round.
    """

    recall: tuple[int, ...] = (1, 5, 10)
    """Ranks within which an image of the query's class counts as found."""

    compares_pairs: ClassVar[bool] = True

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first rank that is not there."""
        if not self.recall:
            raise UserError("--recall needs a value: give one or several ranks, such as 1 5 10.")
        for rank in self.recall:
            if not 1 <= rank <= len(subject.bank):
                raise UserError(f"--recall {rank}: give between 1 and the bank's {len(subject.bank)} images.")

    def measure(self, subject: Subject, told: Callable[[str], None]) -> list[dict[str, Any]]:
        """See ``evaluate.ranking.retrieval``."""
        from fastvicreg.evaluate.paired_subject import PairSubject
        from fastvicreg.evaluate.ranking import retrieval

        if isinstance(subject, PairSubject):
            return subject.retrieval(self.recall)
        bank, queries = subject.features()
        return [retrieval(bank, queries, self.recall)]
