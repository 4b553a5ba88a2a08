"""Converted data that several files of tests damage and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from betons import SMALL
from tars import members, write_shard

from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.manifest import manifest_path


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(train=7, val=0)


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """A .beton of seven JPEGs, with a manifest."""
    target = tmp_path / "seven.beton"
    convert_dataset(folder, target, SMALL, workers=2)
    return target


@pytest.fixture
def bare(file: Path) -> Path:
    """The same without its manifest."""
    manifest_path(file).unlink()
    return file


@pytest.fixture
def ours(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Forty samples in several shards, with a manifest."""
    convert_dataset(make_folder(train=40, val=0), tmp_path / "ours", Settings(format="dali", shard_size=20 << 10))
    return tmp_path / "ours"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Nine samples in two shards without a manifest."""
    write_shard(tmp_path / "foreign", "train-0000", members(5))
    write_shard(tmp_path / "foreign", "train-0001", members(4, 5))
    return tmp_path / "foreign"
