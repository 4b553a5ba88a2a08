"""The demo's report: one self-contained HTML page, no script, nothing fetched."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from fastvicreg.config_file import load, to_json
from fastvicreg.demo.story import HEADINGS, PROBES, Story
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import VICReg
from fastvicreg.show import plots
from fastvicreg.show.metrics import read
from fastvicreg.show.page import page, provenance
from fastvicreg.train.device import resolve_device


def write_report(story: Story) -> Path:
    """Write ``report.html`` into the story's folder and return its path."""
    rows, collapse = read(story.main), read(story.collapse)
    steps = [row for row in rows if "total" in row]
    knn = [row for row in rows if "knn" in row]
    config = load(story.main)
    assert isinstance(config.method, VICRegConfig)
    baselines = {row["features"]: row["knn"] for row in story.rows[:3]}
    collapse_steps = [row for row in collapse if "total" in row]
    accuracy = story.rows[-1]
    seconds = sum(story.seconds.values())
    body = f"""
<h1>fastvicreg demo</h1>
<p class="lead">VICReg on {len(story.classes)} photographs, without labels: {config.run.epochs} epochs on
{resolve_device(config.run.device)} in {story.seconds["training"]:.0f} s; all on this page took {seconds:.0f} s.</p>
<section><h2>What it learnt</h2>
<p>Accuracy in % of a classifier on frozen features, on tiles of the photographs that training never saw. Labels are
used here only, after training. {html.escape(_sentence(story.rows))}</p>
{_table(story.rows)}</section>
<section><h2>kNN accuracy over time</h2>{plots.knn(knn, baselines)}</section>
<section><h2>The three terms</h2>
<p>The variance term keeps every dimension's standard deviation up, the invariance term pulls the two views of an image
together, the covariance term decorrelates the dimensions. A batch of {config.run.batch_size} in
{config.method.expander[-1]} dimensions cannot bring the covariance term to 0: the dotted line is the least possible at
the measured variances, the dashed line what independent embeddings would give.</p>
{plots.terms(steps, VICReg.columns[:3])}</section>
<section><h2>Without the variance term</h2>
<p>The same run with variance weight 0: every image gets nearly the same embedding. Its standard deviation falls to
{collapse_steps[-1]["embedding_std"]:.3g}, against {accuracy["embedding_std"]:.3g} with it.</p>
{plots.collapse(steps, collapse_steps)}</section>
<section><h2>Two views of an image</h2>
<p>Left the image file, right of it the pair of views that one training step saw: crops, flips, colour jitter, grey,
solarization, by the <code>{html.escape(config.data.recipe)}</code> recipe.</p>
{plots.pairs(config)}</section>
<section><h2>The embedding space</h2>
<p>Features of the test patches on their first two principal components, each patch drawn where it lies.
The colour of the frame is the photograph it comes from.</p>
{plots.pca(story.features, config)}</section>
<section><h2>Your own images</h2>
<pre>fastvicreg train --data FOLDER --preset imagenet-100ep --out runs/mine
fastvicreg eval knn runs/mine
fastvicreg doctor</pre></section>
<section><h2>How this was made</h2>{provenance()}
<details><summary>The run's config</summary><pre>{html.escape(to_json(config))}</pre></details></section>
"""
    path = story.folder / "report.html"
    path.write_text(page("fastvicreg demo", body))
    return path


def _sentence(rows: list[dict[str, Any]]) -> str:
    own, others = rows[-1], rows[:3]
    margins = [f"{HEADINGS[name]} {own[name] - max(row[name] for row in others):+.1f}" for name in PROBES]
    return f"Against the best of the first three rows, in points: {', '.join(margins)}."


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in ("features", *HEADINGS.values()))
    lines = []
    for row in rows:
        std = "" if row["embedding_std"] is None else f"{row['embedding_std']:.3g}"
        cells = [html.escape(row["features"]), *(f"{row[name]:.1f}" for name in PROBES), std]
        own = ' class="own"' if row is rows[-1] else ""
        lines.append(f"<tr{own}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
