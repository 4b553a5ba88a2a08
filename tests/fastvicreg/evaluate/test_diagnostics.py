"""Diagnostics agree with their formulas written out, and say what they should of representations that are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.evaluate import diagnostics
from fastvicreg.evaluate.diagnostics import alpha_req, lidar, rank_me


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rankme_counts_the_dimensions_in_use() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64))[0]
    for rank in (1, 5, 64):
        coordinates = torch.linalg.qr(torch.randn(200, rank))[0]
        assert rank_me(coordinates @ basis[:rank]) == pytest.approx(rank, rel=0.01)
    assert rank_me(100 * basis) == pytest.approx(rank_me(basis))


@pytest.mark.parametrize(("n", "d"), [(50, 7), (7, 50)])
def test_the_spectrum_is_the_covariances(n: int, d: int) -> None:
    z_ND = noise(n, d) * torch.linspace(0.1, 3, d)
    expected = torch.linalg.eigvalsh(torch.cov(z_ND.T)).flip(0)[: min(n, d)]
    assert torch.allclose(diagnostics.spectrum(z_ND), expected, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_a_power_law_is_found_by_its_decay(alpha: float) -> None:
    rank = torch.arange(1, 201, dtype=torch.float64)
    eigenvalues = 7 * rank**-alpha
    eigenvalues[:3] *= 5  # the first three are no part of the fit
    found = alpha_req(eigenvalues)
    assert found is not None
    assert (found.first, found.last) == (4, 100)
    assert found.alpha == pytest.approx(alpha)
    assert math.exp(found.offset) == pytest.approx(7)


def test_the_fit_weights_each_rank_by_its_inverse() -> None:
    eigenvalues = noise(60).abs().sort(descending=True).values
    found = alpha_req(eigenvalues)
    rank = torch.arange(4, 61, dtype=torch.float64)
    design = torch.stack([-rank.log(), torch.ones_like(rank)], 1) / rank.sqrt()[:, None]
    expected = torch.linalg.lstsq(design, (eigenvalues[3:].log() / rank.sqrt())[:, None]).solution
    assert found is not None
    assert (found.alpha, found.offset) == pytest.approx(tuple(expected.flatten().tolist()))


def test_too_few_eigenvalues_have_no_power_law() -> None:
    assert alpha_req(torch.ones(10, dtype=torch.float64)) is None
    assert alpha_req(torch.zeros(100, dtype=torch.float64)) is None
    assert alpha_req(torch.cat([torch.ones(9), torch.zeros(91)])) is None


@pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20)])
def test_lidar_is_the_papers(n: int, d: int) -> None:
    z_NQD, delta = noise(n, 3, d) + 2 * noise(n, 1, d, seed=1), 1e-2
    mean_ND = z_NQD.mean(1)
    between, within = torch.cov(mean_ND.T), torch.zeros(d, d, dtype=torch.float64)
    for image, view in itertools.product(range(n), range(3)):
        away = z_NQD[image, view] - mean_ND[image]
        within += torch.outer(away, away) / (n * 2)
    values, vectors = torch.linalg.eigh(within + delta * torch.eye(d))
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    share = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0) + 1e-8
    share /= share.sum()
    assert lidar(z_NQD, delta=delta) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-9)


def test_lidar_counts_the_dimensions_that_tell_images_apart() -> None:
    images = torch.zeros(200, 1, 16, dtype=torch.float64)
    images[..., :5] = 10 * torch.linalg.qr(noise(200, 5))[0][:, None]
    assert lidar(images + 1e-3 * noise(200, 10, 16, seed=1)) == pytest.approx(5, rel=0.02)
    with pytest.raises(ValueError, match="1 images of 4 views"):
        lidar(noise(1, 4, 3))


def test_correlation_of_what_is_constant_is_none() -> None:
    z_ND = noise(30, 4)
    z_ND[:, 2] = 3.0
    found = diagnostics.correlation(z_ND)
    kept = [0, 1, 3]
    assert torch.allclose(found[kept][:, kept], torch.corrcoef(z_ND[:, kept].T))
    assert not found[2].any()
    whole = torch.corrcoef(z_ND[:, kept].T).abs()
    assert diagnostics.off_diagonal(found[kept][:, kept]) == pytest.approx(float((whole.sum() - 3) / 6))
    assert diagnostics.off_diagonal(torch.ones(1, 1)) == 0


def test_alignment_is_the_mean_over_pairs_of_views() -> None:
    z_NQD = noise(5, 4, 3)
    unit = F.normalize(z_NQD, dim=2)
    expected = [
        sum(float((one[a] - one[b]).square().sum()) for a, b in itertools.combinations(range(4), 2)) / 6 for one in unit
    ]
    assert diagnostics.alignment(z_NQD).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="1 view"):
        diagnostics.alignment(z_NQD[:, :1])


def test_uniformity_is_the_authors() -> None:
    z_ND = noise(12, 3)
    unit = F.normalize(z_ND, dim=1)
    pairs = [math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(unit, 2)]
    assert diagnostics.uniformity(z_ND) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert diagnostics.uniformity(torch.ones(9, 5)) == 0


@pytest.mark.parametrize("n", [40, 6])
def test_cka_knows_rotations_and_strangers(n: int) -> None:
    x_ND, y_NE = noise(n, 10), noise(n, 8, seed=1)
    rotation = torch.linalg.qr(noise(10, 10, seed=2))[0]
    assert diagnostics.linear_cka(x_ND, 3 * x_ND @ rotation + 5) == pytest.approx(1)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    gram_x, gram_y = (centre @ z @ z.T @ centre for z in (x_ND, y_NE))
    hsic = [float((a * b).sum()) for a, b in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))]
    assert diagnostics.linear_cka(x_ND, y_NE) == pytest.approx(hsic[0] / math.sqrt(hsic[1] * hsic[2]))
    with pytest.raises(ValueError, match="compare the same"):
        diagnostics.linear_cka(x_ND, y_NE[1:])
