"""The examples run as their first lines say."""

from __future__ import annotations

import importlib.util
import math
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peer_checkpoints import trained, write
from peers import peer
from runs import log

from fastvicreg import load_encoder
from fastvicreg.cli import main
from fastvicreg.config_file import to_json
from fastvicreg.contracts import BuildContext
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.export.detectron2 import settings_of
from fastvicreg.methods import METHODS
from fastvicreg.pretrained import load_trained

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module that others may import."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    tested = {"own_training_loop", "fabric_training_loop", "own_method", "features_from_a_run", "detection", "pairs"}
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_pairs_shows_what_trains_on_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = example("pairs", monkeypatch)
    made.write_captions(tmp_path, train=16, val=4)
    command = made.COMMANDS["captions"].format(folder=tmp_path).splitlines()[0].split()[1:]
    assert main([*command, "--epochs", "1", "--batch-size", "8", "--eval-every", "0"]) == 0
    assert main(["eval", "retrieval", str(tmp_path / "run"), "--recall", "1", "2"]) == 0
    assert "image to text" in capsys.readouterr().out


def test_pairs_brings_esc50_into_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = tmp_path / "ESC-50-master"
    (downloaded / "audio").mkdir(parents=True)
    (downloaded / "meta").mkdir()
    names = {"1-100032-A-0.wav": (1, "dog"), "5-9032-A-0.wav": (5, "dog"), "2-117271-A-0.wav": (2, "sea_waves")}
    rows = [f"{name},{fold},0,{category},False,0,A" for name, (fold, category) in names.items()]
    heading = "filename,fold,target,category,esc10,src_file,take"
    (downloaded / "meta" / "esc50.csv").write_text("\n".join([heading, *rows]) + "\n")
    for name in names:
        (downloaded / "audio" / name).write_bytes(b"sound")
    example("pairs", monkeypatch).esc50(downloaded, tmp_path / "esc")
    found = sorted(str(path.relative_to(tmp_path / "esc")) for path in (tmp_path / "esc").rglob("*.wav"))
    assert found == ["train/dog/1-100032-A-0.wav", "train/sea_waves/2-117271-A-0.wav", "val/dog/5-9032-A-0.wav"]


