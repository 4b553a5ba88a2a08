"""``fastvicreg inspect RUN``: what a run's representation is like, without labels, in figures and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from fastvicreg.commandline import WhichEncoder, parse
from fastvicreg.errors import UserError
from fastvicreg.provenance import require_place
from fastvicreg.train.run_folder import is_export


@dataclass(frozen=True)
class InspectOptions:
    """Diagnose a run's features and embeddings: rank, spectrum, dead dimensions, correlation, views, neighbours."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or a file of weights (an export, or a checkpoint of VICReg, solo-learn, torchvision ...)."""
    against: str | None = None
    """Another run or file, shown beside it; CKA says how alike the two are."""
    data: str | None = None
    """Images to look at, labelled or not; default: the validation split of the run's data."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of RUN's checkpoint; default: the newest whole one."""
    encoder: WhichEncoder = "a"
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""
    images: int = 1000
    """Images to look at, spread over the data."""
    views: int = 10
    """Augmented views of each, for LiDAR and alignment."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Decoding threads; 0: one a core."""
    fault_count: int | None = None
    """The command ends when more images than this cannot be read, each being replaced by a neighbour ..."""
    fault_share: float | None = None
    """... and more than this share of the images; default of both: as the run was trained."""
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

    from fastvicreg.evaluate.inspection import Asked, compared, inspect_run, row
    from fastvicreg.pretrained import load_trained
    from fastvicreg.show.display import Display
    from fastvicreg.show.inspect_page import table, write

    display = Display()
    if options.against:
        load_trained(options.against, arch=options.arch, stem=options.stem)  # a mistake is told before minutes of work
    asked = Asked(**{one.name: getattr(options, one.name) for one in fields(Asked)})
    found = [inspect_run(options.run, asked, note=display.note)]
    if options.against:
        # The checkpoint and the branch are RUN's.
        found.append(inspect_run(options.against, replace(asked, checkpoint=None, encoder="a"), note=display.note))
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
