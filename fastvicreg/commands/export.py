"""``fastvicreg export RUN FILE``: a run's encoder as a file that others load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.export import TARGETS
from fastvicreg.registry import resolve, unknown


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's encoder, without its expander or predictor, and read it back."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write; must not exist."""
    to: str = "safetensors"
    """safetensors: weights under torchvision's names; fastvicreg.load_encoder reads it too."""
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of the checkpoint; default: the newest whole one."""


def main(arguments: Sequence[str]) -> int:
    """Write, and say how to load it; returns the exit code."""
    options = parse(ExportOptions, arguments, "export")
    if options.to not in TARGETS:
        raise UserError(unknown("target", options.to, TARGETS))
    path = Path(options.file)
    if path.exists():
        raise UserError(f"{path} exists already: give another FILE, or remove it first.")

    from fastvicreg.pretrained import load_trained

    trained = load_trained(options.run, options.checkpoint)
    resolve("target", options.to, TARGETS)(trained, path)
    if trained.passed_over:
        print(f"{trained.passed_over}: what was exported is older.")
    print(f"{path}: {trained.config.encoder.arch} of {trained.checkpoint}, {path.stat().st_size / 1e6:,.1f} MB")
    print(f'next: encoder = fastvicreg.load_encoder("{path}"); features = encoder(encoder.preprocess(image)[None])')
    return 0
