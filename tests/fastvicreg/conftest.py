"""A run that others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from images import encoded, photo
from runs import tiny, train


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, run) of a whole run."""

    root = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 26), ("val", 9)):
        for number in range(count):
            path = root / "data" / split / f"class{number % 3}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number, 30 + number, 40)))
    train(tiny(root / "data"), root / "run")
    return root / "data", root / "run"
