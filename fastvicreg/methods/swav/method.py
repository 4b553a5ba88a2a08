"""SwAV: views predict how two of them are assigned to prototypes, which the batch shares evenly.

Shape suffixes: B this process's batch, M the batch of all processes, K the queue, D projection width, P prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Horizon, ParamGroup, Schedule, Terms, by_dimension
from fastvicreg.errors import UserError
from fastvicreg.kernels.loss.operators import without_autocast
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.methods.embeddings import batch_ranks, gathered_values, unit
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.queue import KeyQueue, check_queue
from fastvicreg.methods.settings import check_frozen
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.two_views import TwoViews
from fastvicreg.methods.views import each_view

ASSIGNING = 2
"""Views, the first, that are assigned to prototypes (main_swav.py, --crops_for_assign 0 1)."""


class SwAV(TwoViews):
    """As facebookresearch/swav's main_swav.py, small crops and the queue for small batches included.

    Batch norm takes each view's statistics by themselves, the released code those of all crops of a size together. Its
    processes have a queue of their own projections each; here all have the whole, so that any number of them goes on
    from a checkpoint.
    """

    title = "SwAV"
    updates: Tensor
    queued: Tensor

    def __init__(self, encoder: Encoder, config: SwAVConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = mlp(encoder.features, config.projector, last_bias=True, batch_norm=config.batch_norm)
        super().__init__(encoder, projector, config, Column("assignment", "swap"), impl=impl)
        self.prototypes = nn.Linear(config.projector[-1], config.prototypes, bias=False)
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.queues = nn.ModuleList()
        self._new: list[Tensor] = []
        """Of the last step, (M, D) a queue: they enter only once the update took place."""
        if config.queue:
            self.queues.extend(KeyQueue(config.queue, config.projector[-1]) for _ in range(ASSIGNING))
            self.register_buffer("queued", torch.zeros((), dtype=torch.int64))

    def likely_cause(self) -> str:
        config = self.config
        if config.sharpness < config.temperature:
            return ""
        return (
            f"--sharpness {config.sharpness:g} is not below --temperature {config.temperature:g}, so that even "
            "assignments are right everywhere: .05 and .1 are published"
        )

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """``queue``: whether projections enter it. ``UserError`` for one that the run never fills.

        And for prototypes that are frozen in all of it.
        """
        config = self.config
        check_frozen(config.freeze_prototypes, horizon.steps)
        if not config.queue:
            return {}
        check_queue(config.queue, horizon, "it holds projections of the batch's own images")
        first = config.queue_from_epoch * horizon.steps_per_epoch
        filled = first + -(-config.queue // horizon.batch_size)
        if filled >= horizon.steps:
            raise UserError(
                f"--queue {config.queue} from epoch {config.queue_from_epoch} is full after {filled} steps, and the "
                f"run has {horizon.steps}: give a lower --queue-from-epoch, or {config.no_queue()}."
            )
        return {"queue": lambda step: float(step >= first)}

    def embed(self, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Two views or more, each (B, C, H, W) of any size, to projections (B, D). ``UserError`` for fewer."""
        if len(views) < ASSIGNING:
            raise UserError(f"SwAV takes 2 views or more, not {len(views)}: choose another --recipe.")
        return tuple(each_view(self.projector, each_view(self.encoder, views)))

    def loss(self, embeddings: tuple[Tensor, ...], targets: None) -> Terms:
        """``swapped_prediction`` of the views; the first two's projections wait for ``after_update``."""
        assigned = embeddings[:ASSIGNING]
        config, ranks = self.config, batch_ranks(self.process_group)
        with without_autocast(embeddings[0].device.type):
            weight_PD = self.prototypes.weight
            # The gradient of the first updates is dropped; the value is the weight's in any case.
            learns = (self.updates >= config.freeze_prototypes).to(weight_PD.dtype)
            weight_PD = weight_PD.detach() + learns * (weight_PD - weight_PD.detach())
            total = swapped_prediction(
                embeddings,
                weight_PD,
                temperature=config.temperature,
                sharpness=config.sharpness,
                iterations=config.sinkhorn,
                ranks=ranks,
                queues=[queue.get_buffer("keys_KD") for queue in self.queues],
                in_use=self.queued >= config.queue if self.queues else None,
            )
            if self.queues:
                self._new = [gathered_values(unit(z_BD.detach()), ranks) for z_BD in assigned]
        return self.terms(total, {"assignment": total.detach()}, assigned[0], assigned[1])

    @torch.no_grad()
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """The prototypes go back to length 1, before they are next used; the step's projections enter the queues."""
        if finite is False:
            return
        weight_PD = self.prototypes.weight
        unit_PD = F.normalize(weight_PD, dim=1)
        weight_PD.copy_(torch.where(finite, unit_PD, weight_PD) if isinstance(finite, Tensor) else unit_PD)
        self.updates += finite
        if not self._new:  # before the first loss, or without a queue
            return
        enters = scalars["queue"] > 0
        enters = enters & finite if isinstance(enters, Tensor) or isinstance(finite, Tensor) else enters and finite
        for queue, new_MD in zip(self.queues, self._new, strict=True):
            assert isinstance(queue, KeyQueue)
            queue.push(new_MD, enters)
        self.queued += enters * len(self._new[0])

    def param_groups(self) -> list[ParamGroup]:
        return [*super().param_groups(), *by_dimension(self.prototypes)]


