"""All weights trained on all labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvicreg.evaluate.subject import Classifier, Subject


@dataclass(frozen=True)
class Finetune:
    """By the encoder, trained together with a linear classifier on all training images.

    The paper has no such figure: the learning rates are its own for 10 % of the labels, 30 epochs are the usual ones.
    """

    lr_backbone: float = 0.01
    """The encoder's learning rate, whatever --batch-size, which the paper's is for 256."""
    lr_head: float = 0.1
    """The classifier's."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 256
    """Images a step."""
    weight_decay: float = 0.0
    """Weight decay of all weights."""

    def check(self, subject: Subject) -> None:
        """``UserError`` for the first setting that cannot be served."""
        from fastvicreg.evaluate.protocols.common import check_training

        subject.images("finetune")
        check_training(
            epochs=self.epochs, batch_size=self.batch_size, lr=(self.lr_head,), weight_decay=self.weight_decay,
            flag="--lr-head",
        )  # fmt: skip
        check_training(epochs=1, batch_size=2, lr=(self.lr_backbone,), flag="--lr-backbone")

    def fit(self, subject: Subject, told: Callable[[str], None]) -> list[Classifier]:
        """See ``evaluate.finetuning.finetune``."""
        from fastvicreg.evaluate.finetuning import finetune
        from fastvicreg.evaluate.supervised import Training

        training = Training(
            epochs=self.epochs,
            head_lrs=(self.lr_head,),
            body_lr=self.lr_backbone,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            seed=subject.seed,
        )
        return finetune(subject.images("finetune"), training, told)
