"""The encoder and a classifier trained together on labelled images, all of them or a few."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fastvicreg.contracts import Source
from fastvicreg.evaluate.protocols.common import epoch_line
from fastvicreg.evaluate.subject import Classifier, ImageSubject, Ranked
from fastvicreg.evaluate.supervised import ImageBatches, Training, train_heads
from fastvicreg.pipelines.sources.subset import SubsetSource


def finetune(
    subject: ImageSubject, training: Training, told: Callable[[str], None], indices: Sequence[int] | None = None
) -> list[Classifier]:
    """Train a copy of the subject's encoder on the bank's samples ``indices`` (None: all); best and last epoch."""
    source: Source = subject.bank if indices is None else SubsetSource(subject.bank, indices)
    queries = subject.query_features()
    body = copy.deepcopy(subject.encoder)
    body.requires_grad_(True)
    told("crops are resized bicubically, as in training; the official evaluation code resizes bilinearly")
    with ImageBatches(source, training, **subject.reading) as batches:
        trained = train_heads(
            body,
            batches,
            lambda: subject.extracted(body, subject.queries).features_NF,
            queries.labels_N,
            training,
            features=queries.features_NF.shape[1],
            classes=len(subject.classes),
            told=lambda report: told(epoch_line(report, training)),
        )
        batches.tell_faults(told)
    ((best_epoch, best_head),) = trained.best
    assert trained.best_body is not None
    return [
        _classifier(trained.best_body, best_head.rank, {"epoch": best_epoch, "which": "best"}),
        _classifier(body, trained.last.rank, {"epoch": training.epochs, "which": "last"}),
    ]


def _classifier(
    encoder: nn.Module, ranks: Callable[[Tensor, Tensor | None], Tensor], setting: dict[str, object]
) -> Classifier:
    def rank(query_MD: Tensor, allowed_A: Tensor | None) -> list[Ranked]:
        return [Ranked(setting, ranks(query_MD, allowed_A)[0])]

    return Classifier(rank, encoder.eval())
