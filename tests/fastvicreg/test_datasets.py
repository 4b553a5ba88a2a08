"""The datasets of a config: which splits are taken, what is said of them, and by which rule their pixels are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from images import encoded
from PIL import Image

from fastvicreg import config_file
from fastvicreg.commands.train import options_of
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.decode import decode_sample
from fastvicreg.pipelines.manifest import manifest_path


def config(**data: str) -> TrainConfig:
    return TrainConfig(data=DataConfig(**data))  # type: ignore[arg-type]


def test_what_was_taken_is_said(make_folder: Callable[..., Path]) -> None:
    root = make_folder(train=24, val=6)
    (root / "val").rename(root / "Validation")
    data = open_data(config(data=str(root)))
    assert data.notes == ("train: 24 images, 3 classes; val: 6 images, 3 classes",)
    deep = open_data(config(data=str(root.parent)))
    assert deep.notes == (f"splits found in {root}", *data.notes)
    assert deep.where == str(root / "train")
    assert open_data(config(data=str(root / "train"))).notes == ("train: 24 images, 3 classes",)


def test_validation_data_with_splits_of_its_own_gives_its_validation(make_folder: Callable[..., Path]) -> None:
    root = make_folder(train=24, val=6)
    given = open_data(config(data=str(root / "train"), val_data=str(root)))
    assert given.validation is not None
    assert len(given.validation) == 6


def test_classes_by_number_do_not_contradict_classes_by_name(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder(train=24, val=12)
    for split in ("train", "val"):
        convert_dataset(root / split, tmp_path / f"{split}.beton")
        manifest_path(tmp_path / f"{split}.beton").unlink()  # the names of the classes go with it
    named, numbered = str(root / "train"), str(tmp_path / "train.beton")
    assert open_data(config(data=named, val_data=str(tmp_path / "val.beton"))).validation is not None
    assert open_data(config(data=numbered, val_data=str(root / "val"))).validation is not None


def sixteen(folder: Path, count: int = 3) -> Path:
    """Images of 12 bits in 16."""
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 4096, (40, 40)).astype(np.uint16)
        (folder / f"{number}.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    return folder


def test_images_of_more_than_8_bits_are_named_and_follow_the_rule(tmp_path: Path) -> None:
    folder = str(sixteen(tmp_path / "x"))
    data = open_data(config(data=folder))
    assert "0.png is 16-bit grey: such images are scaled to 8 bits, each from its own smallest" in data.notes[1]
    assert decode_sample(data.train, 0).max() == 255
    data = open_data(config(data=folder, to_rgb="0:65535"))
    assert "from 0:65535 (--to-rgb)" in data.notes[1]
    assert decode_sample(data.train, 0).max() == 16
    with pytest.raises(UserError, match=r"no readable image .*16-bit grey \(--to-rgb refuse\)"):
        open_data(config(data=folder, to_rgb="refuse"))
    with pytest.raises(UserError, match="--to-rgb half: give range"):
        open_data(config(data=folder, to_rgb="half"))


def test_a_config_saved_before_there_was_a_rule_still_loads() -> None:
    content = dataclasses.asdict(TrainConfig())
    del content["data"]["to_rgb"]
    assert config_file.from_mapping(content, "old").data.to_rgb == "range"


def test_an_address_stays_one(tmp_path: Path) -> None:
    given = ["--data", "https://example.org/train.beton", "--val-data", "somewhere", "--out", str(tmp_path)]
    options = options_of(given)
    assert options.settings.data.data == "https://example.org/train.beton"
    assert options.settings.data.val_data == str(Path("somewhere").absolute())
