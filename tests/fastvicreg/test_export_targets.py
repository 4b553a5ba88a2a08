"""Every export target, read back by what reads it, and the card that goes with it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_checkpoints import trained, write
from safetensors import safe_open

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.export import TARGETS, detectron2, hf, writing
from fastvicreg.pretrained import TrainedEncoder, load_trained
from fastvicreg.train.run_folder import save_preset

ENDINGS = {"torchvision": "pth", "timm": "safetensors", "hf": "d", "detectron2": "pkl", "onnx": "onnx"}
PUBLISHED = ResNetConfig(arch="resnet18")
VIT = ViTConfig(arch="vit_tiny", grid=2)


def file_of(config: ResNetConfig | ViTConfig, folder: Path) -> tuple[torch.nn.Module, Path]:
    """An encoder, and its weights as anyone would save them."""
    made = trained(config)
    return made, write(dict(made.state_dict()), folder / "weights.pth")


def exported(source: Path, to: str, folder: Path) -> Path:
    file = folder / f"out.{ENDINGS.get(to, to)}"
    assert main(["export", str(source), str(file), "--to", to]) == 0
    return file


def probe(side: int, batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def close(found: Any, made: torch.nn.Module, side: int, tolerance: float = 1e-6) -> None:
    with torch.no_grad():
        expected = made(probe(side))
        torch.testing.assert_close(
            torch.as_tensor(found), expected, rtol=0, atol=tolerance * float(expected.abs().max())
        )


def of_run(run: Path, to: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The export of a run that has a preset, and its card where the file holds one."""
    copy = folder / "run"
    shutil.copytree(run, copy)
    save_preset(copy, "cifar10", ["no blur"])
    return exported(copy, to, folder), {}


