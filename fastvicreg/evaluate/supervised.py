"""Training by labels, for every protocol that trains: classifiers of a frozen encoder, or an encoder with its own.

As facebookresearch/vicreg evaluate.py: SGD with momentum, cross-entropy, one learning rate an epoch. B batch,
M queries, D features, R classifiers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Cursor, Source
from fastvicreg.errors import UserError
from fastvicreg.evaluate.heads import HeadKind, Heads
from fastvicreg.optim import spare_the_compiler
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.stalls import LIMIT
from fastvicreg.train.device import sent

MOMENTUM = 0.9

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""An epoch's (x_B..., label_B), by its number."""


@dataclass(frozen=True)
class Training:
    """How classifiers are trained."""

    epochs: int
    head_lrs: tuple[float, ...]
    """One classifier each."""
    body_lr: float = 0.0
    """Above 0 the encoder is trained too, in training mode; else it stays as it is, in evaluation mode."""
    weight_decay: float = 1e-6
    batch_size: int = 256
    milestones: tuple[int, ...] = ()
    """Epochs from which the learning rates are a tenth of what they were; none: a cosine to 0, a step an epoch."""
    head: HeadKind = "linear"
    seed: int = 0

    def factor(self, epoch: int) -> float:
        """What the learning rates are multiplied with in that epoch."""
        if self.milestones:
            return 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        return (1 + math.cos(math.pi * epoch / self.epochs)) / 2


class EpochReport(NamedTuple):
    """What an epoch came to."""

    epoch: int  # counted from 1
    loss_R: list[float]
    accuracy_R: list[float]  # percent of the queries


class Trained(NamedTuple):
    """The classifiers after the last epoch, and each as it was after its best one."""

    last: Heads
    best: list[tuple[int, Heads]]
    """(epoch, counted from 1; the classifier alone) of each."""
    best_body: nn.Module | None
    """The encoder after the best epoch of the first classifier, where it was trained."""


def train_heads(
    body: nn.Module,
    batches: Batches,
    queries: Callable[[], Tensor],
    answers_M: Tensor,
    training: Training,
    *,
    features: int,
    classes: int,
    told: Callable[[EpochReport], None] = lambda _: None,
) -> Trained:
    """Train ``training.head_lrs`` classifiers of ``body``'s outputs; the best epoch is chosen by the queries.

    ``queries`` gives the queries' features by ``body`` as it is. ``UserError`` where a loss is not finite.
    """
    trains_body = training.body_lr > 0
    device = answers_M.device
    heads = Heads(features, classes, len(training.head_lrs), training.head, seed=training.seed).to(device)
    groups = [{"params": heads.parameters_of(n), "peak": lr} for n, lr in enumerate(training.head_lrs)]
    if trains_body:
        groups.append({"params": list(body.parameters()), "peak": training.body_lr})
    spare_the_compiler()
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, weight_decay=training.weight_decay)
    best, best_body = [(0, heads)] * len(training.head_lrs), None
    best_accuracy_R = [-1.0] * len(training.head_lrs)
    for epoch in range(training.epochs):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * training.factor(epoch)
        body.train(trains_body)
        loss_R = _epoch(body, heads, batches(epoch), optimizer, trains_body)
        body.eval()
        if bad := [lr for lr, loss in zip(training.head_lrs, loss_R, strict=True) if not math.isfinite(loss)]:
            raise UserError(f"a learning rate of {bad[0]:g} diverges in epoch {epoch + 1}: give a smaller one.")
        top_RM = heads.rank(queries())[..., 0]
        accuracy_R = ((top_RM == answers_M).float().mean(1) * 100).tolist()
        for number, accuracy in enumerate(accuracy_R):
            if accuracy > best_accuracy_R[number]:
                best_accuracy_R[number], best[number] = accuracy, (epoch + 1, heads.one(number))
                if trains_body and not number:
                    best_body = copy.deepcopy(body)
        told(EpochReport(epoch + 1, loss_R, accuracy_R))
    return Trained(heads, best, best_body)


def _epoch(
    body: nn.Module,
    heads: Heads,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    trains_body: bool,
) -> list[float]:
    """Each classifier's mean loss."""
    heads.train()
    total_R, steps = torch.zeros(len(heads.weights)), 0
    for x, label_B in batches:
        if len(label_B) < 2 and (trains_body or heads.norm is not None):
            continue  # one sample has no batch statistics
        with torch.set_grad_enabled(trains_body):
            x_BD = body(x)
        with torch.enable_grad():
            logits_BRC = heads(x_BD.float())
            count = logits_BRC.shape[1]
            loss_BR = F.cross_entropy(
                logits_BRC.flatten(0, 1), label_B.repeat_interleave(count), reduction="none"
            ).unflatten(0, (-1, count))
            loss_R = loss_BR.mean(0)
        optimizer.zero_grad()
        loss_R.sum().backward()
        optimizer.step()
        total_R, steps = total_R.to(loss_R.device) + loss_R.detach(), steps + 1
    return (total_R / max(steps, 1)).tolist()


def feature_batches(features_ND: Tensor, labels_N: Tensor, training: Training) -> Batches:
    """Rows in another order each epoch, the last batch as small as it comes."""

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(training.seed * 100_003 + number)
        order_N = torch.randperm(len(labels_N), generator=generator).to(labels_N.device)
        for index_B in order_N.split(training.batch_size):
            yield features_ND[index_B], labels_N[index_B]

    return epoch


class ImageBatches:
    """Random resized crops (scale .08 to 1, ratio 3/4 to 4/3, bicubic) and flips of every image, as a context.

    The official code resizes bilinearly; every crop here is resized by Pillow's bicubic definition.
    """

    def __init__(
        self,
        source: Source,
        training: Training,
        *,
        image_size: int,
        device: str,
        workers: int,
        stall: float = LIMIT,
        budget: FaultBudget | None = None,
    ) -> None:
        plan = train_plan(
            len(source),
            seed=training.seed,
            recipe=named_recipe("supervised"),
            image_size=image_size,
            epochs=training.epochs,
            drop_last=False,
        )
        batch_size = min(training.batch_size, len(source))
        self._engine = build_engine(
            "native", source, plan, batch_size=batch_size, workers=workers, device=device, budget=budget, stall=stall
        )
        self._feed = AugmentedFeed(self._engine, plan, device=device)

    def __enter__(self) -> ImageBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for fed in self._feed.epoch(Cursor(epoch, 0)):
            yield fed.batch.views[0], sent(fed.batch.label_B, fed.batch.views[0].device)

    @property
    def faults(self) -> int:
        """Samples of the last epoch that a neighbour stood for."""
        return self._engine.faults().total

    def tell_faults(self, told: Callable[[str], None]) -> None:
        """Say how many they were, where there were any."""
        if self.faults:
            told(f"{self.faults} training images could not be read; a neighbour stood for each.")
