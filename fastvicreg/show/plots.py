"""Pictures of a run for the report: matplotlib figures as inline SVG, images as inline PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Column, Cursor, Source
from fastvicreg.datasets import open_data, training_plan
from fastvicreg.evaluate.features import Features
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD
from fastvicreg.pipelines import build_engine
from fastvicreg.pipelines.decode import decode_sample
from fastvicreg.pipelines.feed import AugmentedFeed

OWN, OTHER, GREY = "#1f6feb", "#d1495b", "#8a94a3"
Rows = Sequence[Mapping[str, Any]]


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e6e9ee")
        ax.set_axisbelow(True)
    return figure, list(axes[0])


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Text stays text: searchable, and drawn in the page's own font.
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _png(pixels_HWC: np.ndarray, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def knn(rows: Rows, baselines: Mapping[str, float]) -> str:
    """kNN accuracy at each evaluation, with what needs no training as horizontal lines."""
    figure, (ax,) = _axes(9, 3.4)
    epochs = [row["epoch"] + 1 for row in rows]
    ax.plot(epochs, [row["knn"] for row in rows], "o-", color=OWN, label="VICReg", lw=2)
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        ax.axhline(value, color=GREY, ls=style, lw=1.3, label=f"{name} ({value:.1f})")
    ax.set(xlabel="epoch", ylabel="kNN accuracy in %")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def terms(steps: Rows, columns: Sequence[Column]) -> str:
    """A method's parts over the steps, each beside its reference values."""
    figure, axes = _axes(3.7 * len(columns), 3.2, len(columns))
    x = [row["step"] for row in steps]
    for ax, column in zip(axes, columns, strict=True):
        ax.plot(x, [row[column.name] for row in steps], color=OWN, lw=1.2)
        for (label, part), style in zip(column.beside.items(), ("--", ":", "-."), strict=False):
            ax.plot(x, [row[part] for row in steps], style, color=GREY, lw=1.3, label=label)
        ax.set(title=column.name.replace("_", " "), xlabel="step", yscale=column.scale)
        if column.beside:
            ax.legend(frameon=False)
    return _svg(figure)


def collapse(steps: Rows, without: Rows) -> str:
    """The embeddings' standard deviation with and without the variance term."""
    figure, (ax,) = _axes(9, 3)
    ax.plot([r["step"] for r in steps], [r["embedding_std"] for r in steps], color=OWN, label="variance weight 25")
    ax.plot([r["step"] for r in without], [r["embedding_std"] for r in without], color=OTHER, label="variance weight 0")
    ax.set(xlabel="step", ylabel="embedding std", yscale="log")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


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
        images = [_thumbnail(source, int(fed.batch.index_B[place]), side)]
        for view in fed.batch.views[:2]:
            pixels = ((view[place] * std + mean) * 255).round().clamp(0, 255)
            images.append(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
        for position, image in enumerate(images):
            at = left + position * (side + 1)
            canvas[top : top + side, at : at + side] = image
    return _png(canvas.repeat(zoom, 0).repeat(zoom, 1), "image files beside the two views a step saw")


def pca(features: Features, config: TrainConfig, shown: int = 400) -> str:
    """Test images at the first two principal components of their features, framed by class."""
    source = open_data(config).validation
    assert source is not None
    features_NF, labels_N = features.features_NF.cpu(), features.labels_N.cpu()
    centred = features_NF - features_NF.mean(0)
    _, singular, basis = torch.pca_lowrank(centred, q=2, center=False, niter=8)
    places = (centred @ basis / centred.shape[0] ** 0.5).numpy()
    share = (singular.square() / centred.square().sum()).numpy()
    figure, (ax,) = _axes(10, 7)
    ax.grid(visible=False)
    colours = plt.get_cmap("tab20")
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(places))[:shown]
    for index in chosen:
        image = _thumbnail(source, int(index), 32)
        framed = np.empty((36, 36, 3), np.uint8)
        framed[:] = np.array(colours(int(labels_N[index]) % 20)[:3]) * 255
        framed[2:-2, 2:-2] = image
        _place(ax, framed, places[index], np.ptp(places, axis=0))
    for number, name in enumerate(source.classes):
        ax.plot([], [], "s", color=colours(number % 20), label=name)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    ax.set(xlabel=f"first component, {share[0]:.0%} of the variance", ylabel=f"second, {share[1]:.0%}")
    ax.autoscale()
    return _svg(figure)


def _place(ax: Axes, image: np.ndarray, at: np.ndarray, extent: np.ndarray) -> None:
    half = extent * np.array([0.011, 0.0155])
    ax.imshow(
        image, extent=(at[0] - half[0], at[0] + half[0], at[1] - half[1], at[1] + half[1]), aspect="auto", zorder=2
    )


def _thumbnail(source: Source, index: int, side: int) -> np.ndarray:
    image = Image.fromarray(decode_sample(source, index))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
