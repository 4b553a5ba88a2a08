"""Pictures of a run for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Column, Cursor
from fastvicreg.datasets import open_data, training_plan
from fastvicreg.evaluate.features import Features
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD
from fastvicreg.pipelines import build_engine
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.show.drawing import GREY, OTHER, OWN, axes_of, png, principal, scatter, svg, thumbnail

Rows = Sequence[Mapping[str, Any]]


def knn(rows: Rows, baselines: Mapping[str, float]) -> str:
    """kNN accuracy at each evaluation, with what needs no training as horizontal lines."""
    figure, (ax,) = axes_of(9, 3.4)
    epochs = [row["epoch"] + 1 for row in rows]
    ax.plot(epochs, [row["knn"] for row in rows], "o-", color=OWN, label="VICReg", lw=2)
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        ax.axhline(value, color=GREY, ls=style, lw=1.3, label=f"{name} ({value:.1f})")
    ax.set(xlabel="epoch", ylabel="kNN accuracy in %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def terms(steps: Rows, columns: Sequence[Column]) -> str:
    """A method's parts over the steps, each beside its reference values."""
    figure, axes = axes_of(3.7 * len(columns), 3.2, len(columns))
    x = [row["step"] for row in steps]
    for ax, column in zip(axes, columns, strict=True):
        ax.plot(x, [row[column.name] for row in steps], color=OWN, lw=1.2)
        for (label, part), style in zip(column.beside.items(), ("--", ":", "-."), strict=False):
            ax.plot(x, [row[part] for row in steps], style, color=GREY, lw=1.3, label=label)
        ax.set(title=column.name.replace("_", " "), xlabel="step", yscale=column.scale)
        if column.beside:
            ax.legend(frameon=False)
    return svg(figure)


def collapse(steps: Rows, without: Rows) -> str:
    """The embeddings' standard deviation with and without the variance term."""
    figure, (ax,) = axes_of(9, 3)
    ax.plot([r["step"] for r in steps], [r["embedding_std"] for r in steps], color=OWN, label="variance weight 25")
    ax.plot([r["step"] for r in without], [r["embedding_std"] for r in without], color=OTHER, label="variance weight 0")
    ax.set(xlabel="step", ylabel="embedding std", yscale="log")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def pairs(config: TrainConfig, count: int = 24, columns: int = 6, zoom: int = 2) -> str:
    """A grid of (image, view, view) as the first training step sees them."""
    source = open_data(config).train
    plan = training_plan(config, len(source))
    side = max(plan.sizes(0))
    engine = build_engine("native", source, plan, batch_size=count)
    try:
        fed = next(AugmentedFeed(engine, plan).epoch(Cursor(0, 0)))
    finally:
        engine.close()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    gap = 3
    tile_w, tile_h = 3 * side + 2 + gap * 2, side + gap * 2
    canvas = np.full((tile_h * -(-count // columns), tile_w * columns, 3), 255, np.uint8)
    for place in range(count):
        top, left = place // columns * tile_h + gap, place % columns * tile_w + gap
        images = [thumbnail(source, int(fed.batch.index_B[place]), side)]
        for view in fed.batch.views[:2]:
            pixels = ((view[place] * std + mean) * 255).round().clamp(0, 255)
            images.append(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
        for position, image in enumerate(images):
            at = left + position * (side + 1)
            canvas[top : top + side, at : at + side] = image
    return png(canvas.repeat(zoom, 0).repeat(zoom, 1), "image files beside the two views a step saw")


def pca(features: Features, config: TrainConfig, shown: int = 400) -> str:
    """Test images at the first two principal components of their features, framed by class."""
    source = open_data(config).validation
    assert source is not None
    places_N2, share = principal(features.features_NF.cpu())
    named = (f"first component, {share[0]:.0%} of the variance", f"second, {share[1]:.0%}")
    return scatter(source, places_N2, features.labels_N.cpu(), named, shown)
