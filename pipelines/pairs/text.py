"""Captions as numbers of words."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastvicreg.contracts import Fault
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary
from fastvicreg.pipelines.rng import below

LIMIT = 1 << 20
"""Bytes above which a member is no caption."""


class Text:
    """UTF-8 text of one caption a line; in training a sample's caption is drawn anew each time."""

    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = ("txt", "caption", "text")

    def __init__(self, config: PairConfig) -> None:
        self._words = config.words - 2  # with the marks of start and end the view has config.words
        self.vocabulary: Vocabulary | None = None
        """Set once the training captions are known."""

    def captions(self, encoded: bytes | memoryview) -> list[str]:
        """The lines that are not empty. ``DecodeError`` where there are none, or the bytes are no text."""
        if len(encoded) > LIMIT:
            raise DecodeError(Fault.TOO_LARGE, f"{len(encoded):,} bytes, more than {LIMIT:,}, are no caption")
        try:
            text = bytes(encoded).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DecodeError(Fault.UNDECODABLE, f"no UTF-8 text ({error.reason} at byte {error.start})") from error
        if "\0" in text:
            raise DecodeError(Fault.UNDECODABLE, "no text, but bytes of 0")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise DecodeError(Fault.UNDECODABLE, "an empty caption")
        return lines

    def view(self, encoded: bytes | memoryview, key: np.uint64 | None) -> np.ndarray:
        """int64 (words,): one caption's numbers, the first one's in evaluation."""
        lines = self.captions(encoded)
        return self.tokens(lines[0 if key is None else below(key, 0, len(lines))])

    def views(self, encoded: bytes | memoryview) -> list[np.ndarray]:
        """Of every caption."""
        return [self.tokens(line) for line in self.captions(encoded)]

    def tokens(self, caption: str) -> np.ndarray:
        """int64 (words,): the numbers of one caption's words."""
        assert self.vocabulary is not None, "the vocabulary is made when the data are opened"
        return self.vocabulary.tokens(caption, self._words)

    def described(self) -> str:
        words = () if self.vocabulary is None else self.vocabulary.words
        return f"text {self._words} {' '.join(words)}"
