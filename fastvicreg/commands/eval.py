"""``fastvicreg eval {knn,linear} RUN --data PATH``: what a run's frozen features are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

METHODS = ("knn", "linear")


@dataclass(frozen=True)
class EvalOptions:
    """Classify a run's frozen features: knn (20 neighbours, temperature .07) or linear (logistic regression)."""

    method: Annotated[str, tyro.conf.Positional]
    """knn or linear."""
    run: Annotated[str, tyro.conf.Positional]
    """The run's folder."""
    data: str | None = None
    """Folder with train/ and val/ (or test/); default: the data the run was trained on."""
    k: int = 20
    """Neighbours of knn."""
    temperature: float = 0.07
    """Temperature of knn's weights."""
    labels_per_class: int = 0
    """Labels a class that linear may see; 0: all."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    json: str | None = None
    """Write the figures to this file."""


def main(arguments: Sequence[str]) -> int:
    """Print one accuracy; returns the exit code."""
    options = parse(EvalOptions, arguments, "eval")
    if options.method not in METHODS:
        raise UserError(unknown("method", options.method, METHODS))

    from fastvicreg.evaluate.frozen import evaluate_run

    result = evaluate_run(options)
    print(
        f"{options.method}: {result['accuracy']:.2f} % of {result['queries']:,} images, from a bank of "
        f"{result['bank']:,} in {result['classes']} classes ({result['checkpoint']})"
    )
    if result["faults"]:
        print(f"{result['faults']} images could not be read; a neighbour stands for each.")
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document(f"eval {options.method}", [result], 1))
    return 0
