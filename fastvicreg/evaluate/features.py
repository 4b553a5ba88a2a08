"""A frozen encoder's features of a whole source, through the same engines as training."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvicreg.contracts import Cursor, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.pairs.fixed import member_views
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.stalls import LIMIT
from fastvicreg.train.checkpoint import not_finite
from fastvicreg.train.device import autocast

EvaluationViews = Generator[tuple[Tensor, Tensor, int]]
"""Batches of a fixed view on the device, their labels, and how many samples a neighbour has stood for so far."""


CHECKED = 1 << 14
"""Features whose values are looked at together: to look takes as much memory as they do."""


class Features(NamedTuple):
    """float32 features and labels (-1: none), on the encoder's device, in the source's order."""

    features_NF: Tensor
    labels_N: Tensor
    faults: int = 0  # samples that a neighbour stands for


def evaluation_resize(image_size: int) -> int:
    """Short side before the centre crop: 256 for 224 px; small images are not enlarged, so the crop is the whole."""
    return image_size if image_size < 96 else image_size * 256 // 224


@torch.no_grad()
def extract(
    encoder: nn.Module,
    source: Source,
    *,
    image_size: int,
    device: str = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    budget: FaultBudget | None = None,
    stall: float = LIMIT,
    precision: str = "off",
) -> Features:
    """Features of every sample by its fixed view; the encoder in evaluation mode meanwhile.

    An image's is resized, centre-cropped and normalised; a sound's is its middle, a text's its first caption. The
    forward pass runs in ``precision``, a key of ``train.device.AUTOCAST``; features are fp32 whatever it is.

    ``UserError`` where more samples are faulty than ``budget`` allows, and where features are not finite: whatever is
    made of them would be a number without a meaning. ``StalledError`` where a batch takes more than ``stall`` seconds.
    """
    reading: dict[str, Any] = {
        "device": device,
        "batch_size": batch_size,
        "workers": workers,
        "budget": budget,
        "stall": stall,
    }
    if (modality := modality_of(source)) is None:
        views = _images(source, image_size, **reading)
    else:
        views = member_views(source, modality, **reading)
    was_training = encoder.training
    encoder.eval()
    # Of ImageNet 10 GB: written where they stay, as parts that are joined at the end would take twice that.
    features_NF, labels, faults, done = torch.empty(0), [], 0, 0
    try:
        for view, label_B, faults in views:  # noqa: B007  # the last one's count is the whole
            with autocast(device, precision):
                features_BF = encoder(view)
            features_BF = features_BF.float()
            if not done:
                features_NF = features_BF.new_empty(len(source), *features_BF.shape[1:])
            features_NF[done : done + len(features_BF)] = features_BF
            labels.append(label_B)
            done += len(features_BF)
    finally:
        encoder.train(was_training)
        views.close()
    assert done == len(source), (done, len(source))
    _require_finite(features_NF, encoder, source)
    return Features(features_NF, torch.cat(labels).to(features_NF.device), faults)


def _images(
    source: Source,
    image_size: int,
    *,
    device: str,
    batch_size: int,
    workers: int,
    budget: FaultBudget | None,
    stall: float,
) -> EvaluationViews:
    plan = eval_plan(len(source), resize=evaluation_resize(image_size), crop=image_size)
    engine = build_engine(
        "native", source, plan, batch_size=batch_size, workers=workers, device=device, budget=budget, stall=stall
    )
    try:
        for fed in AugmentedFeed(engine, plan, device=device).epoch(Cursor(0, 0)):
            yield fed.batch.views[0], fed.batch.label_B, engine.faults().total
    finally:
        engine.close()


def _require_finite(features_NF: Tensor, encoder: nn.Module, source: Source) -> None:
    finite_N = torch.cat([features_BF.isfinite().all(1) for features_BF in features_NF.split(CHECKED)])
    if finite_N.all():
        return
    count = f"the features of {int((~finite_N).sum()):,} of {len(finite_N):,} images are not finite"
    if spoilt := not_finite(encoder.state_dict()):
        raise UserError(f"{count}: {spoilt} of the encoder is not. Evaluate an earlier checkpoint.")
    first = source.name(int((~finite_N).nonzero()[0]))
    raise UserError(f"{count}, {first} first, though the encoder's weights are: it overflows; is it trained?")
