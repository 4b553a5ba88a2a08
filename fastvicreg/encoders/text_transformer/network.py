"""Captions to features by a transformer.

Shape suffixes: B batch, L tokens (a caption's beginning, its words, its end, padding), D width, F feature width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.encoders.drop_path import rising
from fastvicreg.encoders.transformer import EPS, Block, init_linear
from fastvicreg.pipelines.pairs.vocabulary import PAD


class TextTransformer(nn.Module):
    """Words' numbers (B, L), int64, to features (B, F): the first token after the last norm; F is ``width``.

    Embeddings and positions as Vaswani et al. (arXiv 1706.03762, sections 3.4 and 3.5): of deviation 1 by a factor of
    sqrt(D), and fixed sinusoids, so that captions of any length have them. Blocks and their initial weights are the
    vision transformers'. Padding is attended to by nothing: a caption has the same features in a longer row.
    """

    def __init__(self, width: int, heads: int, depth: int, vocabulary: int, drop_path: float = 0.0) -> None:
        """``drop_path`` is the last block's rate of stochastic depth."""
        super().__init__()
        self.features = width
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, rate) for rate in rising(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        init_linear(self)

    def forward(self, words_BL: Tensor) -> Tensor:
        """A row of padding alone attends to its first number."""
        given_BL = words_BL != PAD
        given_BL[:, 0] = True
        given_B11L = given_BL[:, None, None]
        x_BLD = self.embed(words_BL)
        x_BLD = math.sqrt(self.features) * x_BLD + sinusoids(words_BL.shape[1], self.features, x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD, given_B11L)
        return self.norm(x_BLD[:, 0])

    def param_groups(self) -> list[ParamGroup]:
        """Biases, norms and the words' embeddings are neither decayed nor adapted: most words are in no given batch."""
        return by_dimension(self, apart=(self.embed,))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Positions (length, width) of ``like``'s type and device: sin(p / 10000^(2i/D)) at 2i, cos at 2i + 1."""
    place_L = torch.arange(length, device=like.device, dtype=torch.float32)
    rate_H = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angle_LH = place_L[:, None] * rate_H
    return torch.stack((angle_LH.sin(), angle_LH.cos()), 2).flatten(1).to(like.dtype)
