"""``fastvicreg demo``: train on embedded images, compare, write a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError


@dataclass(frozen=True)
class DemoOptions:
    """Train VICReg on real photographs that are already here, and show what it learnt."""

    out: str | None = None
    """Folder for runs and report; default runs/demo-DATE-TIME."""
    seed: int = 0
    """Fixes order, crops, augmentation and initial weights."""
    epochs: int = 0
    """Epochs of the first run; 0: the demo's own number."""
    json: str | None = None
    """Write the table to this file."""


def main(arguments: Sequence[str]) -> int:
    """Run the story; returns the exit code."""
    options = parse(DemoOptions, arguments, "demo")
    if options.epochs < 0 or options.seed < 0:
        raise UserError(f"--epochs {options.epochs} --seed {options.seed}: give 0 or more.")
    out = Path(options.out or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")

    from fastvicreg import demo
    from fastvicreg.display import Display
    from fastvicreg.report import write_report

    display = Display()
    story = demo.tell(out, seed=options.seed, epochs=options.epochs, display=display)
    if story.stopped:
        display.note(f"stopped before the comparison; what was trained is in {out}")
        return 128 + story.stopped
    report = write_report(story)
    display.console.print(demo.table(story))
    display.note(", ".join(f"{name} {seconds:.0f} s" for name, seconds in story.seconds.items()))
    display.note(f"report: {report}")
    display.note("next, on your own images:  fastvicreg train --data FOLDER --preset imagenet-100ep --out runs/mine")
    display.note("  (FOLDER: class folders, or train/ and val/ of them; small images: --preset cifar10)")
    if options.json:
        from fastvicreg.profiles.measure import document, write_json

        rows = [row | {"seed": options.seed} for row in story.rows]
        write_json(options.json, document("demo", rows, 1) | {"seconds": dict(story.seconds)})
    return 0
