"""Two views' embeddings in fp64 that the published losses' own code was run on, and the norms of its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

NEAR = 1e-9


def embeddings() -> tuple[Tensor, Tensor]:
    """(za, zb), 16 x 4: za_ij = sin(.7 i + 1.3 j + .1 i j), zb = za + .3 cos(.5 i - .9 j); both want a gradient."""
    i, j = torch.arange(16.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    za = (0.7 * i + 1.3 * j + 0.1 * i * j).sin()
    zb = za + 0.3 * (0.5 * i - 0.9 * j).cos()
    return za.requires_grad_(), zb.requires_grad_()


def assert_vector(loss: Callable[[Tensor, Tensor], Tensor], value: float, norm_a: float, norm_b: float) -> None:
    """``loss``'s value and the norms of its gradients, to 1e-9."""
    za, zb = embeddings()
    total = loss(za, zb)
    total.backward()
    assert float(total.detach()) == pytest.approx(value, abs=NEAR)
    for z, norm in ((za, norm_a), (zb, norm_b)):
        assert float(0 if z.grad is None else z.grad.norm()) == pytest.approx(norm, abs=NEAR)
