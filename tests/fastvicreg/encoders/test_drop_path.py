"""Stochastic depth in the networks: which rate a block has, what it computes, and when it computes nothing else.

Shape suffixes: B batch, V views, K residual branches that drop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHOD_CONFIGS, encoder
from refusing import assert_refused
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvicreg.contracts import BuildContext
from fastvicreg.encoders import build_encoder
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.drop_path import DropPath
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.encoders.resnet.network import BasicBlock, resnet
from fastvicreg.encoders.resnet1d.config import ResNet1dConfig
from fastvicreg.encoders.transformer import Block
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.encoders.vit.network import VisionTransformer
from fastvicreg.methods.views import each_view
from fastvicreg.train.assemble import as_module
from fastvicreg.train.batch_norm import replace_norms
from fastvicreg.train.drop_path import install

NETWORKS: dict[str, Any] = {
    "vit_tiny": lambda rate: ViTConfig("vit_tiny", patch=8, grid=2, depth=3, drop_path=rate),
    "resnet18": lambda rate: ResNetConfig("resnet18", width=16, stem="3x3", drop_path=rate),
    "resnet50": lambda rate: ResNetConfig("resnet50", width=16, stem="3x3", drop_path=rate),
    "resnet18_1d": lambda rate: ResNet1dConfig("resnet18_1d", width=16, drop_path=rate),
    "convnext_tiny": lambda rate: ConvNeXtConfig("convnext_tiny", width=16, patch=1, layer_scale=1.0, drop_path=rate),
}
BLOCKS = {"vit_tiny": (3, 2), "resnet18": (8, 1), "resnet50": (16, 1), "resnet18_1d": (8, 1), "convnext_tiny": (18, 1)}
"""Blocks, and residual branches of each."""


def branches(network: nn.Module) -> list[DropPath]:
    return [part for part in network.modules() if isinstance(part, DropPath)]


def awake(network: nn.Module) -> nn.Module:
    """A fresh ResNet's blocks are their shortcuts, whose branches are 0 in any case: not so here."""
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.ones_(norm.weight)
    return network


@pytest.mark.parametrize("arch", NETWORKS)
def test_rates_rise_from_0_at_the_first_block_to_the_given_one_at_the_last(arch: str) -> None:
    blocks, each = BLOCKS[arch]
    network = NETWORKS[arch](0.3).build()
    wanted = [rate for rate in torch.linspace(0, 0.3, blocks, dtype=torch.float64).tolist() for _ in range(each)]
    assert [branch.rate for branch in branches(network)] == pytest.approx(wanted[each:], rel=1e-12)


@pytest.mark.parametrize("arch", NETWORKS)
def test_weights_are_those_of_a_network_without_and_so_is_what_it_computes_outside_of_a_step(arch: str) -> None:
    networks = []
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        networks.append(awake(NETWORKS[arch](rate).build()))
    without, dropping = networks
    assert not branches(without)
    for (name, value), (other, expected) in zip(
        dropping.state_dict().items(), without.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, expected)
    drops = install(dropping, 0)
    assert drops is not None
    x = torch.randn((3, 1, 2048) if arch.endswith("1d") else (3, 3, 16, 16))
    torch.testing.assert_close(dropping(x), without(x))
    with drops.during(torch.zeros(1, len(drops.rates), 3)):
        torch.testing.assert_close(dropping.eval()(x), without.eval()(x))
        assert not torch.allclose(dropping.train()(x), without.train()(x))


def factors(*shape: int) -> Tensor:
    """Kept or left out, at a rate of .2; in fp64."""
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(shape, generator=generator) < 0.6).double() / 0.8


def test_a_transformer_s_block_is_as_written_out() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(Block(16, 2, 0.2)).double()
    drops = install(block, 0)
    assert drops is not None
    assert drops.rates == (0.2, 0.2)
    factor_VKB, x_BTD = factors(1, 2, 6), torch.randn(6, 5, 16, dtype=torch.float64)
    own: Any = block[0]
    after_BTD = x_BTD + factor_VKB[0, 0].view(6, 1, 1) * own.attn(own.norm1(x_BTD))
    wanted = after_BTD + factor_VKB[0, 1].view(6, 1, 1) * own.mlp(own.norm2(after_BTD))
    with drops.during(factor_VKB):
        torch.testing.assert_close(block(x_BTD), wanted, rtol=1e-14, atol=0)
    assert not torch.allclose(block(x_BTD), wanted)


