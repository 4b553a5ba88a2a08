"""A training plan's choices as pairs need them."""

from __future__ import annotations

from torch import Tensor

from fastvicreg.contracts import Support
from fastvicreg.pipelines.plan import TrainPlan


class PairPlan:
    """``plan`` for pairs: the first of its views where the pair has an image, else the order alone."""

    def __init__(self, plan: TrainPlan, *, images: bool) -> None:
        self._plan = plan
        self.seed = plan.seed
        self.views = int(images)
        self.drop_last = plan.drop_last
        self.support: Support = plan.support

    def order(self, epoch: int) -> Tensor:
        return self._plan.order(epoch)

    def sizes(self, epoch: int) -> tuple[int, ...]:
        return self._plan.sizes(epoch)[: self.views]

    def boxes(self, epoch: int, index_B: Tensor, wh_B2: Tensor) -> tuple[Tensor, Tensor]:
        box_BV4, flip_BV = self._plan.boxes(epoch, index_B, wh_B2)
        return box_BV4[:, : self.views], flip_BV[:, : self.views]

    def photometric(self, epoch: int, index_B: Tensor) -> Tensor:
        return self._plan.photometric(epoch, index_B)[:, : self.views]
