"""Captions to features by a recurrent network.

Shape suffixes: B batch, L words, E a word's embedding, F feature width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastvicreg.contracts import ParamGroup, by_dimension
from fastvicreg.pipelines.pairs.vocabulary import PAD


class GRU(nn.Module):
    """Words' numbers (B, L), int64, to features (B, F): the state after the last word (VSE++'s EncoderText).

    Embeddings start uniform in -.1 to .1 as there. The state is taken by its place and not from a packed sequence:
    no length is read on the host, and every batch has one shape.
    """

    def __init__(self, width: int, embedding: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.rnn = nn.GRU(embedding, width, batch_first=True)
        self.features = width
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        bound = 1 / math.sqrt(width)
        for parameter in self.rnn.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, words_BL: Tensor) -> Tensor:
        """A row of padding alone gives the state after its first number."""
        states_BLF, _ = self.rnn(self.embed(words_BL))
        last_B = ((words_BL != PAD).sum(1) - 1).clamp(min=0)
        return states_BLF[torch.arange(len(words_BL), device=words_BL.device), last_B]

    def param_groups(self) -> list[ParamGroup]:
        """Biases and the words' embeddings are neither decayed nor adapted: most words are in no given batch."""
        return by_dimension(self, apart=(self.embed,))
