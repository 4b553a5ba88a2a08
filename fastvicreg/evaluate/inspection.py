"""What a run's encoder and head make of images and of their augmented views, and the diagnostics of it.

Shape suffixes: N images, Q views of each, F feature width, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Cursor, Source
from fastvicreg.datasets import open_data, training_plan
from fastvicreg.errors import UserError
from fastvicreg.evaluate import diagnostics
from fastvicreg.evaluate.features import extract
from fastvicreg.evaluate.inspect_settings import LEAST, InspectSettings
from fastvicreg.evaluate.whole import whole_method
from fastvicreg.methods.embeddings import unit_std
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.sources.subset import SubsetSource, spread
from fastvicreg.pretrained import TrainedEncoder, load_trained
from fastvicreg.train.assemble import as_module
from fastvicreg.train.device import evaluation_device

BATCH = 64
"""Images of a batch of augmented views."""
COLLAPSED = 1e-3
"""Standard deviation below which a dimension is dead whatever the others are."""
DEAD = 0.01
"""Share of the median dimension's standard deviation below which a dimension counts as dead."""


@dataclass(frozen=True)
class Space:
    """One representation of the images: the encoder's features, or the head's embeddings."""

    name: str
    images_ND: Tensor
    """Of centre crops, fp32 on the CPU."""
    views_NQD: Tensor
    """Of augmented views of the first images."""
    figures: Mapping[str, float | None]
    spectrum: Tensor
    """Eigenvalues of the covariance, largest first."""
    power_law: diagnostics.PowerLaw | None
    std_D: Tensor
    """Standard deviation of each dimension."""
    correlation_DD: Tensor
    alignment_N: Tensor
    """Of each image whose views were taken."""


@dataclass(frozen=True)
class Inspection:
    """A run, the images it was asked about, and its spaces: "features", then "embeddings"."""

    run: str
    checkpoint: str
    config: TrainConfig
    source: Source
    where: str
    labels_N: Tensor
    viewed: int
    """Images whose views were taken."""
    spaces: tuple[Space, ...]
    """The embeddings only where the method is known: a file of weights has an encoder alone."""
    notes: tuple[str, ...] = ()
    cka: Mapping[str, float] = field(default_factory=dict)
    """Of each space to that of the run that this one is compared with."""


def inspect_run(run: str, asked: InspectSettings, *, note: Callable[[str], None] = lambda line: None) -> Inspection:
    """Diagnostics of ``run``, a folder or a file of weights, on images and on augmented views of each.

    The images, at most ``asked.images``, are those of the validation split, or spread over the training data where
    there is none; the views follow the run's recipe. ``UserError`` for a run that is not there or not finite
    (``load_trained``), for images or views too few to say anything, and for more faults than are allowed (default: as
    the run was trained), of the images or in an epoch of their views.
    """
    asked.check()
    trained = load_trained(run, asked.checkpoint, encoder=asked.encoder, arch=asked.arch, stem=asked.stem)
    config, device = _settings(trained, run, asked), evaluation_device(asked.device)
    found = open_data(config)
    source = found.validation if found.validation is not None else found.train
    where = found.validation_where if found.validation is not None else found.where
    if len(source) < LEAST:
        raise UserError(f"{where} holds {len(source)} images: a representation shows itself on {LEAST} at least.")
    source = spread(source, asked.images)
    network, head = trained.encoder.to(device), _head(trained, asked.encoder, device)
    note(f"features of {len(source):,} images of {where}")
    features = extract(
        network,
        source,
        image_size=config.data.image_size,
        device=device,
        workers=asked.workers,
        budget=FaultBudget(config.data.fault_count, config.data.fault_share),
    )
    note(f"{asked.views} views of each by the recipe {config.data.recipe}")
    views_NQF = augmented_features(network, source, config, views=asked.views, device=device, workers=asked.workers)
    taken = [("features", features.features_NF, views_NQF)]
    if head is not None:
        with torch.no_grad():
            taken.append(("embeddings", head(features.features_NF), _each_row(head, views_NQF)))
    notes = list(trained.notes)
    if trained.passed_over:
        notes.append(f"{trained.passed_over}: what was inspected is older.")
    if features.faults:
        notes.append(f"{features.faults} of the images could not be read; a neighbour stands for each.")
    note("diagnostics")
    return Inspection(
        run if asked.encoder == "a" else f"{run} ({asked.encoder})",
        str(trained.checkpoint),
        config,
        source,
        where,
        features.labels_N.cpu(),
        len(views_NQF),
        tuple(space(name, images_ND.cpu(), views_NQD.cpu()) for name, images_ND, views_NQD in taken),
        tuple(notes),
    )


def _settings(trained: TrainedEncoder, run: str, asked: InspectSettings) -> TrainConfig:
    """The run's, with the data and the faults that are asked for."""
    config = trained.config
    if config.pair.pair:
        raise UserError(
            f"inspect draws images, and {run} is of pairs: fastvicreg eval retrieval {run}, or export its encoder of "
            "images and inspect that file with --data."
        )
    if trained.run is None and asked.data is None:
        raise UserError(f"{trained.checkpoint} does not say which images it was trained on: give --data FOLDER.")
    data = config.data
    if asked.data is not None:
        data = replace(data, data=asked.data, val_data=None, val_labels=None)
    if asked.fault_count is not None:
        data = replace(data, fault_count=asked.fault_count)
    if asked.fault_share is not None:
        data = replace(data, fault_share=asked.fault_share)
    return replace(config, data=data)


