"""A run begins with the encoder of another program, another run or another method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from methods import METHOD_CONFIGS
from peer_checkpoints import contents, trained, write
from runs import log, tiny, train
from torch import nn

from fastvicreg.cli import main
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.momentum import MomentumCopy
from fastvicreg.pretrained import load_trained
from fastvicreg.show.metrics import read
from fastvicreg.train.assemble import as_module, build_method
from fastvicreg.train.initial import begin_with_weights
from fastvicreg.train.run_folder import load_preset
from fastvicreg.weights.imported import require_same

SMALL = ResNetConfig(arch="resnet18", width=16, stem="3x3s2")


@pytest.mark.parametrize("name", sorted(METHOD_CONFIGS))
def test_any_method_begins_with_a_file_s_encoder_and_its_copies_too(name: str, tmp_path: Path) -> None:
    made = trained(SMALL)
    content, says = contents(dict(made.state_dict()))["vicreg"]
    path = write(content, tmp_path / "weights.pth")
    config = replace(tiny(tmp_path, init=str(path)), method=METHOD_CONFIGS[name])
    method = build_method(config, {}, "cpu")
    module, fresh = as_module(method), build_method(config, {}, "cpu")
    encoder = next(iter(method.encoders.values()))
    notes = begin_with_weights(config, module, encoder)
    assert says.split(";")[0] in notes[0]
    assert any("its stem was 3x3, the run's is --stem 3x3s2" in note for note in notes)  # the file does not say
    for key, value in made.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)
    copies = [part.network for part in module.modules() if isinstance(part, MomentumCopy)]
    of_encoder = [copy for copy in copies if hasattr(copy, "layer1")]
    assert len(of_encoder) == (name in ("byol", "moco", "dino"))
    for copy in of_encoder:
        assert all(torch.equal(copy.state_dict()[key], value) for key, value in made.state_dict().items())
        assert not any(parameter.requires_grad for parameter in copy.parameters())
    heads = {key for key in module.state_dict() if not key.startswith(("encoder.", "target_encoder."))}
    others = as_module(fresh).state_dict()
    assert heads
    assert all(torch.equal(module.state_dict()[key], others[key]) for key in heads)  # fresh, by the run's seed


def test_a_run_goes_on_from_another_and_its_resume_needs_the_file_no_more(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = uninterrupted
    weights = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), str(weights)]) == 0
    of_run, of_file = (tiny(data, init=str(origin), steps=1) for origin in (run, weights))
    train(of_run, tmp_path / "run")
    train(of_file, tmp_path / "file")
    fresh = [row for row in log(run) if "total" in row]
    first = log(tmp_path / "run")
    assert first == log(tmp_path / "file")
    assert first[0]["total"] != fresh[0]["total"]
    weights.unlink()
    train(replace(of_file, run=replace(of_file.run, steps=2)), tmp_path / "file", resume=True)
    assert len([row for row in read(tmp_path / "file") if "total" in row]) == 2


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (ResNetConfig("resnet18", 64, "3x3"), "give --arch resnet18 --width 64 --stem 3x3"),
        (
            ResNetConfig("resnet34", 16, "3x3"),
            "the run is of resnet18 of width 16 with a 3x3s2 stem: give --arch resnet34",
        ),
        (ResNetConfig("resnet18", 16, "7x7"), "give --arch resnet18 --width 16 --stem 7x7"),
        (ViTConfig("vit_tiny", depth=2, grid=2), "give --arch vit_tiny --patch 16 --grid 2 --depth 2"),
    ],
)
def test_another_architecture_is_refused_with_the_options_for_it(
    made: ResNetConfig | ViTConfig, says: str, tmp_path: Path, make_folder
) -> None:
    path = write(dict(trained(made).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"--init .*weights.pth holds .*{says}"):
        train(tiny(make_folder(), init=str(path)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("made", [SMALL, ViTConfig("vit_tiny", depth=2, grid=2)])
def test_stochastic_depth_is_the_runs_own_beside_another_s_weights(made: ResNetConfig | ViTConfig) -> None:
    require_same(made, replace(made, drop_path=0.1), "weights.pth")
    require_same(replace(made, drop_path=0.1), made, "weights.pth")


def test_the_command_line_begins_with_weights_records_its_preset_and_refuses_what_is_not_there(
    make_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(make_folder())
    path = write(dict(trained(SMALL).state_dict()), tmp_path / "weights.pth")
    options = (
        "--preset demo --width 16 --expander 16 16 --batch-size 8 --steps 1 --epochs 1 --image-size 16 --device cpu"
    )
    arguments = ["train", *options.split(), "--data", data, "--out", str(tmp_path / "run"), "--init", str(path)]
    assert main(arguments) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "from a bare backbone" in told
    assert "heads are fresh" in told
    assert "ended by --steps 1 of the run's 3 steps; all of them: fastvicreg train --resume --steps 0 --out" in told
    assert load_trained(tmp_path / "run").config.run.init == str(path)
    assert load_preset(tmp_path / "run")[0] == "demo"
    arguments[-3:] = [str(tmp_path / "other"), "--init", str(tmp_path / "none.pth")]
    assert main(arguments) == 2
    assert "none.pth" in capsys.readouterr().err


def test_eval_takes_a_file_and_says_what_it_was(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = uninterrupted
    made: nn.Module = load_trained(run).encoder
    content, says = contents(dict(made.state_dict()))["solo-learn"]
    path = write(content, tmp_path / "weights.ckpt")
    assert (
        main(["eval", "knn", str(path), "--arch", "resnet18", "--data", str(data), "--k", "2", "--stem", "3x3s2"]) == 0
    )
    told = capsys.readouterr().out
    assert says.split(";")[0] in told
    assert "nothing was run: argparse.Namespace" in told
    assert main(["eval", "knn", str(path)]) == 2
    assert "does not say which images it was trained on: give --data FOLDER" in capsys.readouterr().err
    assert main(["eval", "knn", str(path), "--arch", "resnet50", "--data", str(data)]) == 2
    assert "--arch resnet50: " in capsys.readouterr().err
    assert main(["eval", "knn", str(run), "--arch", "resnet50"]) == 2
    assert "is of --arch resnet18; leave it out" in capsys.readouterr().err
