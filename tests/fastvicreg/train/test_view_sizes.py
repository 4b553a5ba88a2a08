"""Whole runs on views of two sizes, and on views that grow from epoch to epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from runs import log, tiny, train
from torch import Tensor

from fastvicreg.cli import main
from fastvicreg.config import DataConfig
from fastvicreg.contracts import BuildContext
from fastvicreg.errors import UserError
from fastvicreg.methods import METHODS
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import Embeddings, VICReg
from fastvicreg.show.metrics import read

SMALL = ["--device", "cpu", "--epochs", "1", "--batch-size", "8", "--eval-every", "0", "--image-size", "32"]
SEEN: list[list[tuple[int, ...]]] = []


@dataclass(frozen=True)
class ManyConfig(VICRegConfig):
    name: ClassVar[str] = "many"

    def build(self, context: BuildContext) -> Many:
        return Many(context.build_encoder(), self)


class Many(VICReg):
    """VICReg that tells what it is given."""

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        SEEN.append([tuple(view.shape) for view in views])
        return super().embed(views)


def test_eight_views_of_two_sizes_reach_the_method(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "many", f"{__name__}:ManyConfig")
    SEEN.clear()
    arguments = ["train", "--data", str(make_folder(train=20, val=0)), "--out", str(tmp_path / "run"), *SMALL]
    arguments += ["--method", "many", "--expander", "16", "16", "--arch", "resnet18", "--width", "16"]
    assert main([*arguments, "--recipe", "multicrop", "--small-size", "16", "--optimizer", "sgd"]) == 0
    assert SEEN == [[(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)] * 6] * 2
    assert len(read(tmp_path / "run")) == 2


def test_a_method_of_two_views_refuses_eight_in_one_line(
    make_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(make_folder(train=20, val=0)), "--out", str(tmp_path / "run"), *SMALL]
    assert main([*arguments, "--recipe", "multicrop", "--small-size", "16", "--method", "byol"]) == 2
    assert not (tmp_path / "run").exists()
    assert (
        "--recipe multicrop cuts 8 views, and --method byol takes two: give a recipe of two, such as official."
        in capsys.readouterr().err.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (("--image-size", "32"), "--recipe multicrop cuts small views of 96 px, above the 32 px of its large ones"),
        (("--image-size", "224", "--resolution", "64:224"), "above the 64 px of its large ones: give --small-size 24."),
        (("--image-size", "64", "--small-size", "65"), "small views of 65 px, above the 64 px"),
    ],
)
def test_small_views_are_no_larger_than_the_large_ones(
    sizes: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As --recipe multicrop beside a preset of 32 px images gives them.
    arguments = ["--preset", "demo", "--method", "swav", "--recipe", "multicrop", *sizes]
    assert main(["train", *arguments, "--freeze-prototypes", "0", "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("sizes", ["32:64", "16:32"])
def test_views_that_grow_by_epoch_train_and_resume_bit_for_bit(make_folder, tmp_path: Path, sizes: str) -> None:
    config = tiny(make_folder(train=20, val=0), epochs=2, eval_every=0)
    config = replace(config, data=replace(config.data, resolution=sizes))
    train(config, tmp_path / "whole")
    train(replace(config, run=replace(config.run, steps=3)), tmp_path / "part")
    train(config, tmp_path / "part", resume=True)
    assert log(tmp_path / "part") == log(tmp_path / "whole")
    fixed = replace(config, data=replace(config.data, resolution="", image_size=int(sizes[:2])))
    train(fixed, tmp_path / "fixed")
    assert log(tmp_path / "fixed")[:2] == log(tmp_path / "whole")[:2]
    assert log(tmp_path / "fixed")[2] != log(tmp_path / "whole")[2]


def test_sizes_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    for text in ("100", "128:", "128:200", "0:32", "big"):
        with pytest.raises(UserError, match=f"--resolution {text}: give multiples of 32, such as 128:192:224"):
            DataConfig(resolution=text).check()
    for text in ("12", "16:", "0:32"):
        with pytest.raises(UserError, match=f"--resolution {text}: give multiples of 8, such as 16:24:32"):
            DataConfig(resolution=text, image_size=32).check()
    with pytest.raises(UserError, match="--small-size 4 is too small"):
        DataConfig(small_size=4).check()
    config = tiny(tmp_path, epochs=2)
    with pytest.raises(UserError, match="--resolution 32:64:96 has 3 sizes for --epochs 2"):
        replace(config, data=replace(config.data, resolution="32:64:96")).check()
