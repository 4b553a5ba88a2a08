"""Folders of images for the tests, and what happens to GPU tests without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from images import encoded, photo


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder(train=24, val=12, classes=3)``: class folders of JPEGs of various sizes; 0 leaves a split out."""

    def make(*, name: str = "data", train: int = 24, val: int = 12, classes: int = 3, side: int = 40) -> Path:
        root = tmp_path / name
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                folder = root / split / f"class{number % classes}" if val else root / f"class{number % classes}"
                folder.mkdir(parents=True, exist_ok=True)
                width, height = side + number % 7, side + number % 5
                image = photo(number + 1000 * (split == "val"), width, height)
                (folder / f"{number:03d}.jpg").write_bytes(encoded(image, quality=90))
        return root

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are reported as not run where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