def _head(trained: TrainedEncoder, encoder: str, device: str) -> nn.Module | None:
    """What makes embeddings of that encoder's features; None of a file of weights, which has an encoder alone."""
    if trained.run is None:
        return None
    method = whole_method(trained, device)
    if encoder == "target":
        return as_module(method).get_submodule("target_projector.network").eval()
    head: nn.Module = getattr(method, {"a": "head", "b": "head_b"}[encoder])
    return head.eval()


@torch.no_grad()
def augmented_features(
    encoder: nn.Module, source: Source, config: TrainConfig, *, views: int, device: str, workers: int
) -> Tensor:
    """(N, Q, F) features of each image's views as training would make them: full crops of as many epochs as it takes.

    N is the number of images less what does not fill a batch; small crops of a multi-crop recipe are left out.
    """
    batch = min(BATCH, len(source))
    own = SubsetSource(source, range(len(source) // batch * batch))
    plan = training_plan(config, len(own))
    # After the last epoch crops have its size, and no crop is one that was trained on. Steps are no fewer than epochs.
    first = max(config.run.epochs, config.run.total_steps)
    sizes = plan.sizes(first)
    large = [at for at, size in enumerate(sizes) if size == max(sizes)]
    turns = -(-views // len(large))
    budget = FaultBudget(config.data.fault_count, config.data.fault_share)
    engine = build_engine("native", own, plan, batch_size=batch, workers=workers, device=device, budget=budget)
    feed = AugmentedFeed(engine, plan, device=device)
    views_NQF: Tensor | None = None
    try:
        for turn in range(turns):
            order_N = plan.order(first + turn)
            for fed in feed.epoch(Cursor(first + turn, 0)):
                at = fed.batch.cursor.batch * batch
                found_BVF = torch.stack([encoder(fed.batch.views[view]).float() for view in large], 1)
                if views_NQF is None:
                    views_NQF = found_BVF.new_empty(len(own), turns * len(large), found_BVF.shape[2])
                place = slice(turn * len(large), (turn + 1) * len(large))
                views_NQF[order_N[at : at + batch].to(found_BVF.device), place] = found_BVF
    finally:
        engine.close()
    assert views_NQF is not None
    return views_NQF[:, :views]


def space(name: str, images_ND: Tensor, views_NQD: Tensor) -> Space:
    """The diagnostics of one representation."""
    eigenvalues = diagnostics.spectrum(images_ND)
    power_law = diagnostics.alpha_req(eigenvalues)
    correlation_DD = diagnostics.correlation(images_ND)
    alignment_N = diagnostics.alignment(views_NQD)
    std_D = images_ND.std(0)
    figures = {
        "dimensions": float(images_ND.shape[1]),
        "rankme": diagnostics.rank_me(images_ND),
        "lidar": diagnostics.lidar(views_NQD),
        "alpha_req": power_law.alpha if power_law else None,
        "std": float(std_D.mean()),
        "dead": float((std_D < max(DEAD * float(std_D.median()), COLLAPSED)).sum()),
        "std_normalized": float(unit_std(images_ND)) * math.sqrt(images_ND.shape[1]),
        "correlation": diagnostics.off_diagonal(correlation_DD),
        "alignment": float(alignment_N.mean()),
        "uniformity": diagnostics.uniformity(images_ND),
    }
    return Space(
        name, images_ND, views_NQD, figures, eigenvalues, power_law, std_D, correlation_DD.float(), alignment_N
    )


def compared(own: Inspection, other: Inspection) -> Inspection:
    """``own`` with the linear CKA of its spaces to those of ``other``, which saw the same images.

    ``UserError`` where it did not.
    """
    if len(own.source) != len(other.source) or own.where != other.where:
        raise UserError(
            f"{own.run} looked at {len(own.source):,} images of {own.where}, {other.run} at {len(other.source):,} of "
            f"{other.where}: give --data, so that both see the same."
        )
    pairs = zip(own.spaces, other.spaces, strict=False)  # a file has features alone
    return replace(own, cka={a.name: diagnostics.linear_cka(a.images_ND, b.images_ND) for a, b in pairs})


def _each_row(head: nn.Module, views_NQF: Tensor) -> Tensor:
    """Embeddings of every view, a view of all images at a time."""
    return torch.stack([head(views_NQF[:, view]) for view in range(views_NQF.shape[1])], 1)


def row(found: Inspection) -> dict[str, Any]:
    """The figures as one row of provenance JSON."""
    own: dict[str, Any] = {
        "run": found.run,
        "checkpoint": found.checkpoint,
        "images": len(found.source),
        "viewed": found.viewed,
        "views": found.spaces[0].views_NQD.shape[1],
    }
    own |= {each.name: dict(each.figures) for each in found.spaces}
    return own | ({"cka": dict(found.cka)} if found.cka else {})
