"""Every layout of peers' checkpoints gives the encoder that it was made from, and says what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peer_checkpoints import contents, head, numbered, trained, under, write

from fastvicreg import load_encoder
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.pretrained import load_trained

SMALL = ResNetConfig(arch="resnet18", width=16)
VIT = ViTConfig(arch="vit_tiny", patch=8, grid=3, depth=2)
LAYOUTS = sorted(contents({}))


def probe(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def same_features(found: torch.nn.Module, made: torch.nn.Module, side: int) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found(probe(side)), made(probe(side)), rtol=0, atol=0)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resnet_comes_back_from_every_layout(layout: str, old: bool, tmp_path: Path) -> None:
    made = trained(SMALL)
    content, says = contents(dict(made.state_dict()))[layout]
    found = load_trained(write(content, tmp_path / "weights.pth", old=old))
    assert found.config.encoder == SMALL
    assert found.config.data.image_size == 224
    assert f"weights.pth: resnet18 of width 16 with a 7x7 stem, from {says}" in found.notes[0]
    same_features(found.encoder, made, 64)


@pytest.mark.parametrize("config", [ResNetConfig("resnet34", 16), ResNetConfig("resnet50", 16)], ids=lambda c: c.arch)
def test_depth_and_width_are_read_from_the_shapes(config: ResNetConfig, tmp_path: Path) -> None:
    made = trained(config)
    path = write(dict(made.state_dict()), tmp_path / "weights.safetensors")
    found = load_trained(path, arch=config.arch)
    assert found.config.encoder == config
    same_features(found.encoder, made, 32)


def test_the_official_width_of_resnet50x2_has_its_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = ResNetConfig("resnet50x2").build().state_dict()
    tensors = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    found = load_trained(write(tensors, tmp_path / "weights.pth"))
    assert found.config.encoder == ResNetConfig("resnet50x2")


@pytest.mark.parametrize("layout", ["solo-learn", "lightly"])
def test_a_small_stem_is_solo_learn_s_where_the_layout_says_so(layout: str, tmp_path: Path) -> None:
    stem = "3x3p2" if layout == "solo-learn" else "3x3"
    made = trained(ResNetConfig("resnet18", 16, stem))
    content, _ = contents(dict(made.state_dict()))[layout]
    found = load_trained(write(content, tmp_path / "weights.ckpt"))
    assert found.config.encoder == ResNetConfig("resnet18", 16, stem)
    assert found.config.data.image_size == 32
    assumed = "stride and padding of its 3x3 stem are not in the file"
    assert any(assumed in note for note in found.notes) == (layout == "lightly")
    same_features(found.encoder, made, 32)


def test_a_stem_that_the_file_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    made = trained(ResNetConfig("resnet18", 16, "3x3s2"))
    path = write(dict(made.state_dict()), tmp_path / "weights.pth")
    same_features(load_encoder(path, stem="3x3s2"), made, 32)
    with pytest.raises(UserError, match="a first convolution of 3x3, which is no --stem 7x7"):
        load_encoder(path, stem="7x7")


@pytest.mark.parametrize(
    ("around", "says"),
    [
        (lambda own: own, "a bare backbone"),
        (lambda own: {**own, **head("head.", "weight", "bias")}, "a classifier of timm; left out: head"),
        (lambda own: {"teacher": {**under("backbone.", own), **head("head.")}}, "a DINO checkpoint's teacher"),
        (lambda own: {"state_dict": {**under("backbone.", own), **head("classifier.")}}, "a solo-learn checkpoint"),
    ],
)
def test_a_vision_transformer_comes_back(around: Any, says: str, tmp_path: Path) -> None:
    made = trained(VIT)
    found = load_trained(write(around(dict(made.state_dict())), tmp_path / "weights.pth"))
    assert found.config.encoder == VIT
    assert found.config.data.image_size == 24
    assert says in found.notes[0]
    same_features(found.encoder, made, 24)


def test_files_without_batch_norms_counters_and_in_half_precision_load(tmp_path: Path) -> None:
    made = trained(SMALL)
    tensors = {n: v.half() for n, v in made.state_dict().items() if not n.endswith("num_batches_tracked")}
    found = load_encoder(write(tensors, tmp_path / "weights.pth"))
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    torch.testing.assert_close(found(probe(32)), made(probe(32)), rtol=1e-2, atol=1e-2)


def resnet_with(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Weights of ``SMALL`` with some replaced or, for None, taken out; ``__`` stands for a dot."""
    tensors: dict[str, Any] = {**trained(SMALL).state_dict(), **{k.replace("__", "."): v for k, v in changed.items()}}
    return {name: value for name, value in tensors.items() if value is not None}


