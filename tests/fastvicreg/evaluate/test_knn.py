"""kNN over blocks equals kNN at once, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.evaluate import knn
from fastvicreg.evaluate.knn import knn_predict, knn_rank, nearest

MEMORY = """
import resource, torch
from fastvicreg.evaluate.knn import knn_rank
torch.set_num_threads(1)
torch.manual_seed(0)
bank, query, labels = torch.randn(200_000, 32), torch.randn(5_000, 32), torch.randint(0, 1000, (200_000,))
knn_rank(bank[:5000], labels[:5000], query[:50], (20,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
knn_rank(bank, labels, query, (10, 20, 100, 200))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def made(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bank, query = (torch.randn(n, 16, generator=generator) for n in (700, 90))
    return bank, torch.randint(0, 6, (700,), generator=generator), query


def at_once(bank: Tensor, labels: Tensor, query: Tensor, k: int, distance: str) -> Tensor:
    """The votes written out in fp64 over the whole matrix."""
    bank, query = bank.double(), query.double()
    if distance == "cosine":
        similarity = F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T
        weight = (similarity / 0.07).exp()
    else:
        similarity = -(query[:, None] - bank[None]).square().sum(2).sqrt()
        weight = 1 / (-similarity + 1e-5)
    near = similarity.topk(k, dim=1).indices
    votes = torch.zeros(len(query), 6, dtype=torch.float64)
    votes.scatter_add_(1, labels[near], weight.gather(1, near))
    return votes.topk(5, dim=1).indices


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("blocks", ["one", "many"])
def test_every_k_in_one_pass_equals_each_by_itself_at_once(
    distance: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, query = made()
    if blocks == "many":  # blocks smaller than k, and a last one of neither size
        monkeypatch.setattr(knn, "BANK_ELEMENTS", 16 * 64)
        monkeypatch.setattr(knn, "QUERIES", 17)
    ks = (1, 10, 20, 100)
    for k, top_MK in zip(ks, knn_rank(bank, labels, query, ks, distance=distance), strict=True):  # type: ignore[arg-type]
        expected = at_once(bank, labels, query, k, distance)
        assert torch.equal(top_MK[:, 0], expected[:, 0])
        if k == 100:  # with fewer votes several classes have none, in no order
            assert torch.equal(top_MK, expected)


def test_the_nearest_are_sorted_and_where_the_bank_has_them() -> None:
    bank, _, query = made()
    similarity_MK, index_MK = nearest(bank, query, 7, "euclidean")
    assert (similarity_MK.diff(dim=1) <= 0).all()
    torch.testing.assert_close(-similarity_MK, (query[:, None] - bank[index_MK]).square().sum(2).sqrt())
    itself, index = nearest(bank, bank[5:6], 1, "euclidean")
    assert index.item() == 5
    assert abs(itself.item()) < 1e-2


def test_one_k_is_what_the_library_function_predicts() -> None:
    bank, labels, query = made()
    (_, top_MK) = knn_rank(bank, labels, query, (10, 20))
    assert torch.equal(knn_predict(bank, labels, query), top_MK[:, 0])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("which", ["bank", "query"])
def test_a_feature_that_is_not_finite_predicts_nothing(which: str, distance: str) -> None:
    bank, labels, query = made()
    {"bank": bank, "query": query}[which][3, 5] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        knn_rank(bank, labels, query, (5,), distance=distance)  # type: ignore[arg-type]


def test_a_bank_has_a_label_for_each_sample() -> None:
    bank, labels, query = made()
    for count in (699, 701):
        with pytest.raises(ValueError, match=f"{count} labels of a bank of 700 samples"):
            knn_predict(bank, torch.cat([labels, labels])[:count], query)


@pytest.mark.slow
def test_the_peak_of_memory_is_the_stated_bound() -> None:
    """The matrix of similarities alone would take 4 GB; the bound is .4 GB and 12 bytes a query and neighbour."""
    found = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 400e6 + 12 * 5_000 * 200
