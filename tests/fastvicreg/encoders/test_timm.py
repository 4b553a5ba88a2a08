"""Networks of timm's: refused in a line where timm is not; where it is, they train, resume and are evaluated."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHOD_CONFIGS
from peers import peer
from runs import require_same_when_resumed, tiny, train
from torch import Tensor, nn

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.config import OptimConfig, TrainConfig
from fastvicreg.encoders import build_encoder
from fastvicreg.encoders.timm.config import TimmConfig
from fastvicreg.encoders.timm.network import TimmEncoder
from fastvicreg.errors import UserError
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.train.batch_norm import replace_norms


def larger(data: Path, **run: Any) -> TrainConfig:
    """``tiny`` on images that these networks have a map left of."""
    config = tiny(data, **run)
    return replace(config, data=replace(config.data, image_size=32))


def test_without_timm_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, make_folder: Any, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm, which does not import \(import of timm halted.*pip install timm"):
        build_encoder(TimmConfig())
    given = ["train", "--data", str(make_folder()), "--preset", "demo", "--arch", "timm", "--model", "convnext_atto"]
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_that_no_network_has_are_refused() -> None:
    with pytest.raises(UserError, match="--made-for -1 is no side"):
        TimmConfig(made_for=-1).check()
    with pytest.raises(UserError, match="--model is empty"):
        TimmConfig(model="").check()


@pytest.mark.peers
def test_names_and_sizes_that_timm_has_not_are_refused() -> None:
    peer("timm")
    with pytest.raises(
        UserError, match=r"--model convnext_tinny: timm .* no such network; near it are convnext_tiny, "
    ):
        build_encoder(TimmConfig(model="convnext_tinny"))
    with pytest.raises(UserError, match="--made-for 64: timm's convnext_atto has no size"):
        build_encoder(TimmConfig(model="convnext_atto", made_for=64))
    mixer: Any = build_encoder(TimmConfig(model="mixer_s32_224"))
    with pytest.raises(UserError, match=r"takes no images of 32 x 32 px .*--made-for"):
        mixer(torch.zeros(2, 3, 32, 32))
    small: Any = build_encoder(TimmConfig(model="convnext_atto"))
    with pytest.raises(UserError, match=r"convnext_atto takes no images of 16 x 16 px"):
        small(torch.zeros(2, 3, 16, 16))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet18"])
def test_features_are_timm_s_and_its_norms_may_be_replaced(name: str) -> None:
    timm = peer("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if name.startswith("vit") else {}))
    torch.manual_seed(0)
    ours: Any = build_encoder(TimmConfig(model=name))
    x_BCHW = torch.randn(4, 3, 64, 64)
    assert torch.equal(ours(x_BCHW), theirs(x_BCHW))
    assert ours.features == theirs(x_BCHW).shape[1]
    assert not any(getattr(module, "inplace", False) for module in ours.modules())
    parameters = [id(param) for group in ours.param_groups() for param in group.params]
    assert sorted(parameters) == sorted(map(id, ours.parameters()))
    replaced = replace_norms(ours, impl="reference")
    torch.testing.assert_close(replaced(x_BCHW), theirs(x_BCHW), rtol=1e-4, atol=1e-4)


class Laid(nn.Module):
    """Gives its features of each position as timm's families do: in the order that ``layout`` names."""

    num_features = 8

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.num_prefix_tokens = layout, 2 if layout == "tokens" else 0
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward_features(self, x_BCHW: Tensor) -> Any:
        x_BCHW = self.conv(x_BCHW)
        return {
            "NCHW": x_BCHW,
            "NHWC": x_BCHW.permute(0, 2, 3, 1),
            "tokens": torch.cat((x_BCHW[:, :, :1, :2].flatten(2), x_BCHW.flatten(2)), 2).mT,
            "several": [x_BCHW],
        }[self.layout]

    def forward_head(self, found: Any) -> Tensor:
        return self.conv.bias.expand(len(found), -1)  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "tokens"])
