"""An encoder leaves a run as a file and comes back in one call, with the pixels that evaluation gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from methods import encoder as make_encoder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import evaluation_resize, extract
from fastvicreg.pipelines import open_source
from fastvicreg.pretrained import Preprocessing


def test_a_run_and_its_export_give_the_same_ready_encoder(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = uninterrupted
    file = tmp_path / "new" / "encoder.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    assert "fastvicreg.load_encoder" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["encoder.safetensors"]
    loaded = [fastvicreg.load_encoder(path) for path in (run, file)]
    for encoder in loaded:
        assert not encoder.training
        assert encoder.features == 128
    source = open_source(data / "val")
    expected = extract(loaded[0], source, image_size=16).features_NF
    images = [Image.open(data / "val" / source.name(index)) for index in range(len(source))]
    for encoder in loaded:
        with torch.no_grad():
            found = encoder(torch.stack([encoder.preprocess(image) for image in images]))  # type: ignore[operator]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("image_size", "shape"), [(16, (40, 33)), (16, (33, 40)), (128, (300, 211)), (128, (90, 200))])
def test_preprocessing_has_evaluation_s_pixels(image_size: int, shape: tuple[int, int], tmp_path: Path) -> None:
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    seen: list[torch.Tensor] = []

    class Seeing(torch.nn.Module):
        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            seen.append(x_BCHW)
            return x_BCHW.mean((2, 3))

    extract(Seeing(), open_source(tmp_path), image_size=image_size)
    own = Preprocessing(evaluation_resize(image_size), image_size)(Image.open(tmp_path / "0.png"))
    torch.testing.assert_close(own, seen[0][0].contiguous(), rtol=0, atol=1e-5)


def test_the_file_has_torchvision_s_names_and_says_what_it_is(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = uninterrupted
    file = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), str(file), "--checkpoint", "9"]) == 0
    assert set(load_file(file)) == set(make_encoder().state_dict())
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "layer4.1.conv2.weight"} <= set(load_file(file))
    with safe_open(file, "pt") as opened:
        described = json.loads(opened.metadata()["fastvicreg"])
    assert described["encoder"] == {"arch": "resnet18", "width": 16, "stem": "3x3s2", "drop_path": 0.0}
    assert (described["image_size"], described["method"], described["checkpoint"]) == (16, "vicreg", "step-00000009")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{run} {taken}", "exists already: give another FILE"),
        ("{run} {new} --to safetensor", "unknown target 'safetensor'; did you mean 'safetensors'?"),
        ("{taken} {new}", "is no safetensors file, or a damaged one"),
        ("{run}/checkpoints/step-00000009/model.safetensors {new}", "is a part of a run: give the run's folder"),
        ("{run} {new} --checkpoint 4000", "--checkpoint 4000: "),
        ("{run}", "give fastvicreg export RUN FILE"),
        ("{run} /proc/none/x.safetensors", "cannot write /proc/none/x.safetensors"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    line = arguments.format(run=uninterrupted[1], taken=taken, new=tmp_path / "new.safetensors")
    assert main(["export", *line.split()]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_bytes() == b"mine"


def test_files_that_are_no_export_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    with pytest.raises(UserError, match="holds no encoder that is known here, only weight:"):
        fastvicreg.load_encoder(other)
    other.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="no safetensors file, or a damaged one"):
        fastvicreg.load_encoder(other)
    with pytest.raises(UserError, match="there is no run"):
        fastvicreg.load_encoder(tmp_path / "none")


def test_a_damaged_newest_checkpoint_is_told_of_by_all_that_take_an_older_one(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[1], run)
    newest = run / "checkpoints" / "step-00000009"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"step-00000009 is damaged .*: step-00000008 was loaded"):
        fastvicreg.load_encoder(run)
    assert main(["eval", "knn", str(run), "--k", "2"]) == 0
    assert "step-00000009 is damaged" in (told := capsys.readouterr().out)
    assert "what was evaluated is older" in told
    assert main(["export", str(run), str(tmp_path / "x.safetensors")]) == 0
    assert "what was exported is older" in capsys.readouterr().out
