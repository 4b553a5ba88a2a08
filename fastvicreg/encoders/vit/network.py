"""Vision transformers under timm's parameter names, so that their weights load there; no classifier.

Shape suffixes: B batch, T tokens (the class token first), D width, K heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.drop_path import DropPath, rising
from fastvicreg.errors import UserError

EPS = 1e-6
"""Of the layer norms, as timm's."""
STD = 0.02
"""Of the initial weights, tokens and positions."""


class PatchEmbed(nn.Module):
    """Patches to tokens by one convolution (timm: ``PatchEmbed``)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        qkv_3BKTE = self.qkv(x_BTD).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q_BKTE, k_BKTE, v_BKTE = qkv_3BKTE.unbind()
        mixed_BKTE = F.scaled_dot_product_attention(q_BKTE, k_BKTE, v_BKTE)
        return self.proj(mixed_BKTE.transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)
        # Each drops by draws of its own.
        self.drop_path1, self.drop_path2 = (DropPath(drop_path) if drop_path else nn.Identity() for _ in range(2))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.drop_path1(self.attn(self.norm1(x_BTD)))
        return x_BTD + self.drop_path2(self.mlp(self.norm2(x_BTD)))


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
        self.blocks = nn.Sequential(*(Block(width, heads, rate) for rate in rising(drop_path, depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=STD, a=-2 * STD, b=2 * STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=STD, a=-2 * STD, b=2 * STD)
                nn.init.zeros_(module.bias)

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
        tokens = [self.cls_token, self.pos_embed]
        own = {id(parameter) for parameter in tokens}
        groups = [
            group._replace(params=[param for param in group.params if id(param) not in own])
            for group in by_dimension(self)
        ]
        return [*groups, ParamGroup([param for param in tokens if param.requires_grad], adapted=False)]
