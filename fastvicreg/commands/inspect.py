"""``fastvicreg inspect RUN``: what a run's representation is like, without labels, in figures and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from fastvicreg.commandline import WhichEncoder, parse
from fastvicreg.errors import UserError
from fastvicreg.evaluate.inspect_settings import InspectSettings
from fastvicreg.provenance import require_place
from fastvicreg.train.run_folder import is_export


@dataclass(frozen=True, kw_only=True)
class InspectOptions(InspectSettings):
    """Diagnose a run's features and embeddings: rank, spectrum, dead dimensions, correlation, views, neighbours."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or a file of weights (an export, or a checkpoint of VICReg, solo-learn, torchvision ...)."""
    encoder: WhichEncoder = "a"
    against: str | None = None
    """Another run or file, shown beside it; CKA says how alike the two are."""
    out: str | None = None
    """The page, an .html file; default: inspect.html in RUN, or beside a file; of another encoder inspect-b.html."""
    json: str | None = None
    """Write the figures to this file."""


def main(arguments: Sequence[str]) -> int:
    """Print the figures and write the page; returns the exit code."""
    options = parse(InspectOptions, arguments, "inspect")
    run = Path(options.run)
    which = "" if options.encoder == "a" else f"-{options.encoder}"  # each has a page of its own
    page = run.with_suffix(f".inspect{which}.html") if run.is_file() else run / f"inspect{which}.html"
    if is_export(run):
        page = run.with_name(f"{run.name}.inspect{which}.html")
    out = Path(options.out or page)
    if out.is_dir() or out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {options.out}: give the name of an .html file.")
    for path in (out if options.out else None, options.json):
        if path:
            require_place(path)

    from fastvicreg.evaluate.inspection import compared, inspect_run, row
    from fastvicreg.pretrained import load_trained
    from fastvicreg.show.display import Display
    from fastvicreg.show.inspect_page import table, write

    display = Display()
    if options.against:
        load_trained(options.against, arch=options.arch, stem=options.stem)  # a mistake is told before minutes of work
    found = [inspect_run(options.run, options, note=display.note)]
    if options.against:
        # The checkpoint and the branch are RUN's.
        other = replace(options, checkpoint=None, encoder="a")
        found.append(inspect_run(options.against, other, note=display.note))
        found[0] = compared(found[0], found[1])
    for each in found:
        for note in each.notes:
            display.note(note)
    display.console.print(table(found, width=display.console.width))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(write(found))
    except OSError as error:
        raise UserError(f"cannot write the page {out}: {error.strerror}; give another --out.") from error
    display.note(f"page: {out}")
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document("inspect", [row(each) for each in found], 1))
    return 0
