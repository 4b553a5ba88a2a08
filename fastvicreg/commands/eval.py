"""``fastvicreg eval PROTOCOL RUN --data PATH``: what a run's encoder, or anybody's features, are worth."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastvicreg.commandline import WhichEncoder, flags_of, gathered, parse, part_named, with_parts
from fastvicreg.errors import UserError
from fastvicreg.evaluate.eval_settings import EvalSettings
from fastvicreg.evaluate.protocols import PROTOCOLS, protocol_class
from fastvicreg.provenance import require_place
from fastvicreg.registry import unknown
from fastvicreg.stalls import FIRST, watching

if TYPE_CHECKING:
    from fastvicreg.evaluate.frozen import Evaluated

FOLDER = "eval"
"""Of reports, in a run's folder."""
SHOWN = 20
"""Classes that are shown on the screen; of more, the hardest."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(EvalSettings):
    """Evaluate a run's encoder, or features from a file."""

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """The run's folder, or a file of weights (an export, or a checkpoint of VICReg, solo-learn, torchvision ...)."""
    encoder: WhichEncoder = "a"
    report: str | None = None
    """Folder that receives the figures as JSON and as a page; default: eval/ in the run's folder."""
    json: str | None = None
    """Write the figures to this file."""
    settings: Any = field(default=None)


def main(arguments: Sequence[str]) -> int:
    """Print the figures and write them; returns the exit code."""
    if (named := _named(arguments)) is None:
        return 2
    names, rest = named[0], gathered(named[1], "--robustness")
    chosen = _parsed(names, rest)
    for name, options in chosen.items():
        for path in (options.json, options.report and Path(options.report) / f"{name}.html"):
            if path:
                require_place(path)

    from fastvicreg.evaluate.frozen import Opened, evaluate_run, open_subject
    from fastvicreg.provenance import document, write_json

    rows: list[dict[str, Any]] = []
    opened: Opened | None = None
    for name, options in chosen.items():
        with watching(options.stall_timeout) as watch:  # of a protocol's own work nobody knows how long it takes
            watch(f"opening what eval {name} takes", factor=FIRST)
            opened = open_subject(options, name, options.settings, _tell, opened)
        evaluated = evaluate_run(options, name, options.settings, _tell, opened)
        _show(name, evaluated)
        rows += _write(name, options, evaluated)
        if options.json:  # after each, so that one that fails costs none that came before it
            write_json(options.json, document(f"eval {','.join(names)}", rows, 1))
    return 0


def _tell(line: str) -> None:
    print(line, flush=True)


def _named(arguments: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """The protocols that the first word names, one or several with commas between them, and the other arguments."""
    names = arguments[0].split(",") if arguments and not arguments[0].startswith("-") else []
    if len(names) < 2:
        found = part_named(arguments, "eval", "protocol", usage, PROTOCOLS)
        return None if found is None else ([found[0]], found[1])
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(unknown("protocol", name, tuple(PROTOCOLS)))
        if names.count(name) > 1:
            raise UserError(f"eval {arguments[0]} names {name} twice: once is enough.")
    return names, list(arguments[1:])


def _parsed(names: Sequence[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Each protocol's options. Of several each takes those that it knows; what none knows is refused."""
    classes: dict[str, type[Any]] = {}
    for name in names:
        kind = protocol_class(name)
        classes[name] = with_parts(EvalOptions, settings=kind())
        classes[name].__doc__ = f"{EvalOptions.__doc__} {kind.__doc__}"
    if len(names) == 1:
        return {name: parse(kind, arguments, f"eval {name}") for name, kind in classes.items()}
    if "-h" in arguments or "--help" in arguments:
        raise UserError(f"each protocol shows its own options: fastvicreg eval {names[0]} --help.")
    flags = {name: flags_of(kind) for name, kind in classes.items()}
    every = {flag: takes for known in flags.values() for flag, takes in known.items()}
    return {
        name: parse(kind, _without(arguments, every, every.keys() - flags[name].keys()), f"eval {name}")
        for name, kind in classes.items()
    }


def _without(arguments: Sequence[str], takes: Mapping[str, int | None], foreign: Set[str]) -> list[str]:
    """``arguments`` without the ``foreign`` options and the values that they take."""
    kept: list[str] = []
    left: float = 0  # values that still belong to a foreign option
    for word in arguments:
        flag, has_value, _ = word.partition("=")
        if flag.startswith("--"):
            left = 0
            if flag in foreign:
                count = takes[flag]
                left = 0 if has_value else float("inf") if count is None else count
                continue
        elif left > 0:
            left -= 1
            continue
        kept.append(word)
    return kept


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
            "Several at once take the features that the first one computed: fastvicreg eval knn,retrieval,svm RUN.",
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
    pairs = "direction" in rows[0]
    if pairs:
        sizes = f"{facts['queries']:,} pairs ({where})"
    if evaluated.by_class:
        print(f"{name}: {rows[evaluated.chosen]['accuracy']:.2f} % of {sizes}")
    else:
        print(f"{name}: {sizes}")
    columns = settings_shown(rows)
    intervals = any(column.endswith("_low") for row in rows for column in row)
    show_table(
        "recall in %, ranks from 1" if pairs else "in %, with 95 % confidence intervals" if intervals else "in %",
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


def _write(name: str, options: Any, evaluated: Evaluated) -> list[dict[str, Any]]:
    """The reports; the figures' rows."""
    from fastvicreg.evaluate.frozen import settings_of
    from fastvicreg.provenance import document, write_json
    from fastvicreg.train.run_folder import is_export

    settings = {"protocol": name, **settings_of(options.settings)}
    rows = [settings | evaluated.facts | row for row in evaluated.rows]
    content = document(f"eval {name}", rows, 1)
    run = Path(options.run) if options.run is not None and Path(options.run).is_dir() else None
    run = None if run and is_export(run) else run  # what is to be passed on gets none of this machine's paths
    if options.report is not None:
        folder = Path(options.report)
    elif run is not None:
        folder = run / FOLDER
    else:
        return rows
    from fastvicreg.evaluate.report import write_html

    stem = folder / "-".join([getattr(options.settings, "label", name), *_told_apart(options, evaluated)])
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
        return rows
    print(f"report: {stem}.html, {stem}.json")
    return rows


def _told_apart(options: Any, evaluated: Evaluated) -> list[str]:
    """What a report's name tells beside the protocol: beside a run no other images' figures take those of its own."""
    parts = [] if options.encoder == "a" else [options.encoder]
    if options.report is None:
        parts += [Path(evaluated.facts["checkpoint"]).name] if options.checkpoint else []
        parts += [_named_after(options.data)] if options.data else []
    return parts + ([_named_after(options.val_data)] if options.val_data else [])


def _named_after(data: str) -> str:
    """The last part of a path, a pattern or an address, as a part of a file's name."""
    return re.sub(r"[^\w.+=-]+", "_", Path(os.path.abspath(data)).name)
