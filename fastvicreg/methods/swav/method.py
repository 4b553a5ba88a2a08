"""SwAV: each view predicts how the other is assigned to prototypes, which the batch shares evenly.

Shape suffixes: B this process's batch, D projection width, P prototypes.
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
from fastvicreg.methods.embeddings import batch_ranks, spread_parts, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.regularize import columns_of, regularized
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.views import each_view, expect_two


class Embeddings(NamedTuple):
    """Both views' projections."""

    za_BD: Tensor
    zb_BD: Tensor


class SwAV(nn.Module):
    """As facebookresearch/swav's main_swav.py on two views of one size, without its queue for small batches."""

    updates: Tensor

    def __init__(self, encoder: Encoder, config: SwAVConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.features, config.projector, last_bias=True, batch_norm=config.batch_norm)
        self.prototypes = nn.Linear(config.projector[-1], config.prototypes, bias=False)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.config, self.impl = config, impl
        self.columns = (
            Column("assignment", "swap"),
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
        config, cause = self.config, ""
        if config.sharpness >= config.temperature:
            cause = (
                f"--sharpness {config.sharpness:g} is not below --temperature {config.temperature:g}, so that even "
                "assignments are right everywhere: .05 and .1 are published"
            )
        return Spread("projection_std", config.projector[-1] ** -0.5, cause)

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """The learning rate is all that varies."""
        return {}

    def embed(self, views: tuple[Tensor, ...]) -> Embeddings:
        """Two views, each (B, C, H, W). ``UserError`` for another number of them."""
        expect_two(views, "SwAV")
        features = each_view(self.encoder, views)
        za_BD, zb_BD = each_view(self.projector, features)
        return Embeddings(za_BD, zb_BD)

    def target(self, views: tuple[Tensor, ...]) -> None:
        """Both branches are trained: there is no target network."""

    def loss(self, embeddings: Embeddings, targets: None) -> Terms:
        """Mean of both directions' cross-entropies of prediction and assignment."""
        za_BD, zb_BD = embeddings
        config = self.config
        with without_autocast(za_BD.device.type):
            weight_PD = self.prototypes.weight
            # The gradient of the first updates is dropped; the value is the weight's in any case.
            learns = (self.updates >= config.freeze_prototypes).to(weight_PD.dtype)
            weight_PD = weight_PD.detach() + learns * (weight_PD - weight_PD.detach())
            total = swapped_prediction(
                za_BD,
                zb_BD,
                weight_PD,
                temperature=config.temperature,
                sharpness=config.sharpness,
                iterations=config.sinkhorn,
                ranks=batch_ranks(self.process_group),
            )
        terms = Terms(total, {"assignment": total.detach(), **spread_parts(za_BD, zb_BD)})
        return regularized(terms, config, za_BD, zb_BD, impl=self.impl, group=self.process_group)

    @torch.no_grad()
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The prototypes go back to length 1, before they are next used."""
        if finite is False:
            return
        weight_PD = self.prototypes.weight
        unit_PD = F.normalize(weight_PD, dim=1)
        weight_PD.copy_(torch.where(finite, unit_PD, weight_PD) if isinstance(finite, Tensor) else unit_PD)
        self.updates += finite

    def param_groups(self) -> list[ParamGroup]:
        return [*self.encoder.param_groups(), *by_dimension(self.projector), *by_dimension(self.prototypes)]


def swapped_prediction(
    za_BD: Tensor,
    zb_BD: Tensor,
    prototypes_PD: Tensor,
    *,
    temperature: float = 0.1,
    sharpness: float = 0.05,
    iterations: int = 3,
    ranks: Ranks | None = None,
) -> Tensor:
    """Mean over both directions and the batch of ``-sum q log softmax(s / temperature)``, q the other view's codes."""
    scores = [unit(z_BD) @ prototypes_PD.to(unit(z_BD).dtype).T for z_BD in (za_BD, zb_BD)]
    qa_BP, qb_BP = (sinkhorn(s_BP.detach(), sharpness, iterations, ranks or Ranks()) for s_BP in scores)
    sa_BP, sb_BP = (F.log_softmax(s_BP / temperature, dim=1) for s_BP in scores)
    return -((qa_BP * sb_BP).sum(1).mean() + (qb_BP * sa_BP).sum(1).mean()) / 2


@torch.no_grad()
def sinkhorn(scores_BP: Tensor, sharpness: float, iterations: int, ranks: Ranks) -> Tensor:
    """Codes (B, P), each of sum 1, that give every prototype nearly the same share of all processes' rows.

    main_swav.py's distributed_sinkhorn: ``exp(scores / sharpness)``, then prototypes and rows scaled in turn to equal
    sums. Scores are cosines: 1 is taken from them first, which cancels, so that no exponential overflows.
    """
    q_BP = ((scores_BP - 1) / sharpness).exp()
    rows = len(q_BP) * ranks.size
    for _ in range(iterations):
        q_BP = q_BP / (ranks.add(q_BP.sum(0)) * q_BP.shape[1])
        q_BP = q_BP / (q_BP.sum(1, keepdim=True) * rows)
    return q_BP * rows
