"""Figures of representations without labels: how many dimensions are used, how evenly, how alike an image's views are.

Shape suffixes: N samples, Q views of each, D width. All are computed in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FIT = (4, 100)
"""Ranks of the eigenvalues that a power law is fitted to, as the authors' code takes them (fastssl, 3 to 99 from 0)."""
LEAST_FIT = 8
"""Eigenvalues that a fit needs."""


@dataclass(frozen=True)
class PowerLaw:
    """eigenvalue = exp(``offset``) * rank ^ -``alpha``."""

    alpha: float
    offset: float
    first: int
    last: int
    """Ranks that it was fitted to, counted from 1."""


def rank_me(features_NF: Tensor) -> float:
    """RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values.

    Between 1 (collapse to a line) and min(N, F). Blind to scale: read it beside the standard deviation.
    """
    features_NF = features_NF.double()
    # Of the smaller Gram matrix: an SVD of N x F would take minutes at the size of an ImageNet split.
    narrow = features_NF.shape[1] <= features_NF.shape[0]
    gram = features_NF.T @ features_NF if narrow else features_NF @ features_NF.T
    return entropy_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt())


def entropy_rank(singular: Tensor) -> float:
    """RankMe of a matrix by its singular values."""
    share = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def spectrum(z_ND: Tensor) -> Tensor:
    """Eigenvalues of the covariance of ``z_ND``, largest first: min(N, D) of them, at least 0."""
    centred_ND = z_ND.double() - z_ND.double().mean(0)
    narrow = z_ND.shape[1] <= z_ND.shape[0]
    product = centred_ND.T @ centred_ND if narrow else centred_ND @ centred_ND.T
    return torch.linalg.eigvalsh(product).flip(0).clamp_min(0) / max(1, len(z_ND) - 1)


def alpha_req(eigenvalues: Tensor) -> PowerLaw | None:
    """alpha-ReQ (Agrawal et al. 2022): decay of the covariance's eigenvalues over their rank; best near 1.

    Least squares of log eigenvalue on log rank, weighted by 1 / rank, over ``FIT``; the ranges are the authors' code's,
    the paper gives none. None where there are fewer than ``LEAST_FIT`` eigenvalues above rounding in it.
    """
    found = eigenvalues.double()
    used = int((found > found[0] * 1e-12).sum()) if len(found) and found[0] > 0 else 0
    first, last = FIT[0], min(FIT[1], used)
    if last - first + 1 < LEAST_FIT:
        return None
    rank = torch.arange(first, last + 1, dtype=torch.float64)
    x, y, weight = rank.log(), found[first - 1 : last].log(), 1 / rank
    x_mean, y_mean = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean).square()).sum()
    return PowerLaw(float(-slope), float(y_mean - slope * x_mean), first, last)


def lidar(z_NQD: Tensor, *, delta: float = 1e-4) -> float:
    """LiDAR (Thilak et al. 2023, eqs. 1-4): the rank of what tells images apart, once their views' scatter is whitened.

    Each image is a class of Q augmented views: exp of the entropy of the eigenvalues of Sw^-1/2 Sb Sw^-1/2, with Sb the
    scatter of the images' means / (N - 1) and Sw that of the views about them / (N (Q - 1)), plus ``delta`` I. At most
    min(N - 1, D); the paper takes 1,000 images of 50 views, and 10 at least.

    ``ValueError`` for fewer than two images or views.
    """
    n, q, width = z_NQD.shape
    if n < 2 or q < 2:
        raise ValueError(f"{n} images of {q} views: give at least two of each.")
    mean_ND = z_NQD.double().mean(1)
    within_MD = (z_NQD.double() - mean_ND[:, None]).flatten(0, 1)
    identity = torch.eye(width, dtype=torch.float64, device=z_NQD.device)
    factor = torch.linalg.cholesky(within_MD.T @ within_MD / (n * (q - 1)) + delta * identity)
    # With W = L^-1 M^T, the eigenvalues of L^-1 Sb L^-T are those of W^T W too, and zeros: the smaller is decomposed.
    whitened_DN = torch.linalg.solve_triangular(factor, (mean_ND - mean_ND.mean(0)).T, upper=False)
    product = whitened_DN.T @ whitened_DN if n < width else whitened_DN @ whitened_DN.T
    found = torch.linalg.eigvalsh(product).clamp_min(0) / (n - 1)
    found = F.pad(found, (0, width - len(found)))
    share = (found + 1e-8) / (found + 1e-8).sum()
    return float(torch.exp(-(share * share.log()).sum()))


def correlation(z_ND: Tensor) -> Tensor:
    """The (D, D) correlation matrix; 0 beside a dimension that is constant."""
    z_ND = z_ND.double() - z_ND.double().mean(0)
    length_D = z_ND.norm(dim=0)
    unit_ND = torch.where(length_D > 0, z_ND / length_D.clamp_min(torch.finfo(torch.float64).tiny), 0)
    return unit_ND.T @ unit_ND


def off_diagonal(matrix_DD: Tensor) -> float:
    """Mean absolute value off the diagonal (VICReg, figure 5); 0 for one dimension."""
    width = len(matrix_DD)
    if width < 2:
        return 0.0
    return float((matrix_DD.abs().sum() - matrix_DD.diagonal().abs().sum()) / (width * (width - 1)))


def alignment(z_NQD: Tensor) -> Tensor:
    """Each image's mean squared distance of unit vectors of two of its views (Wang and Isola 2020): (N,), 0 to 4.

    ``ValueError`` for fewer than two views.
    """
    views = z_NQD.shape[1]
    if views < 2:
        raise ValueError(f"{views} view of each image: give at least two.")
    unit_NQD = F.normalize(z_NQD.double(), dim=2)
    # Of Q unit vectors of mean m, the mean over pairs of |x - y|^2 is 2 Q (1 - |m|^2) / (Q - 1).
    return 2 * views * (1 - unit_NQD.mean(1).square().sum(1)) / (views - 1)


def uniformity(z_ND: Tensor) -> float:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of unit vectors (Wang and Isola 2020); 0 on collapse, -4 at best.

    ``ValueError`` for fewer than two samples.
    """
    if len(z_ND) < 2:
        raise ValueError(f"{len(z_ND)} sample: give at least two.")
    return float(torch.pdist(F.normalize(z_ND.double(), dim=1)).square().mul(-2).exp().mean().log())


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same N samples (Kornblith et al. 2019, eq. 4).

    0: nothing in common; 1: equal up to rotation and scale. With fewer samples than dimensions it is biased upwards.

    ``ValueError`` where the samples' numbers differ; nan where either is constant.
    """
    if len(x_ND) != len(y_NE):
        raise ValueError(f"{len(x_ND)} and {len(y_NE)} samples: compare the same ones.")
    x_ND, y_NE = (each.double() - each.double().mean(0) for each in (x_ND, y_NE))
    if len(x_ND) < max(x_ND.shape[1], y_NE.shape[1]):
        gram_x, gram_y = x_ND @ x_ND.T, y_NE @ y_NE.T
        return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))
    return float((x_ND.T @ y_NE).square().sum() / ((x_ND.T @ x_ND).norm() * (y_NE.T @ y_NE).norm()))
