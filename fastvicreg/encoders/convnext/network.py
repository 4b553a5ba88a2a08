"""ConvNeXts under timm's parameter names, so that their weights load there; no classifier.

Shape suffixes: B batch, C channels, H and W rows and columns, N positions of the last map, F feature width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.drop_path import DropPath, rising
from fastvicreg.encoders.transformer import EPS, STD, Mlp
from fastvicreg.errors import UserError


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution and an MLP behind a norm, beside a shortcut."""

    def __init__(self, channels: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.mlp = Mlp(channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BHWC = self.mlp(self.norm(self.conv_dw(x_BCHW).permute(0, 2, 3, 1)))
        if self.gamma is not None:
            branch_BHWC = branch_BHWC * self.gamma
        return x_BCHW + self.drop_path(branch_BHWC.permute(0, 3, 1, 2))


class Stage(nn.Module):
    """Blocks, and before those of all stages but the first a convolution of stride 2 behind a norm."""

    def __init__(self, given: int, channels: int, rates: Sequence[float], layer_scale: float) -> None:
        super().__init__()
        self.downsample = (
            nn.Sequential(LayerNorm2d(given), nn.Conv2d(given, channels, 2, stride=2))
            if given != channels
            else nn.Identity()
        )
        self.blocks = Blocks(*(Block(channels, layer_scale, rate) for rate in rates))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.blocks(self.downsample(x_BCHW))


class ConvNeXt(nn.Module):
    """Images (B, 3, H, W), normalised, to features (B, F): the mean over the last map's positions, normed.

    Weights start from a normal distribution of deviation .02, biases from 0 (both released codes; theirs is cut at 100
    deviations, which cuts nothing).
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        *,
        patch: int = 4,
        layer_scale: float = 1e-6,
        norm_positions: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        """``norm_positions`` norms each position before the mean (VICRegL's convnext.py) and not the mean itself."""
        super().__init__()
        self.norm_positions, self.least = norm_positions, patch * 2 ** (len(depths) - 1)
        self.stem = nn.Sequential(nn.Conv2d(3, width, patch, stride=patch), LayerNorm2d(width))
        rates, channels, stages = iter(rising(drop_path, sum(depths))), width, []
        for number, depth in enumerate(depths):
            given, channels = channels, width * 2**number
            stages.append(Stage(given, channels, [next(rates) for _ in range(depth)], layer_scale))
        self.stages = nn.Sequential(*stages)
        self.features = self.map_features = channels
        self.head = nn.Sequential(OrderedDict(norm=nn.LayerNorm(channels, eps=EPS)))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=STD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x_BCHW: Tensor, tokens: bool = False) -> Any:
        """With ``tokens`` (features, map), see ``contracts.MapEncoder``: the map is normed where positions are.

        ``UserError`` for sides that shrink to nothing.
        """
        height, width = x_BCHW.shape[2:]
        if min(height, width) < self.least:
            raise UserError(
                f"views of {height} x {width} pixels shrink to nothing in a ConvNeXt of this --patch: give views of "
                f"{self.least} px or more, or a smaller --patch."
            )
        map_BNF = self.stages(self.stem(x_BCHW)).flatten(2).mT
        if self.norm_positions:
            map_BNF = self.head(map_BNF)
            features_BF = map_BNF.mean(1)
        else:
            features_BF = self.head(map_BNF.mean(1))
        return (features_BF, map_BNF) if tokens else features_BF

    def param_groups(self) -> list[ParamGroup]:
        """Biases, norms and layer scales are neither decayed nor adapted."""
        return by_dimension(self)