def test_own_training_loop(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = example("own_training_loop", monkeypatch).main([str(make_folder(train=32, val=0))])
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == 4


@pytest.fixture
def _fabric() -> None:
    pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install lightning-fabric")


@pytest.mark.usefixtures("_fabric")
def test_fabric_training_loop_stopped_anywhere_resumes_bit_for_bit(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loop = str(make_folder(train=32, val=0)), example("fabric_training_loop", monkeypatch).main
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    whole = loop([folder, str(tmp_path / "whole.ckpt")])
    assert len(whole) == 4
    assert len(set(whole)) == 4
    assert all(map(math.isfinite, whole))
    for steps in (1, 2, 3):
        arguments = [folder, str(tmp_path / f"{steps}.ckpt")]
        assert loop(arguments, steps=steps) + loop(arguments) == whole


@pytest.mark.slow
@pytest.mark.usefixtures("_fabric")
def test_fabric_training_loop_in_two_processes_is_the_one_of_one(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = str(make_folder(train=32, val=0)), example("fabric_training_loop", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = module.main([folder, str(tmp_path / "one.ckpt")])
    command = [sys.executable, str(module.__file__), folder, str(tmp_path / "two.ckpt"), "2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = [float(line.split()[-1]) for line in output.splitlines() if line.startswith("step ")]
    assert found == pytest.approx(wanted[1::2], rel=1e-3)  # printed at each epoch's end
    assert (tmp_path / "two.ckpt").is_file()


def test_features_from_a_run(uninterrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = uninterrupted
    images = sorted(map(str, (data / "val").rglob("*.jpg")))[:3]
    features_NF = example("features_from_a_run", monkeypatch).main([str(run), *images])
    assert features_NF.shape == (3, 128)
    assert features_NF.isfinite().all()


def test_own_method(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "alignment", "")  # taken back after the test
    module = example("own_method", monkeypatch)
    run = module.main([str(make_folder()), str(tmp_path / "run")])
    rows = [row for row in log(run) if "total" in row]
    assert len(rows) == 6
    assert all(math.isfinite(row["alignment"]) and row["embedding_std"] > 0 for row in rows)
    trained = load_trained(run)
    assert '"name": "alignment"' in to_json(trained.config)
    encoder: Any = trained.encoder
    method = trained.config.method.build(BuildContext(lambda: encoder))
    with pytest.raises(UserError, match="takes 2 views, not 3"):
        method.embed((torch.zeros(2, 3, 32, 32),) * 3)
    METHODS["alignment"] = ""  # the file has to say again where the method is, as in a process of its own
    monkeypatch.setattr(sys, "argv", [str(module.__file__), "train", "--config", str(run), "--print-config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(module.__file__), run_name="__main__")
    assert ended.value.code == 0
    assert '"width_of_head": 64' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["own_method", "own_training_loop", "features_from_a_run"])
def test_an_example_without_arguments_says_how_it_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "alignment", "")
    file = str(FOLDER / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [file])
    with pytest.raises(SystemExit, match=f"python examples/{name}.py [A-Z]+"):
        runpy.run_path(file, run_name="__main__")


@pytest.mark.peers
def test_detection_learns_from_an_exported_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("torchvision")
    source = write(dict(trained(ResNetConfig("resnet18")).state_dict()), tmp_path / "weights.pth")
    file, module = tmp_path / "backbone.pth", example("detection", monkeypatch)
    assert main(["export", str(source), str(file), "--to", "torchvision"]) == 0
    own, body = load_encoder(file).state_dict(), module.mask_rcnn(str(file)).backbone.body.state_dict()
    assert set(own) == set(body)
    assert all(torch.equal(body[name], value) for name, value in own.items())
    losses = module.main([str(file), "8"])
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_detection_refuses_an_encoder_that_torchvision_has_not(
    uninterrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("detection", monkeypatch)
    _, found = module.made_scene(3)
    assert found["masks"].sum((1, 2)).min() > 200
    assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
    peer("torchvision")
    with pytest.raises(UserError, match="is no ResNet of torchvision"):
        module.mask_rcnn(str(uninterrupted[1]))


def test_detectron2_s_files_hold_the_published_protocols() -> None:
    yaml = pytest.importorskip("yaml")
    voc, coco = (
        yaml.safe_load((FOLDER / "detectron2" / f"{name}.yaml").read_text())
        for name in ("voc07+12_faster_rcnn_c4", "coco_mask_rcnn_fpn_1x")
    )
    solver = voc["SOLVER"]
    assert (solver["BASE_LR"], solver["MAX_ITER"], solver["IMS_PER_BATCH"]) == (0.1, 24000, 16)
    assert (solver["STEPS"], solver["WARMUP_FACTOR"], solver["WARMUP_ITERS"]) == ("(18000, 22000)", 0.333, 1000)
    assert voc["MODEL"]["RPN"]["LOSS_WEIGHT"] == 0.2
    assert (voc["INPUT"]["MIN_SIZE_TEST"], voc["INPUT"]["FORMAT"]) == (800, "RGB")
    assert voc["MODEL"]["ROI_HEADS"] == {"NAME": "Res5ROIHeadsExtraNorm", "NUM_CLASSES": 20}
    solver = coco["SOLVER"]
    assert (solver["BASE_LR"], solver["MAX_ITER"], solver["STEPS"]) == (0.04, 90000, "(60000, 80000)")
    assert (solver["IMS_PER_BATCH"], solver["WARMUP_ITERS"], coco["MODEL"]["MASK_ON"]) == (16, 50, True)
    for config in (voc, coco):
        resnets = config["MODEL"]["RESNETS"]
        assert f"MODEL.RESNETS.DEPTH {resnets['DEPTH']} " in settings_of(ResNetConfig("resnet50"))
        assert (resnets["STRIDE_IN_1X1"], resnets["NORM"]) == (False, "SyncBN")
        assert [round(value / 255, 3) for value in config["MODEL"]["PIXEL_MEAN"]] == [0.485, 0.456, 0.406]
        assert [round(value / 255, 3) for value in config["MODEL"]["PIXEL_STD"]] == [0.229, 0.224, 0.225]
        assert config["TEST"]["PRECISE_BN"]["ENABLED"]
