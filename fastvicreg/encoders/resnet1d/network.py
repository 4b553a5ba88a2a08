"""ResNets over time, for waveforms.

Each kernel has as many taps, and each stride as many steps, as ResNet's have in two dimensions: 9 for 3x3, 49 for 7x7,
4 for 2x2, so that features see the same number of samples as of pixels (as WaveGAN made DCGAN one-dimensional, Donahue
et al., arXiv 1802.04208). The paper names a 1-D ResNet-18 and no more of it.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.drop_path import DropPath, added, rising
from fastvicreg.kernels.norm import activated

DEPTHS = {"resnet18_1d": (2, 2, 2, 2), "resnet34_1d": (3, 4, 6, 3)}


def conv(inputs: int, outputs: int, taps: int, stride: int = 1) -> nn.Conv1d:
    """A convolution without bias that keeps the length at stride 1."""
    return nn.Conv1d(inputs, outputs, taps, stride, padding=taps // 2, bias=False)


class Block(nn.Module):
    """Two convolutions of 9 taps and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 9, stride), nn.BatchNorm1d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 9), nn.BatchNorm1d(outputs)
        self.drop_path = DropPath(drop_path) if drop_path else None
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = activated(self.bn1, self.conv1(x))
        return added(self.bn2, self.conv2(x), kept, self.drop_path)


class ResNet1d(nn.Module):
    """Waveforms (B, 1, T) to features (B, F) after the average over time.

    Initialised as the ResNets for images: a block starts as its shortcut.
    """

    def __init__(self, arch: str, width: int, drop_path: float = 0.0) -> None:
        """``drop_path`` is the last block's rate of stochastic depth."""
        super().__init__()
        self.conv1, self.bn1 = conv(1, width, 49, 4), nn.BatchNorm1d(width)
        self.maxpool = nn.MaxPool1d(9, 4, 4)
        channels, stages, rates = width, [], iter(rising(drop_path, sum(DEPTHS[arch])))
        for number, depth in enumerate(DEPTHS[arch]):
            blocks = []
            for place in range(depth):
                outputs = width * 2**number
                blocks.append(Block(channels, outputs, 4 if number and not place else 1, next(rates)))
                channels = outputs
            stages.append(Blocks(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x_B1T: Tensor) -> Tensor:
        x = self.maxpool(activated(self.bn1, self.conv1(x_B1T)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def param_groups(self) -> list[ParamGroup]:
        """Biases and norms are neither decayed nor adapted."""
        return by_dimension(self)
