"""Retrieval between modalities."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.evaluate.paired import Embedded, recalls


def embedded(z_MD: Tensor, sample_M: Tensor) -> Embedded:
    return Embedded(F.normalize(z_MD, dim=1), sample_M, 0)


def by_hand(queries: Embedded, answers: Embedded, k: int) -> float:
    """Over all orders of equally near answers: whether one of the query's own sample is among the first k."""
    total = 0.0
    for z_D, sample in zip(queries.z_MD, queries.sample_M.tolist(), strict=True):
        similarity = (answers.z_MD @ z_D).tolist()
        orders = [
            order
            for order in itertools.permutations(range(len(similarity)))
            if all(similarity[a] >= similarity[b] for a, b in itertools.pairwise(order))
        ]
        hits = [any(int(answers.sample_M[at]) == sample for at in order[:k]) for order in orders]
        total += sum(hits) / len(hits)
    return 100 * total / len(queries.sample_M)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_recall_is_the_mean_over_orders_of_equals(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that many similarities are equal; powers of two, so that they are equal to the bit.
    coarse = [torch.eye(3)[torch.randint(0, 3, (count,), generator=generator)] for count in (4, 6)]
    images, texts = embedded(coarse[0], torch.arange(4)), embedded(coarse[1], torch.tensor([0, 0, 1, 2, 3, 3]))
    for queries, answers in ((images, texts), (texts, images)):
        assert recalls(queries, answers, (k,))[f"recall@{k}"] == pytest.approx(by_hand(queries, answers, k))


def test_collapsed_embeddings_find_by_chance() -> None:
    same = embedded(torch.ones(50, 4), torch.arange(50))
    found = recalls(same, same, (1, 5))
    assert found["recall@1"] == pytest.approx(2)
    assert found["recall@5"] == pytest.approx(10)
    assert found["median_rank"] == pytest.approx(25.5)


def test_each_its_own() -> None:
    z_ND = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    one = embedded(z_ND, torch.arange(30))
    assert recalls(one, one, (1,)) == {"recall@1": 100.0, "median_rank": 1.0}
    away = embedded(z_ND.roll(1, 0), torch.arange(30))
    assert recalls(one, away, (1,))["recall@1"] == 0
