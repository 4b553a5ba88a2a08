"""SwAV: each view predicts how the other is assigned to prototypes, which the batch shares evenly.

Shape suffixes: B this process's batch, D projection width, P prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, ParamGroup, Terms, by_dimension
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.embeddings import batch_ranks, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.two_views import Projections, TwoViews


class SwAV(TwoViews):
    """As facebookresearch/swav's main_swav.py on two views of one size, without its queue for small batches."""

    title = "SwAV"
    updates: Tensor

    def __init__(self, encoder: Encoder, config: SwAVConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = mlp(encoder.features, config.projector, last_bias=True, batch_norm=config.batch_norm)
        super().__init__(encoder, projector, config, Column("assignment", "swap"), impl=impl)
        self.prototypes = nn.Linear(config.projector[-1], config.prototypes, bias=False)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def likely_cause(self) -> str:
        config = self.config
        if config.sharpness < config.temperature:
            return ""
        return (
            f"--sharpness {config.sharpness:g} is not below --temperature {config.temperature:g}, so that even "
            "assignments are right everywhere: .05 and .1 are published"
        )

    def loss(self, embeddings: Projections, targets: None) -> Terms:
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
        return self.terms(total, {"assignment": total.detach()}, za_BD, zb_BD)

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
        return [*super().param_groups(), *by_dimension(self.prototypes)]


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
