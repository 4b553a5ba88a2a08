"""What the protocols that train have alike: their options' bounds, and the line that an epoch is shown as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastvicreg.errors import UserError

if TYPE_CHECKING:
    from fastvicreg.evaluate.supervised import EpochReport, Training


def check_training(
    *, epochs: int | None, batch_size: int, lr: Sequence[float], weight_decay: float | None = None, flag: str = "--lr"
) -> None:
    """``UserError`` for the first value that nothing can be trained by; no epochs stand for the protocol's own."""
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs {epochs}: give 1 or more, or leave it out.")
    if batch_size < 2:
        raise UserError(f"--batch-size {batch_size}: give 2 or more.")
    for rate in lr:
        if not 0 < rate < math.inf:
            raise UserError(f"{flag} {rate:g}: give a finite number above 0.")
    if weight_decay is not None and not 0 <= weight_decay < math.inf:
        raise UserError(f"--weight-decay {weight_decay:g}: give a finite number of 0 or more.")


def epoch_line(report: EpochReport, training: Training) -> str:
    """ "epoch 3/100  loss 1.234  top-1 45.67" of the classifier that is best so far."""
    best = max(range(len(report.accuracy_R)), key=report.accuracy_R.__getitem__)
    which = f" (lr {training.head_lrs[best]:g})" if len(training.head_lrs) > 1 else ""
    loss, accuracy = report.loss_R[best], report.accuracy_R[best]
    return f"epoch {report.epoch}/{training.epochs}  loss {loss:.4f}  top-1 {accuracy:.2f} %{which}"
