"""W-MSE: the distance of two views' projections after each is whitened over slices of the batch.

Shape suffixes: B batch, N rows of a slice, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, Schedule, Terms
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.methods.embeddings import processes, unit, wide
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.two_views import Projections, TwoViews
from fastvicreg.methods.wmse.config import WMSEConfig


class WMSE(TwoViews):
    """As htdt/self-supervised's w_mse.py, with gradients into both views and through the whitening.

    The batch is whitened in slices of ``w_size`` rows, each process's rows by themselves. The plan has shuffled the
    rows already, so that the first cut takes them as they come; where ``w_iter`` asks for more, these are random, by a
    counter that a checkpoint keeps. Rows that do not fill a slice are left out.
    """

    title = "W-MSE"
    cuts: Tensor

    def __init__(self, encoder: Encoder, config: WMSEConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = self.new_projector(encoder.features, config.projector, config)
        super().__init__(encoder, projector, config, Column("whitened", "wmse"), impl=impl)
        self.register_buffer("cuts", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def new_projector(features: int, widths: tuple[int, ...], config: WMSEConfig) -> nn.Sequential:
        """Every layer has a bias."""
        return mlp(features, widths, last_bias=True, batch_norm=config.batch_norm)

    def likely_cause(self) -> str:
        """Of the projections before they are whitened."""
        if self.config.w_eps <= 0.5:
            return ""
        return f"--w-eps {self.config.w_eps:g} hardly whitens at all: 0 is published"

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies. ``UserError`` for slices above a process's batch."""
        own = horizon.batch_size // processes()
        if self.config.w_size > own:
            raise UserError(
                f"--w-size {self.config.w_size} is above the batch of {own} that a process has: give --w-size {own} "
                "(with a --projector of half its width at most), or a larger --batch-size."
            )
        return {}

    def loss(self, embeddings: Projections, targets: None) -> Terms:
        """Mean over cuts and slices of 2 - 2 cos of the whitened rows; NaN where a slice cannot be whitened."""
        za_BD, zb_BD = embeddings
        config = self.config
        with without_autocast(za_BD.device.type):
            distances = []
            for cut in range(config.w_iter):
                order_B = permutation(len(za_BD), self.cuts, cut) if cut else slice(None)
                distances.append(whitened_mse(za_BD[order_B], zb_BD[order_B], config.w_size, config.w_eps))
        total = torch.stack(distances).mean()
        return self.terms(total, {"whitened": total.detach()}, za_BD, zb_BD)

    @torch.no_grad()
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The next step is cut otherwise."""
        self.cuts += finite


def whitened_mse(za_BD: Tensor, zb_BD: Tensor, w_size: int, eps: float = 0.0) -> Tensor:
    """Mean over rows of ``2 - 2 cos`` after each view's slices of ``w_size`` rows are whitened."""
    whole = len(za_BD) // w_size
    total = za_BD.new_zeros((), dtype=wide(za_BD).dtype)
    for number in range(whole):
        rows = slice(number * w_size, (number + 1) * w_size)
        a_ND, b_ND = unit(whiten(za_BD[rows], eps)), unit(whiten(zb_BD[rows], eps))
        total = total + (2 - 2 * (a_ND * b_ND).sum(1)).mean()
    return total / whole


def whiten(z_ND: Tensor, eps: float = 0.0) -> Tensor:
    """``L^-1 (z - mean)`` with L the Cholesky factor of ``(1 - eps) S + eps I``, S the unbiased covariance.

    NaN throughout where that is not positive definite: cholesky_ex tells without a wait for the device.
    """
    centred_ND = wide(z_ND) - wide(z_ND).mean(0)
    n, d = centred_ND.shape
    covariance_DD = centred_ND.T @ centred_ND / (n - 1)
    identity_DD = torch.eye(d, dtype=centred_ND.dtype, device=centred_ND.device)
    factor_DD, failed = torch.linalg.cholesky_ex((1 - eps) * covariance_DD + eps * identity_DD)
    whitened_ND = torch.linalg.solve_triangular(factor_DD, centred_ND.T, upper=False).T
    return torch.where(failed == 0, whitened_ND, torch.nan)


def permutation(count: int, step: Tensor, cut: int) -> Tensor:
    """A permutation of ``count`` by (step, cut), made where ``step`` is: the order of hashes (lowbias32)."""
    key = torch.arange(count, device=step.device) + (step * 8191 + cut) * 0x9E3779B1
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        key = key & 0xFFFFFFFF
        key = (key ^ (key >> shift)) * factor
    return (key & 0xFFFFFFFF).argsort(stable=True)
