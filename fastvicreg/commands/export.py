"""``fastvicreg export RUN FILE``: a run's encoder, or anyone's weights, as a file that others load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvicreg.commandline import WhichEncoder, parse
from fastvicreg.encoders import takes
from fastvicreg.errors import UserError
from fastvicreg.export import TARGETS
from fastvicreg.registry import resolve, unknown

TARGET_OF_ENDING = {".onnx": "onnx", ".pth": "torchvision", ".pt": "torchscript", ".pkl": "detectron2"}
"""Endings of files that hold no safetensors, and the likeliest target: --to was left out."""


@dataclass(frozen=True)
class ExportOptions:
    """Write an encoder, without its expander or predictor, with a model card; read it back and compare."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or a file of weights: an export, or a checkpoint of VICReg, VICRegL, Barlow Twins, solo-learn,
    lightly, torchvision, timm and others, of which no code is run."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to write (hf: folder); must not exist."""
    to: Annotated[
        str,
        tyro.conf.arg(
            help="safetensors: weights under torchvision's (timm's) names, fastvicreg.load_encoder reads it; "
            "torchvision: .pth; timm: .safetensors; hf: a folder for the Hugging Face Hub; onnx; torchscript; "
            "detectron2: .pkl."
        ),
    ] = "safetensors"
    checkpoint: str | None = None
    """Number of steps (500), name (step-00000500) or folder of the checkpoint; default: the newest whole one."""
    encoder: WhichEncoder = "a"
    arch: str | None = None
    """Architecture that a file of weights must have; default: the one that its shapes tell."""
    stem: str | None = None
    """What a 3x3 stem in a file of weights was, where its layout does not tell: 3x3, 3x3s2 or 3x3p2."""


def main(arguments: Sequence[str]) -> int:
    """Write, and say how to load it; returns the exit code."""
    options = parse(ExportOptions, arguments, "export")
    if options.to not in TARGETS:
        raise UserError(unknown("target", options.to, TARGETS))
    path = Path(options.file)
    if path.exists():
        raise UserError(f"{path} exists already: give another FILE, or remove it first.")

    if options.to == "safetensors" and (meant := TARGET_OF_ENDING.get(path.suffix)):
        raise UserError(
            f"{path} would hold safetensors under another's ending: give --to {meant}, or FILE.safetensors."
        )

    from fastvicreg.pretrained import load_trained

    trained = load_trained(
        options.run, options.checkpoint, encoder=options.encoder, arch=options.arch, stem=options.stem
    )
    if options.to != "safetensors" and (kind := takes(trained.config.encoder)) != "images":
        raise UserError(f"--to {options.to} is for encoders of images, and this one takes {kind}: --to safetensors.")
    for note in trained.notes:
        print(note)
    written = resolve("target", options.to, TARGETS)(trained, path)
    if trained.passed_over:
        print(f"{trained.passed_over}: what was exported is older.")
    size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))
    print(f"{path}: {trained.config.encoder.arch} of {trained.checkpoint}, {size / 1e6:,.1f} MB; {written.proof}")
    print(f"next: {written.load}")
    return 0
