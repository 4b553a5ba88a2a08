"""SimCLR: each view is told from all other images' views of the batch by its cosine to the image's other view.

Shape suffixes: B this process's batch, M the batch of all processes, D projection width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Terms
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.embeddings import batch_ranks, gathered, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.two_views import Projections, TwoViews


class SimCLR(TwoViews):
    """As google-research/simclr's objective.py and model_util.py."""

    title = "SimCLR"

    def __init__(self, encoder: Encoder, config: SimCLRConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = self.new_projector(encoder.features, config.projector, config)
        super().__init__(encoder, projector, config, Column("contrast", "nce"), impl=impl)

    @staticmethod
    def new_projector(features: int, widths: tuple[int, ...], config: SimCLRConfig) -> nn.Sequential:
        """Ends in a batch norm of a scale without an offset, as the released code's."""
        norm = config.batch_norm
        projector = mlp(features, widths, hidden_bias=False, last_bias=not norm, batch_norm=norm)
        if norm:
            last = nn.BatchNorm1d(widths[-1])
            last.bias.requires_grad_(False)
            projector.append(last)
        return projector

    def likely_cause(self) -> str:
        if self.config.temperature <= 1:
            return ""
        return f"--temperature {self.config.temperature:g} makes all images alike to the loss: .1 to .5 is published"

    def loss(self, embeddings: Projections, targets: None) -> Terms:
        """NT-Xent of this process's anchors against all processes' views; ``contrast`` is the mean over anchors."""
        za_BD, zb_BD = embeddings
        with without_autocast(za_BD.device.type):
            contrast = nt_xent(za_BD, zb_BD, self.config.temperature, batch_ranks(self.process_group))
        total = 2 * contrast if self.config.loss_form == "official" else contrast
        return self.terms(total, {"contrast": contrast.detach()}, za_BD, zb_BD)


def nt_xent(za_BD: Tensor, zb_BD: Tensor, temperature: float, ranks: Ranks | None = None) -> Tensor:
    """Mean over 2B anchors of the cross-entropy of cosines / ``temperature`` with 2M - 1 views, the other view's first.

    google-research/simclr's objective.py adds the two views' means: twice this. Among several processes each has its
    own rows' anchors against all rows; see ``gathered`` for the gradient's scale.
    """
    ranks = ranks or Ranks()
    ha_BD, hb_BD = unit(za_BD), unit(zb_BD)
    ha_MD, hb_MD = gathered(ha_BD, ranks), gathered(hb_BD, ranks)
    b, m = len(ha_BD), len(ha_MD)
    logits = torch.cat((ha_BD, hb_BD)) @ torch.cat((ha_MD, hb_MD)).T / temperature
    row_B = torch.arange(b, device=logits.device) + ranks.rank * b
    itself, other = torch.cat((row_B, row_B + m)), torch.cat((row_B + m, row_B))
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    return F.cross_entropy(logits, other)
