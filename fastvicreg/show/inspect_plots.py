"""Pictures of a representation: its spectrum, its dimensions, its neighbourhoods and its map."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvicreg.contracts import Source
from fastvicreg.evaluate.inspection import Inspection, Space
from fastvicreg.show.drawing import GREY, OTHER, OWN, axes_of, png, principal, scatter, svg, thumbnail

COLOURS = (OWN, OTHER)
TILE, GAP = 56, 4
"""Pixels of an image among neighbours, and between two."""
NEIGHBOURS, ASKED = 8, 10
CORRELATED = 256
"""Dimensions that the picture of correlations shows."""


def spectra(compared: Sequence[tuple[str, Space]]) -> str:
    """Eigenvalues over their rank as shares of the variance, each with the power law that was fitted to it."""
    figure, (ax,) = axes_of(9, 3.6)
    for (name, space), colour in zip(compared, COLOURS, strict=False):
        share = (space.spectrum / space.spectrum.sum().clamp_min(1e-300)).numpy()
        used = share > share.max() * 1e-12
        rank = np.arange(1, len(share) + 1)
        ax.plot(rank[used], share[used], color=colour, lw=1.8, label=name)
        if law := space.power_law:
            fitted = np.arange(law.first, law.last + 1)
            value = np.exp(law.offset) * fitted**-law.alpha / float(space.spectrum.sum())
            ax.plot(fitted, value, "--", color=GREY, lw=1.3, label=f"rank^-{law.alpha:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="share of the variance")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def deviations(compared: Sequence[tuple[str, Space]]) -> str:
    """Histogram of the dimensions' standard deviations: dead ones stand at the left."""
    figure, (ax,) = axes_of(9, 2.8)
    values = [space.std_D.clamp_min(1e-12).log10().numpy() for _, space in compared]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    bins = np.linspace(low - 0.05, high + 0.05, 50)
    for (name, _), value, colour in zip(compared, values, COLOURS, strict=False):
        ax.hist(10**value, bins=list(10**bins), color=colour, alpha=0.65, label=name)
    ax.set(xscale="log", xlabel="standard deviation of a dimension", ylabel="dimensions")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def correlations(compared: Sequence[tuple[str, Space]]) -> str:
    """Absolute correlations of the first dimensions, neighbours being those that go together most."""
    figure, axes = axes_of(4.6 * len(compared), 4.2, len(compared))
    for ax, (name, space) in zip(axes, compared, strict=True):
        matrix_DD = space.correlation_DD[:CORRELATED, :CORRELATED].abs().numpy()
        order = _chained(matrix_DD)
        drawn = ax.imshow(matrix_DD[np.ix_(order, order)], vmin=0, vmax=1, cmap="magma", interpolation="nearest")
        ax.grid(visible=False)
        ax.set(title=name, xticks=[], yticks=[])
        figure.colorbar(drawn, ax=ax, shrink=0.8, label="|correlation|")
    return svg(figure)


def _chained(matrix_DD: np.ndarray) -> list[int]:
    """Dimensions in an order in which each is followed by the one left that it correlates with most."""
    left = set(range(len(matrix_DD)))
    chain = [int(matrix_DD.sum(0).argmax())]
    left.discard(chain[0])
    while left:
        rest = list(left)
        chain.append(rest[int(matrix_DD[chain[-1], rest].argmax())])
        left.discard(chain[-1])
    return chain


def alignments(compared: Sequence[tuple[str, Space]]) -> str:
    """Histogram of how far an image's views lie apart, beside pairs of different images."""
    figure, (ax,) = axes_of(9, 2.8)
    bins = list(np.linspace(0, 4, 61))
    for (name, space), colour in zip(compared, COLOURS, strict=False):
        ax.hist(space.alignment_N.numpy(), bins=bins, color=colour, alpha=0.65, density=True, label=f"{name}: views")
        unit_ND = F.normalize(space.views_NQD[:, 0], dim=1)
        strangers = torch.pdist(unit_ND).square().numpy()
        ax.hist(strangers, bins=bins, color=colour, histtype="step", density=True, lw=1.4, label=f"{name}: images")
    ax.set(xlabel="squared distance of unit vectors", ylabel="density")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def neighbours(found: Inspection) -> str:
    """Some images, each before its nearest others by the features' cosine, framed by class: the same or another."""
    space, source = found.spaces[0], found.source
    unit_NF = F.normalize(space.images_ND, dim=1)
    asked = torch.linspace(0, len(unit_NF) - 1, min(ASKED, len(unit_NF))).round().long()
    similarity_AN = unit_NF[asked] @ unit_NF.T
    similarity_AN[torch.arange(len(asked)), asked] = -2
    nearest_AK = similarity_AN.topk(min(NEIGHBOURS, len(unit_NF) - 1), dim=1).indices
    rows = [[int(one), *others] for one, others in zip(asked, nearest_AK.tolist(), strict=True)]
    return png(_grid(source, rows, found.labels_N), "images, each before its nearest neighbours")


def least_alike(found: Inspection, count: int = 9) -> str:
    """The images whose augmented views lie farthest apart, and below them those whose views lie closest."""
    order = found.spaces[0].alignment_N.argsort(descending=True)
    count = min(count, len(order) // 2)
    rows = [order[:count].tolist(), order[-count:].flip(0).tolist()]
    return png(_grid(found.source, rows, torch.full_like(found.labels_N, -1)), "images by how alike their views are")


def _grid(source: Source, rows: Sequence[Sequence[int]], labels_N: Tensor) -> np.ndarray:
    """Rows of images; the first of a labelled row is framed black, the others green or red."""
    step = TILE + 2 * GAP
    canvas = np.full((step * len(rows), step * max(map(len, rows)), 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, index in enumerate(row):
            frame = _frame(int(labels_N[row[0]]), int(labels_N[index]), first=x == 0)
            canvas[y * step + 1 : (y + 1) * step - 1, x * step + 1 : (x + 1) * step - 1] = frame
            inner = slice(y * step + GAP, y * step + GAP + TILE), slice(x * step + GAP, x * step + GAP + TILE)
            canvas[inner] = thumbnail(source, index, TILE)
    return canvas


def _frame(asked: int, label: int, *, first: bool) -> tuple[int, int, int]:
    if asked < 0 or label < 0:
        return (225, 229, 234)
    if first:
        return (28, 36, 48)
    return (46, 160, 67) if asked == label else (209, 73, 91)


def projection(found: Inspection) -> tuple[str, str]:
    """(picture, what it is): the features on a plane, by UMAP where it is installed, else on principal components."""
    features_NF = found.spaces[0].images_ND
    if importlib.util.find_spec("umap") is not None and len(features_NF) > 30:
        import umap  # type: ignore[import-not-found]

        places_N2 = umap.UMAP(metric="cosine", random_state=0).fit_transform(features_NF.numpy())
        return scatter(found.source, places_N2, found.labels_N, ("UMAP 1", "UMAP 2")), "by UMAP of cosine distances"
    places_N2, share = principal(features_NF)
    named = (f"first component, {share[0]:.0%} of the variance", f"second, {share[1]:.0%}")
    return scatter(found.source, places_N2, found.labels_N, named), "on their first two principal components"
