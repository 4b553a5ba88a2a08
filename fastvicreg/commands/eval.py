"""``fastvicreg eval PROTOCOL RUN --data PATH``: what a run's encoder, or anybody's features, are worth."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastvicreg.commandline import parse, part_named, with_parts
from fastvicreg.errors import UserError
from fastvicreg.evaluate.protocols import PROTOCOLS, protocol_class
from fastvicreg.provenance import require_place

if TYPE_CHECKING:
    from fastvicreg.evaluate.frozen import Evaluated

FOLDER = "eval"
"""Of reports, in a run's folder."""
SHOWN = 20
"""Classes that are shown on the screen; of more, the hardest."""


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate a run's encoder, or features from a file."""

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """The run's folder, or a file of weights (an export, or a checkpoint of VICReg, solo-learn, torchvision ...)."""
    data: str | None = None
    """Folder with train/ and val/ (or test/); default: the data the run was trained on."""
    val_data: str | None = None
    """Labelled images to classify, where they do not lie in --data as val/ or test/."""
    image: str | None = None
    """What holds the image, as for train; default: as the run was trained."""
    label: str | None = None
    """What holds the class (cls, txt, json:FIELD of tar shards; a field of a .beton); default: as in training."""
    robustness: tuple[str, ...] = ()
    """More labelled images for the same classifier, one folder or several: class folders, as ImageNet-R and -A, or
    corruption/severity/class folders, as ImageNet-C."""
    features: str | None = None
    """In place of a run: a .npz or .safetensors of train_features, train_labels, val_features and val_labels."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of the checkpoint; default: the newest whole one."""
    encoder: Literal["a", "b", "target"] = "a"
    """Whose encoder: a, the trained one's; b, the second branch's of a run with --branch-b; target, the momentum
    network's of BYOL, MoCo and DINO."""
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    cache: bool = True
    """Keep features of frozen encoders on disk, and take them from there."""
    report: str | None = None
    """Folder that receives the figures as JSON and as a page; default: eval/ in the run's folder."""
    json: str | None = None
    """Write the figures to this file."""
    settings: Any = field(default=None)


def main(arguments: Sequence[str]) -> int:
    """Print the figures and write them; returns the exit code."""
    if (named := part_named(arguments, "eval", "protocol", usage, PROTOCOLS)) is None:
        return 2
    name, rest = named
    kind = protocol_class(name)
    options_class = with_parts(EvalOptions, settings=kind())
    options_class.__doc__ = f"{EvalOptions.__doc__} {kind.__doc__}"
    options: Any = parse(options_class, rest, f"eval {name}")
    for path in (options.json, options.report and Path(options.report) / f"{name}.html"):
        if path:
            require_place(path)

    from fastvicreg.evaluate.frozen import Evaluation, evaluate_run

    kept = {part.name: getattr(options, part.name) for part in dataclasses.fields(Evaluation)}
    evaluated = evaluate_run(Evaluation(**kept), name, options.settings, lambda line: print(line, flush=True))
    _show(name, evaluated)
    _write(name, options, evaluated)
    return 0


def usage() -> str:
    """The help text."""
    lines = [f"  {name:10} {(protocol_class(name).__doc__ or '').splitlines()[0]}" for name in PROTOCOLS]
    return "\n".join(
        [
            "usage: fastvicreg eval PROTOCOL RUN [options]",
            "",
            "What a run's encoder, a file of weights, or anyone's features (--features FILE) are worth.",
            "",
            *lines,
            "",
            "fastvicreg eval PROTOCOL --help shows a protocol's options.",
        ]
    )


def _show(name: str, evaluated: Evaluated) -> None:
    """The headline, the settings' figures and the classes, as tables."""
    from fastvicreg.evaluate.report import cell, described, settings_shown
    from fastvicreg.evaluate.tables import show_table

    facts, rows = evaluated.facts, evaluated.rows
    where = facts.get("checkpoint") or facts.get("features")
    sizes = f"{facts['queries']:,} images, from a bank of {facts['bank']:,} in {facts['classes']} classes ({where})"
    if evaluated.by_class:
        print(f"{name}: {rows[evaluated.chosen]['accuracy']:.2f} % of {sizes}")
    else:
        print(f"{name}: {sizes}")
    columns = settings_shown(rows)
    intervals = any(column.endswith("_low") for row in rows for column in row)
    show_table(
        "in %, with 95 % confidence intervals" if intervals else "in %",
        columns,
        [[cell(row, c) for c in columns] for row in rows],
    )
    if further := evaluated.robustness:
        columns = settings_shown(further)
        setting = described(rows[evaluated.chosen])
        show_table(
            f"other images{', ' + setting if setting else ''}",
            columns,
            [[cell(row, c) for c in columns] for row in further],
        )
    for line in (*evaluated.published, *evaluated.notes):
        print(line)
    if facts.get("faults"):
        print(f"{facts['faults']} images could not be read; a neighbour stands for each.")
    if evaluated.by_class:
        hardest = sorted(evaluated.by_class, key=lambda row: row["accuracy"])
        title = (
            "classes, hardest first" if len(hardest) <= SHOWN else f"the {SHOWN} hardest of {len(hardest):,} classes"
        )
        columns = ["class", "images", "accuracy", "taken_for", "taken_for_share"]
        show_table(title, columns, [[cell(row, c) for c in columns] for row in hardest[:SHOWN]])


def _write(name: str, options: Any, evaluated: Evaluated) -> None:
    """JSON where it was asked for, and the reports."""
    from fastvicreg.evaluate.frozen import settings_of
    from fastvicreg.provenance import document, write_json

    settings = {"protocol": name, **settings_of(options.settings)}
    rows = [settings | evaluated.facts | row for row in evaluated.rows]
    content = document(f"eval {name}", rows, 1)
    if options.json:
        write_json(options.json, content)
    run = Path(options.run) if options.run is not None and Path(options.run).is_dir() else None
    if options.report is not None:
        folder = Path(options.report)
    elif run is not None:
        folder = run / FOLDER
    else:
        return
    from fastvicreg.evaluate.report import write_html

    stem = folder / getattr(options.settings, "label", name)
    if options.encoder != "a":
        stem = stem.with_name(f"{stem.name}-{options.encoder}")
    if options.val_data:
        stem = stem.with_name(f"{stem.name}-{Path(options.val_data).name}")
    counts = None if evaluated.count_CC is None else evaluated.count_CC.tolist()
    classes = {"classes": evaluated.by_class, "class_names": evaluated.classes, "confusion": counts}
    classes |= {"robustness": evaluated.robustness}
    try:
        write_json(
            f"{stem}.json", content | (classes if evaluated.by_class else {}) | {"published": evaluated.published}
        )
        write_html(Path(f"{stem}.html"), f"fastvicreg eval {name}", evaluated, settings)
    except UserError as error:
        if options.report:
            raise
        print(f"no report: {error}", file=sys.stderr)  # the run's folder may be another's
        return
    print(f"report: {stem}.html, {stem}.json")
