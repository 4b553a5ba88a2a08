"""What the covariance term should be: for independent embeddings, and at the least."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_covariance(
    n: int,
    *views_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """The covariance term (unweighted, twice the mean over views) that N samples of these column variances lead to.

    Returns two scalars: its expectation where the columns are independent, and a lower bound, since N centred
    samples span N - 1 dimensions at most (Cauchy-Schwarz over the covariance's eigenvalues). The bound is reached
    where no variance exceeds the N - 1 samples' share of their sum. For unit variances the two are
    2 (D - 1) / (N - 1) and 2 max(0, D / (N - 1) - 1).

    Raises ``ValueError`` for fewer than two samples.
    """
    if n < 2:
        raise ValueError(f"a covariance needs N >= 2 samples, got {n}")
    independent = [(v_D.sum().square() - v_D.square().sum()) / (len(v_D) * (n - 1)) for v_D in views_D]
    # Term by term, so that unit variances with D <= N - 1 give no negative rounding error.
    minimum = [(v_D.sum().square() / (n - 1) - v_D.square().sum()).clamp(min=0) / len(v_D) for v_D in views_D]
    sums = torch.stack(independent).sum(), torch.stack(minimum).sum()
    if len(views_D) == 2:
        return sums
    return 2 / len(views_D) * sums[0], 2 / len(views_D) * sums[1]
