"""Settings and checkpoints that earlier versions wrote are still read; what no version wrote is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import log, tiny, train
from safetensors.torch import load_file, save_file

from fastvicreg import config_file
from fastvicreg.config import TrainConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.train.checkpoint import listed

VERSION_1: dict[str, Any] = {
    "data": {"data": "/images", "pipeline": "ffcv", "image_size": 32, "recipe": "small"},
    "model": {"arch": "resnet18", "width": 16, "stem": "3x3s2", "expander": [64, 32]},
    "objective": {
        "objective": "vicreg",
        "invariance": 25.0,
        "variance": 10.0,
        "covariance": 1.0,
        "loss_form": "paper",
    },
    "optim": {"optimizer": "lars", "base_lr": 0.5},
    "run": {"epochs": 3, "kernel": ["loss=gram"]},
}


def test_a_config_of_the_first_version_is_read() -> None:
    config = config_file.from_mapping(VERSION_1, "old")
    assert config.encoder == ResNetConfig("resnet18", 16, "3x3s2")
    assert config.method == VICRegConfig((64, 32), variance=10.0, loss_form="paper")
    assert (config.data.pipeline, config.optim.base_lr, config.run.kernel) == ("ffcv", 0.5, ("loss=gram",))
    assert config_file.from_mapping(json.loads(config_file.to_json(config)), "new") == config


def test_views_of_a_run_from_before_they_could_be_joint_stay_separate() -> None:
    assert config_file.from_mapping(VERSION_1, "old").run.views == "separate"
    joint = VERSION_1 | {"run": {"views": "joint"}}
    assert config_file.from_mapping(joint, "old").run.views == "joint"
    assert config_file.from_mapping({"run": {"epochs": 3}}, "by hand").run.views == TrainConfig().run.views


@pytest.mark.parametrize("method", [VICRegConfig(expander=(8, 4)), BYOLConfig(momentum=0.5)])
def test_what_is_written_is_read_back(method: VICRegConfig | BYOLConfig) -> None:
    config = TrainConfig(method=method)
    assert config_file.from_mapping(json.loads(config_file.to_json(config)), "saved") == config


def test_a_run_of_the_first_version_goes_on_as_if_uninterrupted(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    config, run = tiny(data), tmp_path / "run"
    train(tiny(data, steps=4), run)
    as_version_1(run)
    train(config, run, resume=True)
    assert log(run) == log(whole)


def as_version_1(run: Path) -> None:
    """Rename what the first version called otherwise."""
    content = json.loads((run / "config.json").read_text())
    version, encoder, method = (content.pop(name) for name in ("version", "encoder", "method"))
    assert version == 2
    content["model"] = {**encoder, "expander": method.pop("expander")}
    content["objective"] = {"objective": method.pop("name"), **method}
    (run / "config.json").write_text(json.dumps(content))
    for checkpoint in listed(run / "checkpoints"):
        for name in ("model", "optimizer"):
            file = checkpoint / f"{name}.safetensors"
            renamed = {k if k.startswith("encoder.") else f"objective.{k}": v for k, v in load_file(file).items()}
            assert any(key.startswith("objective.expander.") for key in renamed)
            save_file(renamed, file)
        state = checkpoint / "state.json"
        recorded = {k: v for k, v in json.loads(state.read_text()).items() if k not in ("digest", "digests")}
        state.write_text(json.dumps(recorded | {"format": 1}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"version": 3}, "here is a config of version 3; this fastvicreg reads up to 2"),
        ({"version": 2, "model": {}}, "here: unknown section 'model'. Choose from: data, pair, encoder, method"),
        ({"version": 2, "run": 3}, "here: 'run' is no section of settings, but 3"),
        ({"run": {"epohcs": 3}}, "here: unknown field of 'run' 'epohcs'; did you mean 'epochs'?"),
        ({"run": {"epochs": "three"}}, "here: epochs cannot be 'three' (expected int, got str)"),
        ({"run": {"epochs": True}}, "here: epochs cannot be True"),
        ({"data": {"shuffle": "none"}}, "here: shuffle cannot be 'none'"),
        ({"run": {"kernel": ["loss=gram", 3]}}, "here: kernel cannot be ['loss=gram', 3]"),
        ({"method": {"name": "boyl"}}, "here: unknown method 'boyl'; did you mean 'byol'?"),
        ({"method": {"name": "byol", "expander": [2]}}, "here: unknown field of 'method' 'expander'"),
        ({"encoder": {"arch": "resnet19"}}, "here: unknown architecture 'resnet19'"),
    ],
)
def test_what_no_config_has_is_refused_by_name(content: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        config_file.from_mapping(content, "here")
    assert str(refused.value).startswith(says)
