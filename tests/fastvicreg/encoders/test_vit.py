"""Vision transformers: timm's names and sizes, a definition written out, and a run through every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import require_same_when_resumed, tiny
from torch import Tensor

import fastvicreg
from fastvicreg.cli import main
from fastvicreg.config import OptimConfig
from fastvicreg.encoders import build_encoder
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.encoders.vit.network import VisionTransformer
from fastvicreg.errors import UserError
from fastvicreg.train.assemble import build_optimizer

# timm's vit_*_patch16_224 with num_classes=0.
PARAMETERS = {"vit_tiny": 5_524_416, "vit_small": 21_665_664, "vit_base": 85_798_656}

BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)
SMALL = ViTConfig("vit_tiny", patch=8, grid=2, depth=2)


@pytest.mark.parametrize("arch", PARAMETERS)
def test_sizes_and_names_are_timm_s(arch: str) -> None:
    with torch.device("meta"):
        network = ViTConfig(arch).build()
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, network.features)
    assert sum(param.numel() for param in network.parameters()) == PARAMETERS[arch]
    outer = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")
    assert set(network.state_dict()) == {*outer, *(f"blocks.{n}.{name}" for n in range(12) for name in BLOCK)}
    assert network.state_dict()["pos_embed"].shape == (1, 197, network.features)


def written_out(network: VisionTransformer, x: Tensor) -> Tensor:
    """timm's forward pass for these weights, attention and patches by hand."""
    state = network.state_dict()
    patch, width, heads = network.patch, network.features, 3  # vit_tiny's
    cut = x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    tokens = cut @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    h = torch.cat((state["cls_token"].expand(len(x), 1, width), tokens), 1) + state["pos_embed"]
    for n in range(len(network.blocks)):
        part = {name: state[f"blocks.{n}.{name}"] for name in BLOCK}
        y = F.layer_norm(h, (width,), part["norm1.weight"], part["norm1.bias"], 1e-6)
        q, k, v = (y @ part["attn.qkv.weight"].T + part["attn.qkv.bias"]).split(width, 2)
        out = torch.empty_like(q)
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            weights = (q[..., own] @ k[..., own].transpose(1, 2) / (width // heads) ** 0.5).softmax(-1)
            out[..., own] = weights @ v[..., own]
        h = h + out @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        y = F.layer_norm(h, (width,), part["norm2.weight"], part["norm2.bias"], 1e-6)
        y = y @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        h = h + y @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
    return F.layer_norm(h, (width,), state["norm.weight"], state["norm.bias"], 1e-6)[:, 0]


def test_features_are_those_of_the_definition_written_out() -> None:
    torch.manual_seed(0)
    network = SMALL.build().double()
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.05 * torch.randn_like(param))  # so that no bias is 0
        x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
        torch.testing.assert_close(network(x), written_out(network, x), rtol=1e-10, atol=1e-10)


def test_positions_are_resampled_for_views_of_another_size() -> None:
    network = ViTConfig("vit_tiny", patch=8, grid=4, depth=1).build()
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 192)
    with torch.no_grad():
        network.pos_embed[:, 1:] = torch.arange(4.0).repeat(4)[None, :, None]  # grows along a row
    half = network._positions(2, 2)[0, 1:, 0].view(2, 2)
    assert torch.equal(half[0], half[1])
    assert half[0].tolist() == pytest.approx([0.5, 2.5], abs=0.15)
    assert network._positions(4, 4) is network.pos_embed
    with pytest.raises(UserError, match="20 x 20 pixels do not divide into --patch 8"):
        network(torch.randn(2, 3, 20, 20))


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_tokens_positions_biases_and_norms_are_not_decayed(optimizer: str) -> None:
    network = SMALL.build()
    groups = network.param_groups()
    plain = {id(param) for group in groups if not group.adapted for param in group.params}
    for name, param in network.named_parameters():
        assert (id(param) in plain) == (param.ndim == 1 or name in ("cls_token", "pos_embed")), name
    assert sum(len(group.params) for group in groups) == len(list(network.parameters()))
    config = OptimConfig(optimizer=optimizer, weight_decay=0.5, base_lr=0.1)  # type: ignore[arg-type]
    built = build_optimizer(config, groups, batch_size=256)
    before, weight = network.cls_token.detach().clone(), network.get_parameter("blocks.0.mlp.fc1.weight")
    weight_before = weight.detach().clone()
    for group in built.param_groups:
        group["lr"] = 0.1
    for param in network.parameters():
        param.grad = torch.zeros_like(param)
    built.step()
    assert torch.equal(network.cls_token, before)
    assert not torch.equal(weight, weight_before)


def test_a_run_is_resumed_evaluated_and_loaded(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = uninterrupted
    config = replace(tiny(data), encoder=SMALL, optim=OptimConfig(optimizer="adamw", base_lr=1e-3, warmup_share=0.1))
    require_same_when_resumed(config, tmp_path)
    assert main(["eval", "knn", str(tmp_path / "run"), "--k", "2", "--json", str(tmp_path / "knn.json")]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["rows"]
    exported = tmp_path / "vit.safetensors"
    assert main(["export", str(tmp_path / "run"), str(exported)]) == 0
    loaded = fastvicreg.load_encoder(exported)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), fastvicreg.load_encoder(tmp_path / "run")(x))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--arch", "vit_smal"), "unknown architecture 'vit_smal'; did you mean 'vit_small'?"),
        (("--arch", "vit_tiny", "--patch", "0"), "--patch 0 is too small"),
        (("--arch", "vit_tiny", "--stem", "3x3"), "--stem is a setting of resnet18, not of vit_tiny"),
        (("--arch", "vit_tiny", "--patch", "7"), "do not divide into --patch 7"),
    ],
)
def test_bad_settings_are_one_line(
    arguments: tuple[str, ...], line: str, make_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(make_folder(val=0))
    small = ("--image-size", "16", "--batch-size", "8", "--steps", "1", "--expander", "16", "16", "--device", "cpu")
    assert main(["train", "--data", data, *small, *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_build_encoder_takes_the_registered_settings() -> None:
    assert isinstance(build_encoder(SMALL), VisionTransformer)