def test_a_map_is_row_by_row_whatever_the_family_s_order(layout: str) -> None:
    torch.manual_seed(0)
    net, x_BCHW = Laid(layout), torch.randn(2, 3, 12, 12)
    features_BF, map_BNC = TimmEncoder("laid", net, {})(x_BCHW, tokens=True)
    assert torch.equal(map_BNC, net.conv(x_BCHW).flatten(2).mT)
    assert features_BF.shape == (2, 8)


def test_networks_without_a_map_are_refused() -> None:
    with pytest.raises(UserError, match=r"timm's laid gives no map of positions .*\(list\): give another --model"):
        TimmEncoder("laid", Laid("several"), {})(torch.randn(2, 3, 12, 12), tokens=True)
    plain: Any = nn.Linear(3, 3)
    plain.num_features = 3
    assert TimmEncoder("plain", plain, {}).map_features == 0


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "positions"),
    [("convnext_atto", 4), ("mobilenetv3_small_050", 4), ("vit_tiny_patch16_224", 16), ("resnet18", 4)],
)
def test_maps_are_what_timm_pools(name: str, positions: int) -> None:
    peer("timm")
    net: Any = build_encoder(TimmConfig(model=name)).eval()  # type: ignore[attr-defined]
    x_BCHW = torch.randn(2, 3, 64, 64)
    features_BF, map_BNC = net(x_BCHW, tokens=True)
    assert torch.equal(features_BF, net(x_BCHW))
    assert map_BNC.shape == (2, positions, net.map_features)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_run_is_resumed_evaluated_exported_and_loaded(
    name: str, make_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    peer("timm")
    adamw = OptimConfig(optimizer="adamw", base_lr=1e-3, warmup_share=0.1)
    config = replace(larger(make_folder()), encoder=TimmConfig(model=name), optim=adamw)
    require_same_when_resumed(config, tmp_path)
    assert main(["eval", "knn", str(tmp_path / "run"), "--k", "2", "--json", str(tmp_path / "knn.json")]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["rows"]
    exported = tmp_path / "timm.safetensors"
    assert main(["export", str(tmp_path / "run"), str(exported)]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "theirs.safetensors"), "--to", "timm"]) == 0
    said = capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "folder"), "--to", "hf"]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "x.pth"), "--to", "torchvision"]) == 2
    assert "--to torchvision has no timm (no ResNet of images)" in capsys.readouterr().err
    assert "loaded by timm" in said
    assert f'timm.create_model("{name}"' in said
    loaded = fastvicreg.load_encoder(exported)
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x_BCHW), fastvicreg.load_encoder(tmp_path / "run")(x_BCHW))


@pytest.mark.peers
@pytest.mark.parametrize("method", METHOD_CONFIGS)
def test_every_method_trains_it(method: str, make_folder: Any, tmp_path: Path) -> None:
    peer("timm")
    config = larger(make_folder(), epochs=1, steps=2, eval_every=0)
    train(replace(config, encoder=TimmConfig(model="convnext_atto"), method=METHOD_CONFIGS[method]), tmp_path / "run")


@pytest.mark.peers
def test_it_is_the_second_branch_too(make_folder: Any, tmp_path: Path) -> None:
    peer("timm")
    method = VICRegConfig(expander=(16, 16), branch_b=("timm", "model=mobilenetv3_small_050"))
    train(replace(larger(make_folder(), epochs=1, steps=2, eval_every=0), method=method), tmp_path / "run")


@pytest.mark.peers
def test_nothing_is_dropped() -> None:
    timm = peer("timm")
    theirs = timm.create_model("convnext_atto", num_classes=0, drop_rate=0.5, drop_path_rate=0.5)
    ours = TimmEncoder("convnext_atto", theirs, {}).train()
    x_BCHW = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x_BCHW), ours(x_BCHW))
