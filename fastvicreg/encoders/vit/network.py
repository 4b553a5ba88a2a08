"""Vision transformers under timm's parameter names, so that their weights load there; no classifier.

Shape suffixes: B batch, T tokens (the class token first), D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.drop_path import rising
from fastvicreg.encoders.transformer import EPS, Block, init_linear, init_normal
from fastvicreg.errors import UserError


class PatchEmbed(nn.Module):
    """Patches to tokens by one convolution (timm: ``PatchEmbed``)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW)


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W), normalised, to features (B, F): the class token after the last norm.

    Weights, tokens and positions start from a normal distribution of deviation .02 cut at two deviations, biases from
    0, the patches' convolution as torch has it (timm's ``vit_*_patch*``).
    """

    def __init__(self, width: int, heads: int, depth: int, patch: int, grid: int, drop_path: float = 0.0) -> None:
        """``drop_path`` is the last block's rate of stochastic depth."""
        super().__init__()
        self.features = self.map_features = width
        self.patch, self.grid = patch, grid
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.blocks = Blocks(*(Block(width, heads, rate) for rate in rising(drop_path, depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        for parameter in (self.cls_token, self.pos_embed):
            init_normal(parameter)
        init_linear(self)

    def forward(self, x_BCHW: Tensor, tokens: bool = False) -> Any:
        """With ``tokens`` (features, map), see ``contracts.MapEncoder``: the map is the patches' tokens, normed.

        ``UserError`` for sides that are no multiple of a patch's.
        """
        height, width = x_BCHW.shape[2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"views of {height} x {width} pixels do not divide into --patch {self.patch}: "
                f"give sizes that are multiples of it."
            )
        patches_BTD = self.patch_embed(x_BCHW).flatten(2).transpose(1, 2)
        class_B1D = self.cls_token.expand(x_BCHW.shape[0], -1, -1)
        x_BTD = torch.cat((class_B1D, patches_BTD), 1) + self._positions(height // self.patch, width // self.patch)
        x_BTD = self.norm(self.blocks(x_BTD))
        return (x_BTD[:, 0], x_BTD[:, 1:]) if tokens else x_BTD[:, 0]

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Of the class token and ``rows`` x ``columns`` patches, resampled from those learned (as DINO)."""
        if rows == columns == self.grid:
            return self.pos_embed
        class_11D, learned_1TD = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square_1DHW = learned_1TD.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resampled_1DHW = F.interpolate(square_1DHW.float(), (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((class_11D, resampled_1DHW.flatten(2).transpose(1, 2).to(class_11D.dtype)), 1)

    def param_groups(self) -> list[ParamGroup]:
        """Biases, norms, the class token and the positions are neither decayed nor adapted (timm: no_weight_decay)."""
        return by_dimension(self, apart=(self.cls_token, self.pos_embed))
