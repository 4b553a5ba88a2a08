"""Samples without a label, and numbers that are no classes, are counted and named; the others keep their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from tars import members, write_tar

from fastvicreg.cli import main
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.classes import numbered, unlabelled_in_words

NONE = "are no class numbers, which begin at 0 and are less than the images (3)"


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        ([0, 2, 1], 3, ""),
        ([0, 2, -1, 1, -1], 3, "2 of the 5 images have no label"),
        ([-1, -1], 0, ""),
        ([-5, -4, 0], 0, f"no labels: -5 to 0 {NONE}"),
        ([7, 0, 1], 0, f"no labels: 0 to 7 {NONE}"),
    ],
)
def test_numbers_are_classes_where_they_can_be(labels: list[int], classes: int, says: str) -> None:
    label_N = np.array(labels)
    assert numbered(label_N) == tuple(map(str, range(classes)))
    assert unlabelled_in_words(label_N, numbered(label_N)) == says


def test_an_unlabelled_sample_takes_no_class_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    write_tar(tmp_path / "s/x.tar", [*members(6), ("99.jpg", encoded(photo(99, 40, 30)))])
    shards, beton = tmp_path / "s", tmp_path / "x.beton"
    assert main(["convert", str(shards), str(beton)]) == 0
    for path in (shards, beton):
        source = open_source(path)
        assert source.classes == ("0", "1", "2")
        assert [source.label(index) for index in range(7)] == [0, 1, 2, 0, 1, 2, -1]
        assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.count("1 of the 7 images has no label") == 3
