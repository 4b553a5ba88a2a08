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
    seeds: int = 1
    """Repeat the story over so many seeds; the report is the first one's, the figures are of all."""
    epochs: int = 0
    """Epochs of the first run; 0: the demo's own number."""
    json: str | None = None
    """Write the table to this file."""


def main(arguments: Sequence[str]) -> int:
    """Run the story; returns the exit code."""
    options = parse(DemoOptions, arguments, "demo")
    if options.epochs < 0 or options.seed < 0 or options.seeds < 1:
        asked = f"--epochs {options.epochs} --seed {options.seed} --seeds {options.seeds}"
        raise UserError(f"{asked}: give 0 or more, and at least one seed.")
    out = Path(options.out or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")

    from fastvicreg.demo import story as demo
    from fastvicreg.demo.report import write_report
    from fastvicreg.show.display import Display
    from fastvicreg.train.signals import exit_code

    display = Display()
    stories = []
    for seed in range(options.seed, options.seed + options.seeds):
        folder = out if seed == options.seed else out / f"seed-{seed}"
        story = demo.tell(folder, seed=seed, epochs=options.epochs, display=display)
        if story.stopped:
            display.note(f"stopped before the comparison; what was trained is in {out}")
            return exit_code(story.stopped)
        stories.append(story)
    story = stories[0]
    report = write_report(story)
    rows = demo.over_seeds(stories)
    display.console.print(demo.table(rows, options.seeds))
    display.note(", ".join(f"{name} {seconds:.0f} s" for name, seconds in story.seconds.items()))
    display.note(f"report: {report}")
    display.note("next, on your own images:  fastvicreg train --data FOLDER --preset imagenet-100ep --out runs/mine")
    display.note("  (FOLDER: class folders, or train/ and val/ of them; small images: --preset cifar10)")
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document("demo", rows, options.seeds) | {"seconds": dict(story.seconds)})
    return 0
