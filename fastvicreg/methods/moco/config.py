"""Settings of MoCo v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastvicreg.errors import UserError
from fastvicreg.methods import check_widths
from fastvicreg.methods.settings import Regularized, check_positive, check_share

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext
    from fastvicreg.methods.moco.method import MoCo


@dataclass(frozen=True)
class MoCoConfig(Regularized):
    """Each query is told from a queue of earlier keys, which a momentum copy of the network makes."""

    name: ClassVar[str] = "moco"
    takes_two_views: ClassVar[bool] = True

    projector: tuple[int, ...] = (2048, 128)
    """Widths of the projector's layers, without batch norm; the last is the projection's."""
    queue: int = 65536
    """Earlier keys that a query is told from; at least a batch, at most the data."""
    temperature: float = 0.2
    """Divides the cosines."""
    momentum: float = 0.999
    """Momentum of the key encoder at the start."""
    momentum_end: float = 0.999
    """Momentum at the end, reached by half a cosine: the same in MoCo v2, .99 to .999 in solo-learn's."""
    symmetric: bool = False
    """Both views as queries, each with a queue of its own, and the mean of both losses (solo-learn's MoCo V2+)."""
    batch_norm: bool = False
    """Batch norm in the projector."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        check_widths("--projector", self.projector)
        check_positive(temperature=self.temperature)
        check_share("--momentum", self.momentum, "the key encoder")
        check_share("--momentum-end", self.momentum_end, "the key encoder")
        if self.queue < 1:
            raise UserError(f"--queue {self.queue} holds no key: give at least the batch size.")
        self.check_regularized()

    def notes(self) -> tuple[str, ...]:
        """What a person should know of these settings, one line each."""
        return self.regularized_notes()

    def build(self, context: BuildContext) -> MoCo:
        """The method with fresh weights, drawn from torch's global generator."""
        from fastvicreg.methods.moco.method import MoCo

        return MoCo(context.build_encoder(), self, impl=context.kernels.get("loss", "auto"))
