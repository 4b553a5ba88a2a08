"""A safetensors file that ``timm.create_model(..., checkpoint_path=FILE)`` loads strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fastvicreg.encoders import EncoderConfig
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.timm.network import TimmEncoder
from fastvicreg.encoders.vit.config import ViTConfig
from fastvicreg.errors import UserError
from fastvicreg.export import Written
from fastvicreg.export.card import texts_of
from fastvicreg.export.torchvision import name_of as resnet_name
from fastvicreg.export.writing import draft, features, noise_input, peer, require_close, tensors_of
from fastvicreg.pretrained import TrainedEncoder, load_encoder

PATCHES = {"vit_tiny": (16,), "vit_small": (8, 16, 32), "vit_base": (8, 16, 32)}
"""Sides of patches for which timm registers a network of 224 px."""


def name_of(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Timm's name of one of our networks, and the arguments beside it; ``UserError`` where timm has no such network."""
    if isinstance(config, ConvNeXtConfig):
        return config.arch, _convnext_options(config)
    if not isinstance(config, ViTConfig):
        return resnet_name(config, "timm"), {}
    if config.depth != 12 or config.patch not in PATCHES[config.arch]:
        known = "; ".join(f"{arch} of patch {', '.join(map(str, sides))}" for arch, sides in PATCHES.items())
        raise UserError(
            f"--to timm has no {config.arch} of patch {config.patch} and depth {config.depth}: it takes {known}, "
            f"depth 12. --to safetensors takes any encoder."
        )
    size = config.patch * config.grid
    return f"{config.arch}_patch{config.patch}_224", {} if size == 224 else {"img_size": size}


def _convnext_options(config: ConvNeXtConfig) -> dict[str, Any]:
    for flag, value, timm_s in (("--final-norm", config.final_norm, "pooled"), ("--patch", config.patch, 4)):
        if value != timm_s:
            raise UserError(
                f"--to timm has no {config.arch} of {flag} {value}, only of {timm_s}. --to safetensors takes any "
                "encoder."
            )
    options: dict[str, Any] = {}
    if config.width:
        options["dims"] = [config.width * 2**stage for stage in range(4)]
    if not config.layer_scale:
        options["ls_init_value"] = None
    return options


def side_of(trained: TrainedEncoder) -> int:
    """Side of the images that timm's network takes: a vision transformer there has the positions of one size."""
    config = trained.config.encoder
    return config.patch * config.grid if isinstance(config, ViTConfig) else trained.config.data.image_size


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Write timm's names, with the card in the header; compared in our network, and in timm's where it imports.

    ``UserError`` for an architecture that timm has not, a name that timm would not read as safetensors, and where the
    file cannot be written.
    """
    encoder = trained.encoder
    theirs = encoder if isinstance(encoder, TimmEncoder) else None
    name, options = (theirs.name, theirs.options) if theirs else name_of(trained.config.encoder)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: timm tells a file by its ending; give FILE.safetensors.")
    x_BCHW = noise_input(trained, side=side_of(trained))
    expected_BF = features(trained.encoder, x_BCHW)
    timm, reason = peer("timm")
    with draft(path) as aside:
        proof = ""
        if theirs is None:
            save_file(tensors_of(trained), aside, texts_of(trained))
            worst = require_close("fastvicreg", path, features(load_encoder(aside), x_BCHW), expected_BF)
            proof = f"read back by fastvicreg.load_encoder, largest difference {worst:.0e}; timm does not import here"
            proof += f" ({reason})"
        else:
            tensors = {name: value.cpu().contiguous().clone() for name, value in theirs.timm_tensors().items()}
            save_file(tensors, aside, {"format": "pt"})
        if timm is not None:
            model = timm.create_model(name, num_classes=0, checkpoint_path=str(aside), **options)
            worst = require_close("timm", path, features(model, x_BCHW), expected_BF)
            proof = f"loaded by timm {timm.__version__}, largest difference {worst:.0e}"
    given = "".join(f", {key}={value}" for key, value in options.items())
    return Written(proof, f'model = timm.create_model("{name}", num_classes=0, checkpoint_path="{path}"{given})')
