"""The encoder of waveforms."""

from __future__ import annotations

import copy

import pytest
import torch

from fastvicreg.encoders.resnet1d.config import ResNet1dConfig
from fastvicreg.train.batch_norm import replace_norms


@pytest.mark.parametrize("arch", ["resnet18_1d", "resnet34_1d"])
def test_as_many_layers_as_the_networks_for_images(arch: str) -> None:
    network = ResNet1dConfig(arch=arch).build()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv1d) and m.kernel_size != (1,)]
    assert len(convolutions) + 1 == int(arch[6:8])  # the classifier is the last layer of the name
    assert network.features == 384
    assert network(torch.randn(2, 1, 22050)).shape == (2, 384)


def test_our_norms_are_torchs() -> None:
    torch.manual_seed(0)
    network = ResNet1dConfig(width=4).build().double()
    own = replace_norms(copy.deepcopy(network))
    x_B1T = torch.randn(3, 1, 4000, dtype=torch.float64)
    expected, found = network(x_B1T), own(x_B1T)
    assert torch.allclose(found, expected, atol=1e-12)
    for part in (expected, found):
        part.square().sum().backward()
    for (name, one), two in zip(network.named_parameters(), own.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-10), name
