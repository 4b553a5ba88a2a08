"""The text encoder."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from fastvicreg.encoders.gru.config import GRUConfig
from fastvicreg.pipelines.pairs.vocabulary import PAD


def test_the_state_after_the_last_word_as_a_packed_sequence_gives_it() -> None:
    torch.manual_seed(0)
    network = GRUConfig(width=12, embedding=6, vocabulary=20).build()
    length_B = torch.tensor([1, 3, 5, 5])
    words_BL = torch.full((4, 7), PAD)
    for row, length in enumerate(length_B.tolist()):
        words_BL[row, :length] = torch.randint(1, 20, (length,))
    packed = pack_padded_sequence(network.embed(words_BL), length_B, batch_first=True, enforce_sorted=False)
    _, last_1BF = network.rnn(packed)
    assert torch.allclose(network(words_BL), last_1BF[0], atol=1e-6)
    assert network.features == 12


def test_padding_changes_nothing() -> None:
    network = GRUConfig(width=12, embedding=6, vocabulary=20).build()
    words_BL = torch.tensor([[1, 5, 6, 2]])
    longer_BL = torch.nn.functional.pad(words_BL, (0, 5), value=PAD)
    assert torch.allclose(network(words_BL), network(longer_BL), atol=1e-7)


def test_every_parameter_is_trained_and_words_are_not_decayed() -> None:
    network = GRUConfig(width=12, embedding=6, vocabulary=20).build()
    groups = network.param_groups()
    assert {id(p) for group in groups for p in group.params} == {id(p) for p in network.parameters()}
    decayed = {id(p) for group in groups if group.adapted for p in group.params}
    assert id(network.embed.weight) not in decayed
    assert id(network.rnn.weight_hh_l0) in decayed