def test_the_card_of_a_run_says_how_it_was_trained(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    file, _ = of_run(uninterrupted[1], "safetensors", tmp_path)
    with safe_open(file, "pt") as opened:
        card = json.loads(opened.metadata()["fastvicreg"])
    assert (card["method"], card["preset"], card["divergences"]) == ("vicreg", "cifar10", ["no blur"])
    assert (card["data"], card["epochs"], card["batch_size"], card["step"], card["recipe"]) == (
        "data",
        3,
        8,
        9,
        "small",
    )
    assert (card["resize"], card["crop"], card["mean"]) == (16, 16, [0.485, 0.456, 0.406])
    assert card["method_settings"]["variance"] == 25.0
    assert 0 <= card["metrics"]["knn"] <= 100
    assert card["metrics"]["loss"] > 0
    again = tmp_path / "again.safetensors"
    assert main(["export", str(file), str(again)]) == 0  # what is known of training goes along
    with safe_open(again, "pt") as opened:
        kept = json.loads(opened.metadata()["fastvicreg"])
    assert {name: kept[name] for name in ("method", "preset", "metrics", "step")} == {
        name: card[name] for name in ("method", "preset", "metrics", "step")
    }


def test_hf_is_a_folder_whose_readme_is_the_card(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = of_run(uninterrupted[1], "hf", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    close(fastvicreg.load_encoder(folder)(probe(16)).detach(), fastvicreg.load_encoder(uninterrupted[1]), 16)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: fastvicreg\n")
    for words in ("| preset | cifar10 |", "- no blur", "| method | vicreg |", "| knn |", "0.485 0.456 0.406"):
        assert words in text


@pytest.mark.parametrize("config", [PUBLISHED, VIT], ids=lambda config: config.arch)
def test_hf_has_timm_s_config_where_timm_has_the_network(config: Any, tmp_path: Path) -> None:
    _, source = file_of(config, tmp_path)
    content = json.loads((exported(source, "hf", tmp_path) / "config.json").read_text())
    vit = isinstance(config, ViTConfig)
    assert content["architecture"] == ("vit_tiny_patch16_224" if vit else "resnet18")
    assert content.get("model_args") == ({"img_size": 32} if vit else None)
    assert content["pretrained_cfg"]["input_size"] == ([3, 32, 32] if vit else [3, 224, 224])
    assert content["pretrained_cfg"]["crop_pct"] == (1.0 if vit else 0.875)
    assert content["num_features"] == (192 if vit else 512)


def of_another_size(folder: Path) -> tuple[torch.nn.Module, TrainedEncoder]:
    """A vision transformer with positions for 32 px that was trained on 48."""
    made, source = file_of(VIT, folder)
    found = load_trained(source)
    return made, replace(found, config=replace(found.config, data=replace(found.config.data, image_size=48)))


def test_a_vision_transformer_trained_on_another_size_than_its_positions_leaves_for_timm_at_theirs(
    tmp_path: Path,
) -> None:
    _, found = of_another_size(tmp_path)
    hf.write(found, tmp_path / "hf")
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert content["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert content["model_args"] == {"img_size": 32}
    assert content["fastvicreg"]["image_size"] == 48


@pytest.mark.slow
def test_onnx_resamples_positions_as_we_do(tmp_path: Path) -> None:
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install 'fastvicreg[export]'"
    )
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'fastvicreg[export]'")
    from fastvicreg.export import onnx

    made, found = of_another_size(tmp_path)
    onnx.write(found, tmp_path / "out.onnx")
    session = runtime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": probe(48).numpy()})
    close(features, made, 48, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ResNetConfig("resnet18", 16, "3x3s2"), VIT], ids=lambda config: config.arch)
def test_onnx_runs_on_any_batch(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install 'fastvicreg[export]'"
    )
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'fastvicreg[export]'")
    import onnx

    made, source = file_of(config, tmp_path)
    file = tmp_path / "out.onnx"
    stem = ["--stem", config.stem] if isinstance(config, ResNetConfig) else []
    assert main(["export", str(source), str(file), "--to", "onnx", *stem]) == 0
    assert "on batches of 1 and 3" in capsys.readouterr().out
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": probe(32).numpy()})
    close(found, made, 32, 1e-4)
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    card = {item.key: item.value for item in onnx.load(file).metadata_props}["fastvicreg"]
    assert json.loads(card)["encoder"]["arch"] == config.arch


def test_torchscript_runs_on_any_batch_and_holds_its_card(tmp_path: Path) -> None:
    made, source = file_of(PUBLISHED, tmp_path)
    file, held = exported(source, "torchscript", tmp_path), {"fastvicreg": ""}
    close(torch.jit.load(str(file), _extra_files=held)(probe(64)).detach(), made, 64)
    assert json.loads(held["fastvicreg"])["encoder"]["arch"] == "resnet18"


def test_torchvision_s_file_loads_by_weights_only_and_has_its_card_beside(tmp_path: Path) -> None:
    made, source = file_of(PUBLISHED, tmp_path)
    file = exported(source, "torchvision", tmp_path)
    read = torch.load(file, weights_only=True)
    assert {name: value.shape for name, value in read.items()} == {n: v.shape for n, v in made.state_dict().items()}
    assert all(torch.equal(read[name], value) for name, value in made.state_dict().items())
    card = (tmp_path / "out.pth.md").read_text()
    assert "torchvision.models.resnet18()" in card
    assert "a bare backbone, as VICReg, VICRegL and Barlow Twins release theirs" in card
    assert "| method | not recorded |" in card


def test_detectron2_s_names_and_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, source = file_of(ResNetConfig("resnet50", 16), tmp_path)
    file = exported(source, "detectron2", tmp_path)
    content = pickle.loads(file.read_bytes())
    assert (content["__author__"], content["matching_heuristics"]) == ("fastvicreg", True)
    model, own = content["model"], made.state_dict()
    expected = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res4.5.conv3.norm.weight": "layer3.5.bn3.weight",
        "res5.2.conv2.weight": "layer4.2.conv2.weight",
    }
    for theirs, ours in expected.items():
        np.testing.assert_array_equal(model[theirs], own[ours].numpy())
    assert len(model) == sum(not name.endswith("num_batches_tracked") for name in own)
    assert all(detectron2.renamed(detectron2.renamed(n), detectron2.RESTORED) == n for n in own)
    options = "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 16 "
    assert options + "MODEL.RESNETS.RES2_OUT_CHANNELS 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        (
            ResNetConfig("resnet18", 16),
            "out.pth --to torchvision",
            "--to torchvision has no resnet18 (width 16, stem 7x7)",
        ),
        (
            ResNetConfig("resnet18", 64, "3x3"),
            "out.safetensors --to timm",
            "--to timm has no resnet18 (width 64, stem 3x",
        ),
        (VIT, "out.pth --to torchvision", "--to torchvision has no vit_tiny (no ResNet of images)"),
        (ViTConfig("vit_tiny", depth=2), "out.safetensors --to timm", "has no vit_tiny of patch 16 and depth 2"),
        (VIT, "out.pkl --to detectron2", "--to detectron2 has no vit_tiny (no ResNet of images)"),
        (
            ResNetConfig("resnet18", 16, "3x3"),
            "out.pkl --to detectron2",
            "--to detectron2 has no resnet18 (a 3x3 stem)",
        ),
        (PUBLISHED, "out.pth --to detectron2", "detectron2 reads this form from files ending in .pkl; give FILE.pkl"),
        (PUBLISHED, "out.pth --to timm", "timm tells a file by its ending; give FILE.safetensors"),
        (PUBLISHED, "out.onnx", "out.onnx would hold safetensors under another's ending: give --to onnx, or FILE.saf"),
        (PUBLISHED, "out.pth", "give --to torchvision, or FILE.safetensors"),
        (PUBLISHED, "out.pth --to torchvision --arch resnet50", "--arch resnet50: "),
        (PUBLISHED, "taken.pth --to torchvision", "taken.pth.md exists already, where the card belongs"),
    ],
)
def test_what_a_target_has_not_is_one_line_and_nothing_is_written(
    config: Any, arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = file_of(config, tmp_path)
    (tmp_path / "taken.pth.md").write_text("mine")
    name, *options = arguments.split()
    assert main(["export", str(source), str(tmp_path / name), *options]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.pth.md", "weights.pth"]


@pytest.mark.parametrize("to", sorted(set(TARGETS) - {"onnx"}))
def test_a_target_that_reads_back_otherwise_is_not_written(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = file_of(PUBLISHED, tmp_path)
    calls = iter(range(100))

    def drifting(module: Any, x_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(x_BCHW) * (1 + 1e-3 * next(calls))

    for part in {"safetensors", to}:
        monkeypatch.setattr(f"fastvicreg.export.{part}.features", drifting)
    file = tmp_path / f"out.{ENDINGS.get(to, to)}"
    assert main(["export", str(source), str(file), "--to", to]) == 2
    assert re.search(r"gives other features, by .*; nothing was written", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_a_library_that_is_missing_is_named_with_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    _, source = file_of(ResNetConfig("resnet18", 16), tmp_path)
    assert main(["export", str(source), str(tmp_path / "out.onnx"), "--to", "onnx"]) == 2
    assert "--to onnx needs onnx (" in (told := capsys.readouterr().err)
    assert "pip install 'fastvicreg[export]'" in told


def test_files_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    made = trained(ResNetConfig("resnet18", 16, "3x3s2"))
    described = {"version": 1, "encoder": {"arch": "resnet18", "width": 16, "stem": "3x3s2"}, "image_size": 16}
    described |= {"resize": 16, "mean": [0.485], "std": [0.229], "method": "vicreg", "epochs": 3, "checkpoint": "x"}
    from safetensors.torch import save_file

    save_file(
        dict(made.state_dict()), tmp_path / "old.safetensors", {"format": "pt", "fastvicreg": json.dumps(described)}
    )
    close(fastvicreg.load_encoder(tmp_path / "old.safetensors")(probe(16)).detach(), made, 16)


def test_probe_has_the_run_s_size_and_is_the_same_every_time(tmp_path: Path) -> None:
    _, source = file_of(VIT, tmp_path)
    found = load_trained(source)
    assert writing.noise_input(found).shape == (2, 3, 32, 32)
    assert torch.equal(writing.noise_input(found), writing.noise_input(found))
