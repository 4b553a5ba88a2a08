"""Encoders: torchvision's names and shapes, the official initialisation, the published parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastvicreg.encoders import build_encoder
from fastvicreg.encoders.resnet.config import ResNetConfig, Stem
from fastvicreg.encoders.resnet.network import resnet
from fastvicreg.errors import UserError
from fastvicreg.methods.heads import expander

# torchvision's without fc (11,689,512 - 513,000 and so on); resnet50x2 is the official code's, all widths doubled.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet50x2": 93_907_072,
}
FEATURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet50x2": 4096}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("arch", PARAMETERS)
def test_sizes_are_the_published_ones(arch: str) -> None:
    with torch.device("meta"):
        network = resnet(arch)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, FEATURES[arch])
    assert count(network) == PARAMETERS[arch]
    assert network.features == FEATURES[arch]


def test_resnet50_with_its_expander_has_174_55_million() -> None:
    with torch.device("meta"):
        total = count(resnet("resnet50")) + count(expander(2048, (8192, 8192, 8192)))
    assert round(total / 1e6, 2) == 174.55


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        names = resnet("resnet50").state_dict().keys()
    expected = {"conv1.weight", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_var"}
    expected |= {"layer3.5.conv3.weight", "layer4.2.bn3.num_batches_tracked", "bn1.bias"}
    assert expected <= names
    assert len(names) == 318  # torchvision's 320 less fc.weight and fc.bias
    assert "layer1.1.downsample.0.weight" not in names


def test_the_stride_of_a_bottleneck_is_in_its_3x3() -> None:
    block = resnet("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_blocks_start_as_their_shortcut() -> None:
    torch.manual_seed(0)
    for arch, last in (("resnet18", "bn2"), ("resnet50", "bn3")):
        network = resnet(arch, width=16)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for block in stage:
                assert not getattr(block, last).weight.any()
        block, x = network.layer1[1].eval(), torch.randn(2, network.layer1[1].conv1.in_channels, 6, 6)
        assert torch.equal(block(x.clone()), x.relu())


def test_convolutions_are_drawn_as_torchvisions() -> None:
    torch.manual_seed(0)
    weight = resnet("resnet18").layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("stem", "side"), [("7x7", 16), ("3x3", 64), ("3x3s2", 32)])
def test_stems_keep_what_a_small_image_has(stem, side: int) -> None:
    network = resnet("resnet18", width=16, stem=stem)
    x = network.maxpool(network.conv1(torch.zeros(1, 3, 64, 64)))
    assert x.shape == (1, 16, side, side)


def test_width_scales_every_layer() -> None:
    assert resnet("resnet18", width=16).features == 128
    assert resnet("resnet50x2", width=16).features == 32 * 8 * 4


def test_the_expander_is_the_official_one() -> None:
    layers = expander(10, (20, 30, 40))
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.bias is not None for layer in linear] == [True, True, False]
    assert layers(torch.randn(4, 10)).shape == (4, 40)


def test_a_width_that_corrupts_memory_is_refused() -> None:
    with pytest.raises(UserError, match="--width 8 is below 16"):
        build_encoder(ResNetConfig("resnet18", width=8))


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build_encoder(ResNetConfig("resnet5"))


@pytest.mark.parametrize(("stem", "side"), [("7x7", 16), ("3x3", 32), ("3x3s2", 16), ("3x3p2", 34)])
def test_each_stem_has_its_stride_and_padding(stem: Stem, side: int) -> None:
    encoder = resnet("resnet18", width=16, stem=stem)
    assert encoder.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 16, side, side)
    assert isinstance(encoder.maxpool, nn.MaxPool2d) == (stem == "7x7")
