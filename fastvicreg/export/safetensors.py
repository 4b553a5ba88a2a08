"""Weights under torchvision's or timm's parameter names in a safetensors file, whose header is the model card."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from fastvicreg.export import Written
from fastvicreg.export.card import texts_of
from fastvicreg.export.writing import draft, features, noise_input, require_close, tensors_of
from fastvicreg.pretrained import TrainedEncoder, load_encoder


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Any encoder. ResNets have torchvision's names without ``fc``, vision transformers timm's without ``head``.

    So ``model.load_state_dict(tensors, strict=False)`` takes them there. ``UserError`` where it cannot be written.
    """
    x_BCHW = noise_input(trained)
    with draft(path) as aside:
        save_file(tensors_of(trained), aside, texts_of(trained))
        found_BF, expected_BF = features(load_encoder(aside), x_BCHW), features(trained.encoder, x_BCHW)
        worst = require_close("fastvicreg.load_encoder", path, found_BF, expected_BF)
    given = "image" if trained.modality is None else "caption" if trained.modality.name == "text" else "sound"
    load = f'encoder = fastvicreg.load_encoder("{path}"); features = encoder(encoder.preprocess({given})[None])'
    return Written(f"read back by fastvicreg.load_encoder, largest difference {worst:.0e}", load)
