"""The page of an inspection: one run's features and embeddings, or two runs side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fastvicreg.config_file import to_json
from fastvicreg.evaluate.inspection import Inspection, Space
from fastvicreg.show import inspect_plots as plots
from fastvicreg.show.page import page, provenance


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    title: str
    reading: str
    """What its value says."""
    form: str = ".3f"

    def of(self, space: Space) -> str:
        """The value of ``space`` as text; "-" where it has none."""
        value = space.figures[self.name]
        return "-" if value is None else format(value, self.form)


FIGURES = (
    Figure("dimensions", "dimensions", "width D of the vectors", ".0f"),
    Figure("rankme", "RankMe", "dimensions in use, 1 to D: exp of the entropy of the singular values", ".1f"),
    Figure("lidar", "LiDAR", "dimensions that tell images apart once their views' scatter is whitened, 1 to D", ".1f"),
    Figure("alpha_req", "alpha-ReQ", "decay of the eigenvalues; near 1 is best, above it few dimensions rule", ".2f"),
    Figure("std", "std", "mean standard deviation of a dimension; VICReg pulls that of embeddings to 1", ".3g"),
    Figure(
        "dead", "dead dimensions", "whose standard deviation is under .001, or under 1 % of the median one's", ".0f"
    ),
    Figure("std_normalized", "std of unit vectors", "times sqrt(D): 1 where vectors point everywhere, 0 on collapse"),
    Figure("correlation", "|correlation|", "mean between two dimensions; 0: each says something of its own"),
    Figure("alignment", "alignment", "squared distance of two views of an image, unit vectors; 0: views are one"),
    Figure("uniformity", "uniformity", "0: all images at one point; -4: spread over the whole sphere", ".2f"),
)

CKA_READING = "1: the same up to rotation; 0: nothing in common"
READS_FROM = 130
"""Columns of a terminal from which the table says what its figures mean."""


def columns_of(found: Sequence[Inspection]) -> list[tuple[str, Space]]:
    """Every space of every run with its heading, features before embeddings."""
    if len(found) == 1:
        return [(space.name, space) for space in found[0].spaces]
    return [(f"{name}, {title}", space) for name, same in _by_name(found) for title, space in same]


def _by_name(found: Sequence[Inspection]) -> list[tuple[str, list[tuple[str, Space]]]]:
    """Each kind of space with the runs that have it, by title."""
    spaces: dict[str, list[tuple[str, Space]]] = {}
    for title, each in zip(_titles(found), found, strict=True):
        for space in each.spaces:
            spaces.setdefault(space.name, []).append((title, space))
    return list(spaces.items())


def _titles(found: Sequence[Inspection]) -> list[str]:
    """The runs' folder names, or their paths where the names are the same."""
    short = [Path(each.run).name for each in found]
    return short if len(set(short)) == len(short) else [each.run for each in found]


def table(found: Sequence[Inspection], *, width: int = 80) -> Table:
    """The figures as a terminal table, with what they say where ``width`` columns hold it."""
    columns, own = columns_of(found), found[0]
    reads = width >= READS_FROM
    shown = Table(
        title=f"{len(own.source):,} images, {own.spaces[0].views_NQD.shape[1]} views of {own.viewed:,}",
        title_justify="left",
    )
    shown.add_column("", no_wrap=True)
    for heading, _ in columns:
        shown.add_column(heading, justify="right")
    if reads:
        shown.add_column("reads", overflow="fold")
    for figure in FIGURES:
        shown.add_row(figure.title, *(figure.of(space) for _, space in columns), *[figure.reading] * reads)
    for name, value in own.cka.items():
        empty = [""] * (len(columns) - 1)
        shown.add_row(f"CKA of {name}", f"{value:.3f}", *empty, *[CKA_READING] * reads)
    return shown


def write(found: Sequence[Inspection]) -> str:
    """The page's text."""
    own, spaces = found[0], _by_name(found)
    spectra = "".join(f"<h3>{name}</h3>{plots.spectra(same)}" for name, same in spaces)
    deviations = "".join(f"<h3>{name}</h3>{plots.deviations(same)}" for name, same in spaces)
    against = f" against <code>{html.escape(found[1].run)}</code>" if len(found) > 1 else ""
    projected, how = plots.projection(own)
    config = own.config
    method = f"{config.method.name}, " if "embeddings" in dict(spaces) else ""  # of a file only the encoder is known
    body = f"""
<h1>{html.escape(own.run)}</h1>
<p class="lead">{html.escape(method + config.encoder.arch)}, <code>{html.escape(own.checkpoint)}</code>{against}.
{len(own.source):,} images of {html.escape(own.where)}.</p>
<section><h2>Figures</h2>
<p>Features are the encoder's outputs, embeddings those of the method's expander or projector, on which its loss acts.
LiDAR and alignment see {own.spaces[0].views_NQD.shape[1]} augmented views of {own.viewed:,} images, the others centre
crops.</p>{_table(found)}</section>
<section><h2>Spectrum</h2>
<p>Eigenvalues of the covariance. A flat line uses all dimensions; one that falls off a cliff has collapsed onto a few.
The dashed line is the fitted power law.</p>
{spectra}</section>
<section><h2>Dimensions</h2>
<p>Standard deviation of each dimension: dead ones stand apart at the left.</p>
{deviations}
<p>Correlation of dimensions, at most {plots.CORRELATED}: off the diagonal dark is decorrelated. Dimensions are ordered
so that those which go together lie side by side.</p>
{plots.correlations(columns_of(found))}</section>
<section><h2>Views of an image</h2>
<p>How far two augmented views of an image lie apart (filled), against two different images (outline). Where the two
overlap, the encoder does not know an image again.</p>{plots.alignments(spaces[0][1])}
<p>Images whose views lie farthest apart, and in the second row closest together.</p>{plots.least_alike(own)}</section>
<section><h2>Nearest neighbours</h2>
<p>Each row: an image, then the nearest others by the cosine of their features{_frames(own)}.</p>
{plots.neighbours(own)}</section>
<section><h2>Map</h2><p>Features {how}, each image drawn where it lies.</p>{projected}</section>
<section><h2>How this was made</h2>{provenance()}
<details><summary>The run's config</summary><pre>{html.escape(to_json(config))}</pre></details></section>
"""
    return page(f"fastvicreg inspect {own.run}", body)


def _frames(found: Inspection) -> str:
    if int(found.labels_N.max()) < 0:
        return ""
    return "; a green frame is the same class, a red one another"


def _table(found: Sequence[Inspection]) -> str:
    columns = columns_of(found)
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("", *(heading for heading, _ in columns), "reads"))
    lines = [
        f"<td>{figure.title}</td>"
        + "".join(f"<td>{figure.of(space)}</td>" for _, space in columns)
        + f"<td>{html.escape(figure.reading)}</td>"
        for figure in FIGURES
    ]
    empty = "<td></td>" * (len(columns) - 1)
    lines += [
        f"<td>CKA of {name}</td><td>{value:.3f}</td>{empty}<td>{CKA_READING}</td>"
        for name, value in found[0].cka.items()
    ]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table class='read'><tr>{head}</tr>{rows}</table>"
