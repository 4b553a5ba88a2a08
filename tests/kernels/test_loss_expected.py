"""The covariance term's expected value and least value, by simulation and by embeddings that reach them.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvicreg.kernels.loss import expected_covariance, vicreg_loss


def covariance_term(za_ND: Tensor, zb_ND: Tensor) -> float:
    return vicreg_loss(za_ND, zb_ND, impl="reference").covariance.item()


def tight_frame(n: int, d: int, generator: torch.Generator) -> Tensor:
    """N centred samples whose D columns have unit variance and as equal eigenvalues as their rank allows."""
    rank = n - 1
    square_NN = torch.randn(n, n, generator=generator, dtype=torch.float64)
    square_NN[:, 0] = 1  # the other orthonormal columns are then centred
    basis_NR = torch.linalg.qr(square_NN).Q[:, 1:]
    turns = [torch.randn(rank, rank, generator=generator, dtype=torch.float64) for _ in range(-(-d // rank))]
    columns_ND = torch.cat([basis_NR @ torch.linalg.qr(turn).Q for turn in turns], dim=1)[:, :d]
    return rank**0.5 * columns_ND


@pytest.mark.parametrize(("n", "d"), [(2, 1), (5, 12), (64, 64), (256, 8192)])
def test_unit_variances_give_the_closed_forms(n: int, d: int):
    ones_D = torch.ones(d, dtype=torch.float64)
    independent, minimum = expected_covariance(n, ones_D, ones_D)
    assert independent.item() == pytest.approx(2 * (d - 1) / (n - 1), rel=1e-12)
    assert minimum.item() == pytest.approx(2 * max(0.0, d / (n - 1) - 1), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(8, 40), (40, 8)])
def test_independent_columns_average_to_the_expectation(n: int, d: int):
    generator = torch.Generator().manual_seed(3)
    deviation_D = torch.linspace(0.5, 2.0, d, dtype=torch.float64)
    found = []
    for _ in range(400):
        za_ND, zb_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64) * deviation_D for _ in range(2))
        found.append(covariance_term(za_ND, 0.5 * zb_ND))
    independent, minimum = expected_covariance(n, deviation_D**2, (0.5 * deviation_D) ** 2)
    mean, deviation = torch.tensor(found).mean(), torch.tensor(found).std() / len(found) ** 0.5
    assert abs(mean - independent) < 4 * deviation
    assert deviation < 0.03 * independent
    assert minimum < independent


@pytest.mark.parametrize(("n", "d"), [(5, 8), (9, 32), (9, 8), (12, 4)])
def test_tight_frames_reach_the_minimum(n: int, d: int):
    generator = torch.Generator().manual_seed(n)
    za_ND, zb_ND = tight_frame(n, d, generator), 0.7 * tight_frame(n, d, generator)
    _, minimum = expected_covariance(n, za_ND.var(dim=0), zb_ND.var(dim=0))
    assert za_ND.var(dim=0).allclose(torch.ones(d, dtype=torch.float64))
    assert covariance_term(za_ND, zb_ND) == pytest.approx(minimum.item(), abs=1e-12)


def test_no_embedding_lies_below_the_minimum():
    generator = torch.Generator().manual_seed(5)
    for n, d in ((3, 17), (6, 7), (16, 16), (30, 5)):
        za_ND, zb_ND = (torch.randn(n, d, generator=generator, dtype=torch.float64).exp() for _ in range(2))
        _, minimum = expected_covariance(n, za_ND.var(dim=0), zb_ND.var(dim=0))
        assert covariance_term(za_ND, zb_ND) >= minimum.item()


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="N >= 2 samples, got 1"):
        expected_covariance(1, torch.ones(3), torch.ones(3))