@pytest.mark.parametrize("own_norms", [False, True])
def test_a_residual_block_is_as_written_out_and_its_norms_see_all_samples(own_norms: bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(BasicBlock(16, 16, 1, 0.2)).double()
    own: Any = block[0]
    nn.init.normal_(own.bn2.weight)
    x = torch.randn(6, 16, 4, 4, dtype=torch.float64)
    factor_VKB = factors(1, 1, 6)
    inner = torch.relu(own.bn1(own.conv1(x)))
    wanted = torch.relu(x + factor_VKB[0, 0].view(6, 1, 1, 1) * own.bn2(own.conv2(inner)))
    mean = own.bn2.running_mean.clone()
    own.bn2.reset_running_stats()
    if own_norms:
        replace_norms(block)
    drops = install(block, 0)
    assert drops is not None
    with drops.during(factor_VKB):
        torch.testing.assert_close(block(x), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own.bn2.running_mean, mean)


def test_each_view_has_its_own_draws_one_after_another_and_as_one_batch() -> None:
    results = []
    for joint in (False, True):
        torch.manual_seed(0)
        network = VisionTransformer(32, 2, 3, 8, 2, drop_path=0.5).double()
        replace_norms(network, joint=joint)
        drops = install(network, 0)
        assert drops is not None
        view = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with drops.during(factors(4, 4, 4)):
            results.append(each_view(network, [view] * 3 + [view[:, :, :8, :8]]))
            assert torch.equal(each_view(network, [view], first=1)[0], network(view)), "the last view's draws stay set"
            torch.testing.assert_close(network(view), results[-1][1])
    separate, together = results
    for one, other in zip(together, separate, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(separate[0], separate[1])
    assert not torch.allclose(separate[1], separate[2])


@pytest.mark.parametrize("name", ["dino", "byol", "moco"])
def test_a_momentum_network_leaves_out_nothing(name: str) -> None:
    found = []
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        context = BuildContext(lambda *_, rate=rate: resnet("resnet18", width=16, stem="3x3s2", drop_path=rate))
        method: Any = awake(as_module(METHOD_CONFIGS[name].build(context)))
        drops = install(method, 0)
        views = tuple(torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
        if drops is None:
            found.append((method.embed(views), method.target(views)))
            continue
        assert len(drops.rates) == 7, "the trained network's branches alone"
        with drops.during(torch.zeros(2, 7, 8)):
            found.append((method.embed(views), method.target(views)))
    (embeddings, targets), (dropped, dropped_targets) = found
    assert not torch.allclose(embeddings[0], dropped[0])
    for one, other in zip(dropped_targets, targets, strict=True):
        torch.testing.assert_close(one, other)


def test_there_is_nothing_to_share_where_nothing_drops() -> None:
    network = encoder()
    assert install(network, 0) is None
    assert not any(hasattr(part, "drops") for part in network.modules())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--drop-path", "1"), "--drop-path 1.0 is no share of the samples to leave out: give 0 or more, below 1"),
        (("--drop-path", "-.1"), "--drop-path -0.1 is no share"),
        (("--arch", "vit_tiny", "--drop-path", "nan"), "--drop-path nan is no share"),
        (("--arch", "vit_tiny", "--depth", "1", "--drop-path", ".1"), "--drop-path 0.1 drops nothing of --depth 1"),
        (("--arch", "gru", "--drop-path", ".1"), "--drop-path is a setting of resnet18, not of gru"),
        (("--arch", "timm", "--drop-path", ".1"), "--drop-path is a setting of resnet18, not of timm"),
        (("--branch-b", "vit_tiny", "drop_path=2"), "--branch-b vit_tiny drop_path=2: --drop-path 2.0 is no share"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, line, tmp_path / "run", capsys)


def test_a_second_branch_may_have_a_rate_of_its_own() -> None:
    network = build_encoder(ResNetConfig("resnet18", width=16), "vit_tiny", "depth=3", "drop_path=.2")
    assert [branch.rate for branch in branches(network)] == pytest.approx([0.1, 0.1, 0.2, 0.2])  # type: ignore[arg-type]
