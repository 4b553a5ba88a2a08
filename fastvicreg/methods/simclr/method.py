"""SimCLR: each view is told from all other images' views of the batch by its cosine to the image's other view.

Shape suffixes: B this process's batch, M the batch of all processes, D projection width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Spread, Terms, by_dimension
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.embeddings import batch_ranks, gathered, spread_parts, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.regularize import columns_of, regularized
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.views import each_view, expect_two


class Embeddings(NamedTuple):
    """Both views' projections."""

    za_BD: Tensor
    zb_BD: Tensor


class SimCLR(nn.Module):
    """As google-research/simclr's objective.py and model_util.py."""

    def __init__(self, encoder: Encoder, config: SimCLRConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        super().__init__()
        norm = config.batch_norm
        self.encoder = encoder
        self.projector = mlp(encoder.features, config.projector, hidden_bias=False, last_bias=not norm, batch_norm=norm)
        if norm:
            last = nn.BatchNorm1d(config.projector[-1])
            last.bias.requires_grad_(False)  # a scale without an offset, as the released code's last one
            self.projector.append(last)
        self.config, self.impl = config, impl
        self.columns = (
            Column("contrast", "nce"),
            Column("projection_std", "std", {"healthy": "projection_std_healthy"}),
            *columns_of(config),
        )
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.get_submodule("encoder")}

    @property
    def spread(self) -> Spread:
        """Unit vectors that point everywhere have a standard deviation of 1/sqrt(D)."""
        temperature, cause = self.config.temperature, ""
        if temperature > 1:
            cause = f"--temperature {temperature:g} makes all images alike to the loss: .1 to .5 is published"
        return Spread("projection_std", self.config.projector[-1] ** -0.5, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        expect_two(views, "SimCLR")
        features = each_view(self.encoder, views)
        za_BD, zb_BD = each_view(self.projector, features)
        return Embeddings(za_BD, zb_BD)

    def target(self, views: tuple[Tensor, ...]) -> None:
        """Both branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """NT-Xent of this process's anchors against all processes' views; ``contrast`` is the mean over anchors."""
        za_BD, zb_BD = embeddings
        with without_autocast(za_BD.device.type):
            contrast = nt_xent(za_BD, zb_BD, self.config.temperature, batch_ranks(self.process_group))
        total = 2 * contrast if self.config.loss_form == "official" else contrast
        terms = Terms(total, {"contrast": contrast.detach(), **spread_parts(za_BD, zb_BD)})
        return regularized(terms, self.config, za_BD, zb_BD, impl=self.impl, group=self.process_group)

    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """There is no target network to move."""

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.projector)]


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