def vit_with(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, Any] = {**trained(VIT).state_dict(), **{k.replace("__", "."): v for k, v in changed.items()}}
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (lambda: {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}, {}, "no encoder .* only fc.weight, fc.b"),
        (lambda: {"epoch": 3, "optimizer": {}}, {}, "holds no tensors by name, only epoch, optimizer"),
        (lambda: torch.ones(3), {}, "holds a Tensor, no tensors by name"),
        (lambda: [torch.ones(3)], {}, "holds a list, no tensors by name"),
        (lambda: resnet_with(), {"arch": "resnet50"}, "--arch resnet50: .* resnet18 of width 16 .* --arch resnet18"),
        (lambda: resnet_with(layer4__1__conv2__weight=None), {}, "the model has layer4.1.conv2.weight, the checkpoint"),
        (
            lambda: resnet_with(layer1__0__bn1__weight=torch.ones(5)),
            {},
            r"layer1.0.bn1.weight is \(5,\) there, \(16,\)",
        ),
        (lambda: resnet_with(layer1__0__se__fc__weight=torch.ones(5)), {}, "the checkpoint has layer1.0.se.fc.weight"),
        (lambda: resnet_with(conv1__weight=None), {}, "has no conv1.weight: it is not a whole encoder"),
        (lambda: resnet_with(conv1__weight=torch.ones(16, 1, 7, 7)), {}, "takes images of 1 channels"),
        (lambda: resnet_with(conv1__weight=torch.ones(16, 3, 5, 5)), {}, "first convolution of 5x5: the stems here"),
        (
            lambda: resnet_with(conv1__weight=torch.ones(8, 3, 7, 7)),
            {},
            "has 16 channels inside its first blocks and 8",
        ),
        (lambda: resnet_with(layer4__2__conv1__weight=torch.ones(1)), {}, "of 2 2 2 3 basic blocks, which is none of"),
        (lambda: resnet_with(conv1__weight=torch.full((16, 3, 7, 7), torch.nan)), {}, "conv1.weight .* is not finite"),
        (lambda: vit_with(), {"stem": "3x3"}, "--stem 3x3: .* holds a vision transformer, which has none"),
        (lambda: vit_with(reg_token=torch.ones(1, 4, 192)), {}, "holds reg_token, a part that no vision transformer"),
        (lambda: vit_with(pos_embed=torch.ones(1, 9, 192), cls_token=None), {}, "has 9 positions and no class token"),
        (lambda: vit_with(patch_embed__proj__weight=torch.ones(100, 3, 8, 8)), {}, "is a vision transformer 100 wide"),
        (
            lambda: {"state_dict": {**under("a.", resnet_with()), **under("b.", numbered(resnet_with()))}},
            {},
            "holds several networks, state_dict.a, state_dict.b",
        ),
    ],
)
def test_what_is_no_encoder_of_ours_is_refused_by_name(
    content: Any, options: dict[str, str], says: str, tmp_path: Path
) -> None:
    path = write(content(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=says) as refused:
        load_encoder(path, **options)
    assert "\n" not in str(refused.value)
    assert "weights.pth" in str(refused.value)
