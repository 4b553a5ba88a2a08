"""Few labelled images in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from images import encoded, photo


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 24), ("val", 12)):
        for number in range(count):
            path = root / split / f"class{number % 3}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(number + 100 * (split == "val"), 36, 34), "PNG"))
    return root