def swapped_prediction(
    views_BD: Sequence[Tensor],
    prototypes_PD: Tensor,
    *,
    temperature: float = 0.1,
    sharpness: float = 0.05,
    iterations: int = 3,
    ranks: Ranks | None = None,
    queues: Sequence[Tensor] = (),
    in_use: Tensor | None = None,
) -> Tensor:
    """Mean over the first two views, the other views and the batch of ``-sum q log softmax(s / temperature)``.

    q are the first two's codes, s the other views' cosines to the prototypes. ``queues`` are earlier projections of
    each of the two, (K, D) of unit length, alike in all processes; they share in the assignment where ``in_use``, a
    scalar on the device.
    """
    ranks = ranks or Ranks()
    scores = [unit(z_BD) @ prototypes_PD.to(unit(z_BD).dtype).T for z_BD in views_BD]
    predicted = [F.log_softmax(s_BP / temperature, dim=1) for s_BP in scores]
    losses = []
    for place in range(ASSIGNING):
        beside_KP = None
        if queues:
            beside_KP = _own_share(queues[place], ranks).to(scores[place].dtype) @ prototypes_PD.detach().T
        codes_BP = sinkhorn(scores[place].detach(), sharpness, iterations, ranks, beside_KP=beside_KP, in_use=in_use)
        others = [-(codes_BP * s_BP).sum(1).mean() for other, s_BP in enumerate(predicted) if other != place]
        losses.append(torch.stack(others).mean())
    return torch.stack(losses).mean()


def _own_share(queue_KD: Tensor, ranks: Ranks) -> Tensor:
    """The rows that this process counts: each is counted once among all."""
    size = len(queue_KD)
    return queue_KD[size * ranks.rank // ranks.size : size * (ranks.rank + 1) // ranks.size]


@torch.no_grad()
def sinkhorn(
    scores_BP: Tensor,
    sharpness: float,
    iterations: int,
    ranks: Ranks,
    *,
    beside_KP: Tensor | None = None,
    in_use: Tensor | None = None,
) -> Tensor:
    """Codes (B, P), each of sum 1, that give every prototype nearly the same share of all processes' rows.

    main_swav.py's distributed_sinkhorn: ``exp(scores / sharpness)``, then prototypes and rows scaled in turn to equal
    sums. Scores are cosines: 1 is taken from them first, which cancels, so that no exponential overflows. The rows
    ``beside_KP`` have their share of the prototypes too where ``in_use``, and weigh nothing where not.
    """
    q_BP = ((scores_BP - 1) / sharpness).exp()
    own, rows = len(q_BP), len(q_BP) * ranks.size
    if beside_KP is not None:
        assert in_use is not None
        q_BP = torch.cat((q_BP, ((beside_KP - 1) / sharpness).exp() * in_use))
    for _ in range(iterations):
        q_BP = q_BP / (ranks.add(q_BP.sum(0)) * q_BP.shape[1])
        row_B1 = q_BP.sum(1, keepdim=True)
        if beside_KP is not None:
            row_B1 = row_B1 + (row_B1 == 0)
        q_BP = q_BP / (row_B1 * rows)
    return q_BP[:own] * rows
