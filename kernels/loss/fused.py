"""The loss on a GPU as four passes, whichever language they are in: statistics, matrix, terms, gradient.

With P = X X^T of the N < D centred, rounded embeddings X (else P = X^T X, the covariance (N - 1) times), the squares
of G = P / (N - 1) give the covariance term, and the gradient is a sum over one tile of P X: see ``gram``. P is
kept in the operand's own type for that second product: its diagonal apart, in fp32, the rest scaled by what the
matrix's trace allows, so that no half type overflows. Sums go by partial results in a fixed order, never by atomics:
a run repeats bit for bit.

Shape suffixes: N samples of this rank's batch, M of the global batch, D embedding width, P by Q the matrix that is
kept: N x M, or D x D; S partial sums. A leading 2: the two views.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastvicreg.kernels.loss.operators import Shape, Weights
from fastvicreg.kernels.loss.ranks import Ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

HALF_LIMIT = 32768.0
"""P's trace in a half type: off the diagonal no element exceeds half of it, as |ab| <= (aa + bb) / 2."""

LEAST_TRACE = 1e-30
"""Below it embeddings count as collapsed: the scale stays finite."""


class Kept(NamedTuple):
    """What forward leaves to backward; ``slope_2D`` is the factor of X in ``size`` times the gradient."""

    x_2MD: Tensor
    product_2PQ: Tensor
    diagonal_2P: Tensor
    slope_2D: Tensor
    trace_2: Tensor


class Factors(NamedTuple):
    """Of the gradient's parts: push P X + slope X + pull (z - other); own rows of X begin with ``first_row``."""

    push: float
    pull: float
    first_row: int
    gram: bool


class Passes(Protocol):
    """The kernels, in one language; all tensors contiguous and on one device."""

    def statistics(self, za: Tensor, zb: Tensor, mean_2D: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of two views' rows: (x_2MD centred and rounded to their type, power_2D, distance_S).

        ``power_2D`` is fp32, the columns' sums of squares of ``x_2MD`` as rounded; ``distance_S`` partial sums of
        (za - zb)^2. Centred by the columns' means, or by ``mean_2D`` (fp32) where it is given.
        """
        ...

    def matrix(
        self, x_2MD: Tensor, trace_2: Tensor, m: int, ranks: Ranks, *, gram: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(product_2PQ scaled and without its diagonal, diagonal_2P in fp32, squares_2S).

        ``squares_2S`` are partial sums over the squares of P / (m - 1), of this rank's rows where ``gram`` (its
        diagonal among them), else of all ranks' sum and off the diagonal; the diagonal is empty where not ``gram``.
        """
        ...

    def terms(
        self,
        power_2D: Tensor,
        squares_2S: Tensor,
        distance_S: Tensor,
        weights: Weights,
        m: int,
        size: int,
        *,
        gram: bool,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """((total, invariance, variance, covariance), slope_2D): the factor of X in ``size`` times the gradient."""
        ...

    def gradients(
        self, scale: Tensor, za_ND: Tensor, zb_ND: Tensor, kept: Kept, factors: Factors, views: range
    ) -> list[Tensor]:
        """``scale`` times the gradient of own rows, in the embeddings' type, of each of the views."""
        ...


def forward(
    passes: Passes, za_ND: Tensor, zb_ND: Tensor, weights: Weights, ranks: Ranks
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Tensor]]:
    """As ``operators.Method``."""
    n, d = za_ND.shape
    m = n * ranks.size
    gram = m < d
    rows, mean_2D = (za_ND.contiguous(), zb_ND.contiguous()), None
    if gram:
        rows = ranks.gathered(*rows)
    elif ranks.size > 1:
        mean_2D = ranks.add(torch.stack([z_ND.mean(0, dtype=torch.float32) for z_ND in rows])) / ranks.size

    x_2MD, power_2D, distance_S = passes.statistics(*rows, mean_2D)
    if mean_2D is not None:
        power_2D, distance_S = ranks.add(power_2D), ranks.add(distance_S)
    trace_2 = power_2D.sum(dim=1)
    product_2PQ, diagonal_2P, squares_2S = passes.matrix(x_2MD, trace_2, m, ranks, gram=gram)
    if gram and ranks.size > 1:
        squares_2S = ranks.add(squares_2S.sum(dim=1, keepdim=True))
    terms, slope_2D = passes.terms(power_2D, squares_2S, distance_S, weights, m, ranks.size, gram=gram)
    return terms, [*Kept(x_2MD, product_2PQ, diagonal_2P, slope_2D, trace_2)]


def backward(
    passes: Passes,
    scale: Tensor,
    za_ND: Tensor,
    zb_ND: Tensor,
    kept: list[Tensor],
    weights: Weights,
    ranks: Ranks,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """As ``operators.Method``."""
    n, d = za_ND.shape
    m = n * ranks.size
    gram = m < d
    za_ND, zb_ND = za_ND.contiguous(), zb_ND.contiguous()

    factors = Factors(
        push=4 * weights.covariance * ranks.size / (d * (m - 1) ** 2),
        pull=2 * weights.invariance / (n * d),
        first_row=ranks.rank * n if gram else 0,
        gram=gram,
    )
    views = range(0 if needs[0] else 1, 2 if needs[1] else 1)
    found = dict(zip(views, passes.gradients(scale, za_ND, zb_ND, Kept(*kept), factors, views), strict=True))
    return found.get(0), found.get(1)


def kept_shapes(n: int, d: int, dtype: torch.dtype, ranks: Ranks) -> list[tuple[Shape, torch.dtype]]:
    """As ``operators.Method``."""
    m = n * ranks.size
    gram = m < d
    return [
        ((2, m if gram else n, d), dtype),
        ((2, n, m) if gram else (2, d, d), dtype),
        ((2, n) if gram else (2, 0), torch.float32),
        ((2, d), torch.float32),
        ((2,), torch.float32),
    ]


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why no GPU's passes can run on embeddings of that type on that type of device; "" where they can."""
    if dtype not in DTYPES:
        return f"it takes float32, bfloat16 and float16 embeddings, not {str(dtype).removeprefix('torch.')}"
    if device != "cuda":
        return f"it needs tensors on a CUDA device, these are on {device}"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 8 else f"it needs a GPU of architecture sm_80 or later, this one is sm_{major}{minor}"
