"""The transformer for captions: its attention beside torch's own, padding, positions, parameters, mistakes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from fastvicreg.encoders.text_transformer.config import TextTransformerConfig
from fastvicreg.encoders.text_transformer.network import TextTransformer, sinusoids
from fastvicreg.encoders.transformer import EPS, Block
from fastvicreg.errors import UserError
from fastvicreg.pipelines.pairs.vocabulary import PAD


def small(**changed: Any) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformerConfig(**{"width": 128, "depth": 2, "vocabulary": 20, **changed}).build()


def captions(lengths: list[int], columns: int) -> torch.Tensor:
    words_BL = torch.full((len(lengths), columns), PAD)
    for row, length in enumerate(lengths):
        words_BL[row, :length] = torch.randint(1, 20, (length,))
    return words_BL


def torch_s(block: Block) -> nn.TransformerEncoderLayer:
    """torch's own pre-norm layer with the weights of ``block``."""
    width = block.norm1.normalized_shape[0]
    layer = nn.TransformerEncoderLayer(
        width, block.attn.heads, 4 * width, 0.0, "gelu", EPS, batch_first=True, norm_first=True
    )
    ours = {
        "self_attn.in_proj_": block.attn.qkv,
        "self_attn.out_proj.": block.attn.proj,
        "linear1.": block.mlp.fc1,
        "linear2.": block.mlp.fc2,
        "norm1.": block.norm1,
        "norm2.": block.norm2,
    }
    layer.load_state_dict(
        {prefix + name: value for prefix, part in ours.items() for name, value in part.state_dict().items()}
    )
    return layer.double()


def test_features_are_the_first_token_s_of_torch_s_own_layers() -> None:
    network, words_BL = small().double(), captions([2, 5, 9], 9)
    x_BLD = math.sqrt(128) * network.embed(words_BL) + sinusoids(9, 128, torch.zeros((), dtype=torch.float64))
    for block in network.blocks:
        assert isinstance(block, Block)
        x_BLD = torch_s(block)(x_BLD, src_key_padding_mask=words_BL == PAD)
    assert torch.allclose(network(words_BL), network.norm(x_BLD)[:, 0], rtol=1e-9, atol=1e-9)
    assert network.features == 128


def test_a_caption_has_the_same_features_in_a_longer_row() -> None:
    network, words_BL = small(), captions([3, 6], 6)
    longer_BL = torch.nn.functional.pad(words_BL, (0, 5), value=PAD)
    assert torch.allclose(network(words_BL), network(longer_BL), atol=1e-5)


def test_the_order_of_words_counts_and_a_row_of_padding_is_finite() -> None:
    network = small()
    with torch.no_grad():
        for parameter in network.blocks.parameters():
            parameter.mul_(10.0)  # fresh blocks attend to all alike
    turned = network(torch.tensor([[1, 5, 6, 2], [1, 6, 5, 2]]))
    assert not torch.allclose(turned[0], turned[1], atol=1e-3)
    assert network(torch.full((2, 4), PAD)).isfinite().all()


def test_positions_are_vaswani_s() -> None:
    found_LD = sinusoids(50, 16, torch.zeros((), dtype=torch.float64))
    for place, column in ((0, 0), (7, 4), (49, 15)):
        angle = place / 10000 ** (column // 2 * 2 / 16)
        assert float(found_LD[place, column]) == pytest.approx([math.sin, math.cos][column % 2](angle), abs=1e-5)


def test_every_parameter_is_trained_and_words_biases_and_norms_are_not_decayed() -> None:
    network = small()
    groups = network.param_groups()
    assert {id(p) for group in groups for p in group.params} == {id(p) for p in network.parameters()}
    assert sum(len(group.params) for group in groups) == len(list(network.parameters()))
    decayed = {id(p) for group in groups if group.adapted for p in group.params}
    assert id(network.embed.weight) not in decayed
    assert all((parameter.ndim > 1) == (id(parameter) in decayed) for parameter in network.blocks.parameters())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 100}, "--width 100 does not divide into heads: give a multiple of 64"),
        ({"width": 15}, "--width 15 does not divide into heads: give a multiple of 2"),
        ({"width": 0}, "--width 0 is too small: give 2 or more"),
        ({"vocabulary": 3}, "--vocabulary 3 is too small: give 8 or more"),
        ({"depth": 0}, "--depth 0 is too small: give 1 or more"),
        ({"depth": 1000}, "--depth 1000 is too large: give 256 blocks or fewer"),
        ({"drop_path": 1.0}, "--drop-path 1.0 is no share"),
        ({"drop_path": 0.1, "depth": 1}, "--drop-path 0.1 drops nothing of --depth 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        small(**changed)
