"""Captions become numbers of words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.pairs.vocabulary import END, FILE, PAD, SPECIAL, START, UNKNOWN, Vocabulary, split


def test_words_and_marks() -> None:
    assert split("A Dog's ball, à Zürich!") == ["a", "dog's", "ball", ",", "à", "zürich", "!"]
    assert split("snow_white 3.5") == ["snow", "white", "3", ".", "5"]


def test_the_most_frequent_words_have_numbers() -> None:
    found = Vocabulary.of(["a cat", "a dog", "a cat sits"], SPECIAL + 3)
    assert found.words == ("a", "cat", "dog")  # of words as frequent the first by the alphabet
    assert found.tokens("A cat SITS", 4).tolist() == [START, SPECIAL, SPECIAL + 1, UNKNOWN, END, PAD]
    assert found.tokens("a a a a a", 2).tolist() == [START, SPECIAL, SPECIAL, END]


def text(words: int = 8) -> Text:
    made = Text(PairConfig(words=words))
    made.vocabulary = Vocabulary(["one", "two", "three"])
    return made


def test_each_line_is_a_caption_and_training_draws_one() -> None:
    encoded = b"\xef\xbb\xbfone\n\n two \nthree\n"
    first, second, third = (SPECIAL + at for at in range(3))
    assert [view[1] for view in text().views(encoded)] == [first, second, third]
    assert text().view(encoded, None)[1] == first
    drawn = {int(text().view(encoded, np.uint64(2**63 + key))[1]) for key in range(40)}
    assert drawn == {first, second, third}


@pytest.mark.parametrize(
    ("encoded", "told"),
    [
        (b" \n", "an empty caption"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (bytes(9), "no text"),
        (b"a" * (2**20 + 1), "are no caption"),
    ],
)
def test_what_is_no_caption(encoded: bytes, told: str) -> None:
    with pytest.raises(DecodeError, match=told):
        text().view(encoded, None)


def test_kept_with_the_run(tmp_path: Path) -> None:
    words = Vocabulary(["one", "zwölf"])
    assert words.differing(tmp_path) == ""
    (tmp_path / FILE).write_text(words.to_json(), "utf-8")
    assert Vocabulary.load(tmp_path).words == words.words
    assert words.differing(tmp_path) == ""
    assert "other words" in Vocabulary(["one"]).differing(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '["a"'])
def test_a_damaged_vocabulary(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Vocabulary.load(tmp_path)
