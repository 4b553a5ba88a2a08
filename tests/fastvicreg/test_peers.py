"""torchvision and timm themselves: their weights come in, ours go out; run by `make test-peers`.

Their builds go with certain builds of torch: beside a CPU-only torch they may not import, and then these are skipped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_checkpoints import head, trained, under, write
from peers import peer
from torch import nn

from fastvicreg import load_encoder
from fastvicreg.cli import main
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.export import hf
from fastvicreg.pretrained import load_trained

KEYS = Path(__file__).parents[1] / "support" / "peer_keys.json"
"""Names and shapes of torchvision's and timm's networks without classifier, for where they do not import."""


def probe(side: int = 64) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def close(found: nn.Module, expected: nn.Module, side: int = 64) -> None:
    expected_BF = expected.eval()(probe(side))
    torch.testing.assert_close(
        found.eval()(probe(side)), expected_BF, rtol=0, atol=1e-6 * float(expected_BF.abs().max())
    )


def shaken(model: nn.Module) -> nn.Module:
    """Its norms and biases are not their initial ones."""
    torch.manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:  # norms and biases: more would let deep networks overflow
            value.add_(torch.rand_like(value) * 0.1)
    return model.eval()


def keys_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in sorted(model.state_dict().items())}


def headless(torchvision: Any, name: str) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None)
    model.fc = nn.Identity()
    return model


VITS = {
    "vit_tiny_patch16_224": ViTConfig("vit_tiny"),
    "vit_small_patch8_224": ViTConfig("vit_small", patch=8, grid=28),
    "vit_small_patch16_224": ViTConfig("vit_small"),
    "vit_base_patch32_224": ViTConfig("vit_base", patch=32, grid=7),
}
OF_TIMM = {**VITS, "convnext_tiny": ConvNeXtConfig("convnext_tiny"), "convnext_base": ConvNeXtConfig("convnext_base")}
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny_patch16_224"])
def test_our_names_and_shapes_are_the_committed_ones_of_the_peers(name: str) -> None:
    own = VITS.get(name) or ResNetConfig(name)
    with torch.device("meta"):
        encoder = own.build()
    assert isinstance(encoder, nn.Module)
    assert keys_of(encoder) == json.loads(KEYS.read_text())[name]


@pytest.mark.peers
def test_the_committed_names_are_those_of_the_peers_here() -> None:
    torchvision, timm = peer("torchvision"), peer("timm")
    committed = json.loads(KEYS.read_text())
    with torch.device("meta"):
        live = {name: keys_of(headless(torchvision, name)) for name in ("resnet18", "resnet50")}
        live["vit_tiny_patch16_224"] = keys_of(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    assert committed == live


@pytest.mark.peers
@pytest.mark.parametrize("name", RESNETS)
def test_torchvision_loads_our_export_and_we_load_its_weights(name: str, tmp_path: Path, capsys: Any) -> None:
    torchvision = peer("torchvision")
    made = trained(ResNetConfig(name))
    source, file = write(dict(made.state_dict()), tmp_path / "weights.pth"), tmp_path / "out.pth"
    assert main(["export", str(source), str(file), "--to", "torchvision"]) == 0
    assert f"loaded by torchvision {torchvision.__version__}" in capsys.readouterr().out
    model = headless(torchvision, name)
    model.load_state_dict(torch.load(file, weights_only=True))
    close(model, made)
    theirs = shaken(torchvision.models.get_model(name, weights=None))
    read = load_encoder(write(dict(theirs.state_dict()), tmp_path / "theirs.pth"))
    theirs.fc = nn.Identity()  # type: ignore[assignment]
    close(read, theirs)


@pytest.mark.peers
@pytest.mark.parametrize("name", [*OF_TIMM, "resnet18", "resnet50"])
def test_timm_loads_our_exports_and_we_load_its_weights(name: str, tmp_path: Path, capsys: Any) -> None:
    timm = peer("timm")
    config = OF_TIMM.get(name) or ResNetConfig(name)
    made = trained(config)
    source, file, folder = (
        write(dict(made.state_dict()), tmp_path / "w.pth"),
        tmp_path / "o.safetensors",
        tmp_path / "hf",
    )
    assert main(["export", str(source), str(file), "--to", "timm"]) == 0
    assert main(["export", str(source), str(folder), "--to", "hf"]) == 0
    assert capsys.readouterr().out.count(f"loaded by timm {timm.__version__}") == 2
    close(timm.create_model(name, num_classes=0, checkpoint_path=str(file)), made, 224)
    hub = timm.create_model(f"local-dir:{folder}", pretrained=True)
    close(hub, made, 224)
    settings = timm.data.resolve_model_data_config(hub)
    assert (tuple(settings["input_size"]), settings["interpolation"], settings["crop_pct"]) == (
        (3, 224, 224),
        "bicubic",
        0.875,
    )
    theirs: Any = shaken(timm.create_model(name, num_classes=10))
    found = load_trained(write(dict(theirs.state_dict()), tmp_path / "theirs.pth"))
    assert found.config.encoder == config
    theirs.reset_classifier(0)
    close(found.encoder, theirs, 224)


@pytest.mark.peers
def test_a_vision_transformer_of_another_image_size_goes_to_timm(tmp_path: Path) -> None:
    timm = peer("timm")
    made = trained(ViTConfig("vit_tiny", patch=16, grid=4))
    source, file = write(dict(made.state_dict()), tmp_path / "weights.pth"), tmp_path / "out.safetensors"
    assert main(["export", str(source), str(file), "--to", "timm"]) == 0
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, checkpoint_path=str(file))
    close(model, made)
    found = load_trained(source)
    larger = replace(found, config=replace(found.config, data=replace(found.config.data, image_size=96)))
    assert "loaded by timm" in hf.write(larger, tmp_path / "hf").proof


@pytest.mark.peers
def test_a_narrow_convnext_without_layer_scales_goes_to_timm(tmp_path: Path) -> None:
    timm = peer("timm")
    made = trained(ConvNeXtConfig("convnext_tiny", width=16))
    source, file = write(dict(made.state_dict()), tmp_path / "weights.pth"), tmp_path / "out.safetensors"
    assert main(["export", str(source), str(file), "--to", "timm"]) == 0
    dims = [16, 32, 64, 128]
    close(timm.create_model("convnext_tiny", num_classes=0, checkpoint_path=str(file), dims=dims), made)
    found = load_trained(source)
    bare = ConvNeXtConfig("convnext_tiny", width=16, layer_scale=0.0)
    without = replace(found, encoder=trained(bare), config=replace(found.config, encoder=bare))
    assert "loaded by timm" in hf.write(without, tmp_path / "hf").proof


@pytest.mark.peers
@pytest.mark.parametrize(
    ("library", "name", "says"),
    [
        ("torchvision", "wide_resnet50_2", "128 channels inside its first blocks and 64 before"),
        ("torchvision", "resnext50_32x4d", "128 channels inside its first blocks"),
        ("torchvision", "resnet152", "a ResNet of 3 8 36 3 bottleneck blocks"),
        ("torchvision", "vit_b_16", "holds no encoder that is known here"),
        ("torchvision", "convnext_tiny", "holds no encoder that is known here"),
        ("timm", "convnextv2_tiny", "a ConvNeXt of another kind"),
        ("timm", "convnext_atto", "a ConvNeXt of another kind"),
        ("timm", "resnet50d", "has no conv1.weight"),
        ("timm", "seresnet50", "layer1.0.se"),
        ("timm", "deit_tiny_distilled_patch16_224", "holds dist_token"),
        ("timm", "vit_small_patch14_reg4_dinov2", "holds reg_token|is a vision"),
    ],
)
def test_networks_that_are_not_ours_are_refused_by_name(library: str, name: str, says: str, tmp_path: Path) -> None:
    module = peer(library)
    model = module.create_model(name) if library == "timm" else module.models.get_model(name, weights=None)
    with pytest.raises(UserError, match=says):
        load_encoder(write(dict(model.state_dict()), tmp_path / "weights.pth"))


@pytest.mark.peers
def test_solo_learn_s_and_lightly_s_networks_as_they_build_them(tmp_path: Path) -> None:
    """solo/methods/base.py's small stem; lightly's Sequential of a ResNet's children."""
    torchvision = peer("torchvision")
    solo = headless(torchvision, "resnet18")
    solo.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    solo.maxpool = nn.Identity()
    content = {"state_dict": {**under("backbone.", shaken(solo).state_dict()), **head("classifier.")}}
    close(load_encoder(write(content, tmp_path / "solo.ckpt")), solo, 32)
    children = nn.Sequential(*list(shaken(headless(torchvision, "resnet18")).children())[:-1], nn.Flatten())
    content = {"state_dict": {**under("backbone.", children.state_dict()), **head("projection_head.")}}
    close(load_encoder(write(content, tmp_path / "lightly.ckpt")), children)
