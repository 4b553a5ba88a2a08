"""Pictures in a page: matplotlib figures as inline SVG, images as inline PNG, images of a source where they belong."""

from __future__ import annotations

import base64
import html
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fastvicreg.contracts import Source
from fastvicreg.pipelines.decode import DecodeError, decode_sample

OWN, OTHER, GREY = "#1f6feb", "#d1495b", "#8a94a3"
SIDE = 32
"""Pixels of an image in a scatter."""
LEGEND = 20
"""Classes that have a colour of their own."""


def axes_of(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, with plain axes side by side."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e6e9ee")
        ax.set_axisbelow(True)
    return figure, list(axes[0])


def svg(figure: Figure) -> str:
    """``figure`` as an element of a page; it is closed."""
    buffer = io.StringIO()
    # Text stays text: searchable, and drawn in the page's own font.
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(pixels_HWC: np.ndarray, alt: str) -> str:
    """(H, W, 3) uint8 as an element of a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def thumbnail(source: Source, index: int, side: int) -> np.ndarray:
    """(side, side, 3) uint8, the whole image squeezed into it; two crossed lines where it cannot be read."""
    try:
        image = Image.fromarray(decode_sample(source, index))
    except (DecodeError, OSError):
        crossed = np.eye(side, dtype=bool)
        return np.where((crossed | crossed[::-1])[:, :, None], np.uint8(120), np.uint8(235)).repeat(3, 2)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def principal(z_ND: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(places_N2 on the first two principal components, their shares of the variance)."""
    centred = z_ND - z_ND.mean(0)
    _, singular, basis = torch.pca_lowrank(centred, q=2, center=False, niter=8)
    share = singular.square() / centred.square().sum().clamp_min(1e-30)
    return (centred @ basis / len(centred) ** 0.5).numpy(), share.numpy()


def scatter(source: Source, places_N2: np.ndarray, labels_N: Tensor, named: tuple[str, str], shown: int = 400) -> str:
    """At most ``shown`` images at their places, framed by class where they have labels; ``named`` are the axes."""
    figure, (ax,) = axes_of(10, 7)
    ax.grid(visible=False)
    colours = plt.get_cmap("tab20")
    generator = np.random.default_rng(0)
    for index in generator.permutation(len(places_N2))[:shown]:
        image, label = thumbnail(source, int(index), SIDE), int(labels_N[index])
        framed = np.empty((SIDE + 4, SIDE + 4, 3), np.uint8)
        framed[:] = np.array(colours(label % LEGEND)[:3]) * 255 if label >= 0 else 200
        framed[2:-2, 2:-2] = image
        _place(ax, framed, places_N2[index], np.ptp(places_N2, axis=0))
    if int(labels_N.max()) >= 0 and len(source.classes) <= LEGEND:
        for number, name in enumerate(source.classes):
            ax.plot([], [], "s", color=colours(number % LEGEND), label=name.replace("$", r"\$"))
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    ax.set(xlabel=named[0], ylabel=named[1])
    ax.autoscale()
    return svg(figure)


def _place(ax: Axes, image: np.ndarray, at: np.ndarray, extent: np.ndarray) -> None:
    half = extent * np.array([0.011, 0.0155])
    ax.imshow(
        image, extent=(at[0] - half[0], at[0] + half[0], at[1] - half[1], at[1] + half[1]), aspect="auto", zorder=2
    )
