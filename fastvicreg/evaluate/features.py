"""A frozen encoder's features of a whole source, through the same engines as training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvicreg.contracts import Cursor, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.plan import eval_plan
from fastvicreg.stalls import LIMIT
from fastvicreg.train.checkpoint import not_finite


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
) -> Features:
    """Features of every image: resized, centre-cropped, normalised; the encoder in evaluation mode meanwhile.

    ``UserError`` where more samples are faulty than ``budget`` allows, and where features are not finite: whatever is
    made of them would be a number without a meaning. ``StalledError`` where a batch takes more than ``stall`` seconds.
    """
    plan = eval_plan(len(source), resize=evaluation_resize(image_size), crop=image_size)
    engine = build_engine(
        "native", source, plan, batch_size=batch_size, workers=workers, device=device, budget=budget, stall=stall
    )
    was_training = encoder.training
    encoder.eval()
    features, labels = [], []
    try:
        for fed in AugmentedFeed(engine, plan, device=device).epoch(Cursor(0, 0)):
            features.append(encoder(fed.batch.views[0]).float())
            labels.append(fed.batch.label_B)
    finally:
        encoder.train(was_training)
        engine.close()
    features_NF = torch.cat(features)
    _require_finite(features_NF, encoder, source)
    return Features(features_NF, torch.cat(labels).to(features_NF.device), engine.faults().total)


def _require_finite(features_NF: Tensor, encoder: nn.Module, source: Source) -> None:
    finite_N = features_NF.isfinite().all(1)
    if finite_N.all():
        return
    count = f"the features of {int((~finite_N).sum()):,} of {len(finite_N):,} images are not finite"
    if spoilt := not_finite(encoder.state_dict()):
        raise UserError(f"{count}: {spoilt} of the encoder is not. Evaluate an earlier checkpoint.")
    first = source.name(int((~finite_N).nonzero()[0]))
    raise UserError(f"{count}, {first} first, though the encoder's weights are: it overflows; is it trained?")
