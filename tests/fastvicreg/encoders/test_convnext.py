"""ConvNeXts: timm's names and sizes, a definition written out, both places of the last norm, others' files, a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peer_checkpoints import head, trained, under, write
from refusing import assert_refused
from runs import require_same_when_resumed, tiny
from safetensors import safe_open
from torch import Tensor

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.config import OptimConfig
from fastvicreg.encoders.convnext.config import SIZES, ConvNeXtConfig
from fastvicreg.encoders.convnext.network import ConvNeXt
from fastvicreg.errors import UserError
from fastvicreg.methods.vicregl.config import VICRegLConfig
from fastvicreg.pretrained import load_trained
from fastvicreg.weights.imported import require_same

# timm's convnext_* with num_classes=0.
PARAMETERS = {
    "convnext_tiny": 27_820_128,
    "convnext_small": 49_454_688,
    "convnext_base": 87_566_464,
    "convnext_large": 196_230_336,
    "convnext_xlarge": 348_147_968,
}
SMALL = ConvNeXtConfig("convnext_tiny", width=16)
RELEASED = replace(SMALL, layer_scale=0.0, final_norm="positions")
"""VICRegL's."""


def probe(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", SIZES)
def test_sizes_and_names_are_timm_s(arch: str) -> None:
    with torch.device("meta"):
        network = ConvNeXtConfig(arch).build()
        assert network(torch.empty(2, 3, 96, 96)).shape == (2, network.features)
    assert sum(param.numel() for param in network.parameters()) == PARAMETERS[arch]
    names = {re.sub(r"\.\d+\.", ".N.", re.sub(r"\.\d+\.", ".N.", name)) for name in network.state_dict()}
    block = (
        "gamma",
        *(f"{part}.{of}" for part in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2") for of in ("weight", "bias")),
    )
    outer = {f"{part}.{of}" for part in ("stem.N", "stages.N.downsample.N", "head.norm") for of in ("weight", "bias")}
    assert names == {*outer, *(f"stages.N.blocks.N.{name}" for name in block)}


def normed(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    mean, variance = x_BCHW.mean(1, keepdim=True), x_BCHW.var(1, keepdim=True, correction=0)
    return (x_BCHW - mean) / (variance + 1e-6).sqrt() * weight_C[:, None, None] + bias_C[:, None, None]


def written_out(network: ConvNeXt, x: Tensor) -> Tensor:
    """The last map (B, C, H, W): every layer as a convolution, norms and GELU by hand."""
    state = network.state_dict()

    def of(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    x = normed(F.conv2d(x, *of("stem.0"), stride=4), *of("stem.1"))
    for stage, depth in enumerate(SIZES["convnext_tiny"][1]):
        if stage:
            x = normed(x, *of(f"stages.{stage}.downsample.0"))
            x = F.conv2d(x, *of(f"stages.{stage}.downsample.1"), stride=2)
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            y = normed(F.conv2d(x, *of(f"{name}.conv_dw"), padding=3, groups=x.shape[1]), *of(f"{name}.norm"))
            weight, bias = of(f"{name}.mlp.fc1")
            y = F.conv2d(y, weight[:, :, None, None], bias)
            y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
            weight, bias = of(f"{name}.mlp.fc2")
            y = F.conv2d(y, weight[:, :, None, None], bias)
            x = x + y * state.get(f"{name}.gamma", torch.ones(y.shape[1]))[:, None, None]
    return x


@pytest.mark.parametrize("config", [SMALL, RELEASED], ids=["pooled", "positions"])
def test_features_and_maps_are_those_of_the_definition_written_out(config: ConvNeXtConfig) -> None:
    torch.manual_seed(0)
    network = config.build().double()
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.05 * torch.randn_like(param))  # so that no bias is 0
        x_BCHW = probe().double()
        features_BF, map_BNF = network(x_BCHW, tokens=True)
        last_BCHW = written_out(network, x_BCHW)
        weight, bias = network.state_dict()["head.norm.weight"], network.state_dict()["head.norm.bias"]
        if config.final_norm == "positions":
            last_BCHW = normed(last_BCHW, weight, bias)
            expected = last_BCHW.mean((2, 3))
        else:
            expected = normed(last_BCHW.mean((2, 3), keepdim=True), weight, bias).flatten(1)
    torch.testing.assert_close(features_BF, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(map_BNF, last_BCHW.flatten(2).mT, rtol=1e-9, atol=1e-9)
    assert torch.equal(network(x_BCHW), features_BF)
    assert (network.features, network.map_features) == (128, 128)


def test_biases_norms_and_layer_scales_are_not_decayed() -> None:
    network = SMALL.build()
    groups = network.param_groups()
    plain = {id(param) for group in groups if not group.adapted for param in group.params}
    assert all((id(param) in plain) == (param.ndim == 1) for param in network.parameters())
    assert sum(len(group.params) for group in groups) == len(list(network.parameters()))


def released(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of facebookresearch's ConvNeXt and VICRegL."""
    changed = {}
    for name, value in own.items():
        for pattern, theirs in (
            (r"stem\.", "downsample_layers.0."),
            (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.", r"stages.\1.\2.dwconv."),
            (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.", r"stages.\1.\2.pwconv\3."),
            (r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
            (r"head\.norm\.", "norm."),
        ):
            if re.match(pattern, name):
                changed[re.sub(pattern, theirs, name)] = value
                break
    assert len(changed) == len(own)
    return changed


def files(config: ConvNeXtConfig) -> tuple[torch.nn.Module, dict[str, tuple[Any, str]]]:
    """An encoder, and by layout what a file holds around it with words of what is told."""
    made = trained(config)
    own = dict(made.state_dict())
    vicregl = {
        **under("module.backbone.", released(own)),
        **head("module.projector."),
        **head("module.maps_projector."),
        **head("module.classifier.", "weight"),
    }
    classifier = {**released(own), "head.weight": torch.ones(3, 128), "head.bias": torch.ones(3)}
    return made, {
        "timm": ({**own, **head("head.fc.", "weight", "bias")}, "a classifier of timm; left out: head"),
        "backbone": (released(own), "a bare backbone"),
        "vicregl": ({"epoch": 4, "model": vicregl}, "a VICRegL checkpoint; left out: module.projector"),
        "facebook": ({"model": classifier}, "a network under model; left out: head"),
    }


@pytest.mark.parametrize("layout", ["timm", "backbone", "vicregl", "facebook"])
@pytest.mark.parametrize("config", [SMALL, RELEASED], ids=["pooled", "positions"])
def test_others_files_are_read(config: ConvNeXtConfig, layout: str, tmp_path: Path) -> None:
    made, contents = files(config)
    content, says = contents[layout]
    found = load_trained(write(content, tmp_path / "weights.pth"))
    assert found.config.encoder == config
    assert f"convnext_tiny of width 16 on patches of 4 px{', which norms' * (config is RELEASED)}" in found.notes[0]
    assert says in found.notes[0]
    with torch.no_grad():
        assert torch.equal(found.encoder(probe()), made(probe()))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"stages.3.blocks.3.gamma": torch.ones(128)}, "a ConvNeXt of 3 3 9 4 blocks, which is none of convnext_tiny"),
        ({"stages.0.blocks.0.mlp.grn.weight": torch.ones(64)}, "a ConvNeXt of another kind"),
        ({"stages.0.blocks.0.mlp.fc1.weight": torch.ones(64, 16, 1, 1)}, "a ConvNeXt of another kind"),
        ({"stem.0.weight": torch.ones(16, 4, 4, 4)}, "takes images of 4 channels"),
        ({"stages.1.blocks.0.odd": torch.ones(4)}, "stages.1.blocks.0.odd"),
    ],
)
def test_another_kind_of_network_is_refused(changed: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    path = write({**trained(SMALL).state_dict(), **changed}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=re.escape(says)):
        load_trained(path)


def test_weights_begin_a_run_whatever_its_layer_scales_and_dropped_branches_are() -> None:
    require_same(SMALL, replace(SMALL, layer_scale=0.5, drop_path=0.1), "w")
    with pytest.raises(UserError, match="--layer-scale 1e-06"):
        require_same(SMALL, replace(SMALL, layer_scale=0.0), "w")
    with pytest.raises(UserError, match="--final-norm positions"):
        require_same(RELEASED, replace(RELEASED, final_norm="pooled"), "w")


def test_timm_s_arguments_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(dict(trained(SMALL).state_dict()), tmp_path / "run.safetensors")
    assert main(["export", str(source), str(tmp_path / "timm.safetensors"), "--to", "timm"]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert 'create_model("convnext_tiny",num_classes=0' in told
    assert "dims=[16,32,64,128])" in told
    assert main(["export", str(source), str(tmp_path / "hf"), "--to", "hf"]) == 0
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (content["architecture"], content["num_features"]) == ("convnext_tiny", 128)
    assert content["model_args"] == {"dims": [16, 32, 64, 128]}
    assert (content["pretrained_cfg"]["first_conv"], content["pretrained_cfg"]["classifier"]) == ("stem.0", "head.fc")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (RELEASED, "--to timm has no convnext_tiny of --final-norm positions, only of pooled"),
        (replace(SMALL, patch=2), "--to timm has no convnext_tiny of --patch 2, only of 4"),
    ],
)
def test_a_network_that_timm_has_not_goes_elsewhere(
    config: ConvNeXtConfig, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(dict(trained(config).state_dict()), tmp_path / "run.safetensors")
    assert main(["export", str(source), str(tmp_path / "out.safetensors"), "--to", "timm"]) == 2
    assert says in capsys.readouterr().err
    assert main(["export", str(source), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "fastvicreg" in json.loads((tmp_path / "hf" / "config.json").read_text())


@pytest.mark.slow
def test_vicregl_s_published_network_is_trained_resumed_evaluated_and_loaded(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = uninterrupted
    config = tiny(data)
    config = replace(
        config,
        encoder=replace(RELEASED, drop_path=0.2),
        method=VICRegLConfig(expander=(16, 16), local_projector=(16, 16), local_matches=(4, 1), layer_norm=True),
        data=replace(config.data, image_size=64, recipe="vicregl", small_size=32),
        optim=OptimConfig(optimizer="adamw", base_lr=1e-3, warmup_share=0.1),
    )
    require_same_when_resumed(config, tmp_path)
    assert main(["eval", "knn", str(tmp_path / "run"), "--k", "2"]) == 0
    exported = tmp_path / "encoder.safetensors"
    assert main(["export", str(tmp_path / "run"), str(exported)]) == 0
    with safe_open(exported, "pt") as opened:
        assert "head.norm.weight" in opened.keys()  # noqa: SIM118  # it is no dictionary
    loaded, own = fastvicreg.load_encoder(exported), fastvicreg.load_encoder(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded(probe()), own(probe()))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--arch", "convnext_smal"), "unknown architecture 'convnext_smal'; did you mean 'convnext_small'?"),
        (("--arch", "convnext_tiny", "--patch", "0"), "--patch 0 is too small: give 1 or more"),
        (("--arch", "convnext_tiny", "--layer-scale", "-1"), "--layer-scale -1.0 is no factor to begin with"),
        (("--arch", "convnext_tiny", "--drop-path", "1"), "--drop-path 1.0 is no share"),
        (("--method", "vicregl", "--layer-norm", "--no-batch-norm"), "--layer-norm takes the place of batch norm"),
    ],
)
def test_bad_settings_are_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, line, tmp_path / "run", capsys)


def test_views_that_shrink_to_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"views of 16 x 32 pixels shrink to nothing .* give views of 32 px or more"):
        SMALL.build()(torch.zeros(1, 3, 16, 32))
    assert replace(SMALL, patch=2).build()(torch.zeros(1, 3, 16, 16)).shape == (1, 128)
