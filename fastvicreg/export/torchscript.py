"""A TorchScript program from images (B, 3, H, W), normalised, to features (B, F), for any B; the card is in it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from fastvicreg.export import Written
from fastvicreg.export.card import card_of
from fastvicreg.export.writing import draft, features, noise_input, require_close
from fastvicreg.pretrained import METADATA, TrainedEncoder


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Trace the encoder, read it back and run it on another batch than it was traced with.

    ``UserError`` where the file cannot be written.
    """
    encoder = trained.encoder.eval().cpu()
    with draft(path) as aside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript old, and a ViT's check of its image size is traced
        traced = torch.jit.trace(encoder, noise_input(trained), check_trace=False)
        torch.jit.save(traced, str(aside), _extra_files={METADATA: json.dumps(card_of(trained))})
        read, worst = torch.jit.load(str(aside)), 0.0
        for batch in (1, 3):
            x_BCHW = noise_input(trained, batch)
            worst = max(worst, require_close("torch.jit", path, features(read, x_BCHW), features(encoder, x_BCHW)))
    proof = f"run by torch.jit on batches of 1 and 3, largest difference {worst:.0e}"
    return Written(proof, f'model = torch.jit.load("{path}"); features = model(images)')
