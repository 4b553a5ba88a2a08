"""The words of a run's captions and their numbers: made from the training captions, kept in the run's folder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json

FILE = "vocabulary.json"
PAD, START, END, UNKNOWN = range(4)
"""Numbers that are no word's: after a caption's end, its beginning and end, and a word that is not in the list."""
SPECIAL = 4
_WORDS = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*|[^\w\s]")


def split(caption: str) -> list[str]:
    """Words in lower case and marks, in their order: "A dog's ball." is a, dog's, ball and the full stop."""
    return _WORDS.findall(caption.lower())


class Vocabulary:
    """Words by number, the most frequent first; as VSE++'s, but for words being cut by rank and not by count."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number = {word: number for number, word in enumerate(self.words, SPECIAL)}

    def __len__(self) -> int:
        """Numbers in use, with those that are no word's."""
        return SPECIAL + len(self.words)

    @classmethod
    def of(cls, captions: Iterable[str], size: int) -> Vocabulary:
        """The most frequent words of ``captions``, ``size`` numbers at most; equally frequent ones by the alphabet."""
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(split(caption))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: max(0, size - SPECIAL)])

    def tokens(self, caption: str, length: int) -> np.ndarray:
        """int64 (length + 2,): start, the first ``length`` words, end, and padding."""
        numbers = [self._number.get(word, UNKNOWN) for word in split(caption)[:length]]
        return np.array([START, *numbers, END] + [PAD] * (length - len(numbers)), np.int64)

    def differing(self, folder: Path) -> str:
        """A line on the run's folder holding other words, for which its embeddings were trained; "" where not."""
        if not (folder / FILE).exists() or Vocabulary.load(folder).words == self.words:
            return ""
        return (
            f"the training captions have other words than those that {folder} was trained on ({FILE}): give --data as "
            "it was, or start a new run in another --out."
        )

    def to_json(self) -> str:
        """As ``load`` reads it."""
        return json.dumps(self.words, ensure_ascii=False, indent=0)

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """``UserError`` where the run has none, or it is damaged."""
        file = folder / FILE
        try:
            words = parse_json(file.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the words of the run's captions, {file}: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"{file} is damaged ({error}): copy it from the run again.") from error
        return cls.read(words, str(file))

    @classmethod
    def read(cls, words: object, origin: str) -> Vocabulary:
        """``UserError`` naming ``origin`` where ``words`` is no list of words."""
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{origin} is damaged: its vocabulary is no list of words; copy it again.")
        return cls(words)
