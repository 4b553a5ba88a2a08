"""ResNet encoders under torchvision's parameter names, so that their weights load anywhere; no classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.drop_path import DropPath, added, rising
from fastvicreg.encoders.resnet.config import STEMS, Stem
from fastvicreg.kernels.norm import activated

NewBlock = Callable[[int, int, int, float], nn.Module]
"""From channels in, channels within, stride and rate of stochastic depth."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18, -34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes, stride)
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = activated(self.bn1, self.conv1(x))
        return added(self.bn2, self.conv2(x), kept, self.drop_path)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as torchvision's v1.5), 1x1 and a shortcut (ResNet-50, -101)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1 = conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = shortcut(inputs, planes * self.expansion, stride)
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = activated(self.bn1, self.conv1(x))
        x = activated(self.bn2, self.conv2(x))
        return added(self.bn3, self.conv3(x), kept, self.drop_path)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """A 1x1 projection where a block changes its input's shape."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Images (B, 3, H, W), normalised, to features (B, F) after average pooling.

    Initialised as torchvision does, with ``zero_init_residual`` as the official code: a block starts as its shortcut.
    """

    def __init__(
        self, block: NewBlock, depths: tuple[int, ...], width: int, stem: Stem, drop_path: float = 0.0
    ) -> None:
        """``drop_path`` is the last block's rate of stochastic depth."""
        super().__init__()
        kernel, stride, padding = STEMS[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "7x7" else nn.Identity()
        channels, expansion = width, block.expansion  # type: ignore[attr-defined]
        stages, rates = [], iter(rising(drop_path, sum(depths)))
        for number, depth in enumerate(depths):
            planes = width * 2**number
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, planes, 2 if number and not position else 1, next(rates)))
                channels = planes * expansion
            stages.append(Blocks(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.features = self.map_features = channels
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor, tokens: bool = False) -> Any:
        """With ``tokens`` (features, map), see ``contracts.MapEncoder``: the map is what is pooled."""
        x = self.maxpool(activated(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled = self.avgpool(x).flatten(1)
        return (pooled, x.flatten(2).transpose(1, 2)) if tokens else pooled

    def param_groups(self) -> list[ParamGroup]:
        """Biases and norms are neither decayed nor adapted."""
        return by_dimension(self)


ARCHITECTURES: dict[str, tuple[NewBlock, tuple[int, ...], int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1),
    "resnet50x2": (Bottleneck, (3, 4, 6, 3), 2),
}


def resnet(arch: str, *, width: int = 64, stem: Stem = "7x7", drop_path: float = 0.0) -> ResNet:
    """The network called ``arch``; ``width`` is the first stage's channels, doubled for resnet50x2."""
    block, depths, multiple = ARCHITECTURES[arch]
    return ResNet(block, depths, width * multiple, stem, drop_path)
