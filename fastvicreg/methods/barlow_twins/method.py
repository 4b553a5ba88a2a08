"""Barlow Twins: the cross-correlation of two views' projections is pulled to the identity matrix.

Shape suffixes: B this process's batch, M the batch of all processes, N any batch, D projection width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, ParamGroup, Terms
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.embeddings import batch_ranks, gathered, wide
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.two_views import Projections, TwoViews

EPS = 1e-5
"""Of the batch norm, without scale and offset, that the released code standardises by."""


class Correlation(NamedTuple):
    """The loss's two sums, unweighted and with gradient."""

    diagonal: Tensor
    off_diagonal: Tensor


class BarlowTwins(TwoViews):
    """As facebookresearch/barlowtwins's main.py, but that the gradient does not shrink with the number of processes.

    There the D x D matrix is all-reduced outside of autograd, which leaves 1/W of the gradient on W processes; LARS
    hides that for weights, not for biases. Here W processes have one process's gradient.
    """

    title = "Barlow Twins"

    def __init__(self, encoder: Encoder, config: BarlowTwinsConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = self.new_projector(encoder.features, config.projector, config)
        columns = Column("diagonal", "diag"), Column("off_diagonal", "off", scale="log")
        super().__init__(encoder, projector, config, *columns, impl=impl)

    @staticmethod
    def new_projector(features: int, widths: tuple[int, ...], config: BarlowTwinsConfig) -> nn.Sequential:
        """No layer has a bias."""
        return mlp(features, widths, hidden_bias=False)

    def loss(self, embeddings: Projections, targets: None) -> Terms:
        """The weighted sum; ``diagonal`` and ``off_diagonal`` are the whole batch's in every process."""
        za_BD, zb_BD = embeddings
        ranks = batch_ranks(self.process_group)
        with without_autocast(za_BD.device.type):
            za_MD, zb_MD = gathered(wide(za_BD), ranks), gathered(wide(zb_BD), ranks)
            sums = correlation_sums(za_MD, zb_MD)
        total = self.config.loss_scale * (sums.diagonal + self.config.redundancy * sums.off_diagonal)
        parts = {name: value.detach() for name, value in sums._asdict().items()}
        return self.terms(total, parts, za_BD, zb_BD)

    def param_groups(self) -> list[ParamGroup]:
        """Biases and norms have a learning rate of their own (main.py, --learning-rate-biases)."""
        scale = self.config.lr_scale_1d
        return [group if group.adapted else group._replace(lr_scale=scale) for group in super().param_groups()]


def correlation_sums(
    za_ND: Tensor, zb_ND: Tensor, *, form: Literal["auto", "correlation", "gram"] = "auto"
) -> Correlation:
    """``sum_i (C_ii - 1)^2`` and ``sum_{i != j} C_ij^2`` of ``C = A^T B / N``, the views standardised to A and B.

    Standardised with the biased variance and eps 1e-5, as batch norm does. "correlation" makes C, in N D^2; "gram"
    N x N matrices in N^2 D, for N < D ("auto" chooses): with the Frobenius product <X, Y> = tr(X^T Y),

        N^2 ||C||^2 = tr(B^T A A^T B) = tr(A A^T B B^T) = <A A^T, B B^T>,

    since both factors are symmetric, and the diagonal C_ii = sum_n A_ni B_ni / N needs no matrix product. What is off
    the diagonal is the difference ||C||^2 - sum_i C_ii^2. Autograd's backward of that has N x N products as well.
    """
    n, d = za_ND.shape
    a_ND, b_ND = standardised(za_ND), standardised(zb_ND)
    if form == "gram" or (form == "auto" and n < d):
        diagonal_D = (a_ND * b_ND).sum(0) / n
        squares = ((a_ND @ a_ND.T) * (b_ND @ b_ND.T)).sum() / n**2
        return Correlation((diagonal_D - 1).square().sum(), squares - diagonal_D.square().sum())
    c_DD = a_ND.T @ b_ND / n
    off_diagonal = c_DD.flatten()[1:].view(d - 1, d + 1)[:, :-1]
    return Correlation((c_DD.diagonal() - 1).square().sum(), off_diagonal.square().sum())


def standardised(z_ND: Tensor) -> Tensor:
    """Columns of mean 0 and biased variance 1, but for eps."""
    centred_ND = z_ND - z_ND.mean(0)
    return centred_ND * torch.rsqrt(centred_ND.square().mean(0) + EPS)
