"""Blocks of the transformers, and of ConvNeXts their MLP, under timm's parameter names; initial weights.

Shape suffixes: B batch, T tokens, D width, K heads, E width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.encoders.drop_path import DropPath

EPS = 1e-6
"""Of the layer norms, as timm's."""
STD = 0.02
"""Of the initial weights, tokens and learned positions."""


class Attention(nn.Module):
    """Multi-head self-attention, to all tokens or to those that ``given_B11T`` (bool) says are there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, given_B11T: Tensor | None = None) -> Tensor:
        b, t, d = x_BTD.shape
        qkv_3BKTE = self.qkv(x_BTD).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q_BKTE, k_BKTE, v_BKTE = qkv_3BKTE.unbind()
        mixed_BKTE = F.scaled_dot_product_attention(q_BKTE, k_BKTE, v_BKTE, given_B11T)
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

    def forward(self, x_BTD: Tensor, given_B11T: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.drop_path1(self.attn(self.norm1(x_BTD), given_B11T))
        return x_BTD + self.drop_path2(self.mlp(self.norm2(x_BTD)))


def init_linear(network: nn.Module) -> None:
    """Weights of all linear layers as ``init_normal``, biases from 0 (timm's ``vit_*_patch*``)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            init_normal(module.weight)
            nn.init.zeros_(module.bias)


def init_normal(parameter: Tensor) -> None:
    """From a normal distribution of deviation .02, cut at two deviations."""
    nn.init.trunc_normal_(parameter, std=STD, a=-2 * STD, b=2 * STD)
