"""What the engines that read stored datasets are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import write_images

from fastvicreg.pipelines.convert.run import convert_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes and kinds, in class folders."""
    return write_images(tmp_path / "images")


@pytest.fixture
def beton(folder: Path, tmp_path: Path) -> Path:
    """``folder`` as a ``.beton`` with its manifest."""
    target = tmp_path / "images.beton"
    convert_dataset(folder, target)
    return target
