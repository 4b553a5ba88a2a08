"""A file of anyone's weights as an encoder of ours, and a line on what was recognised and what was left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvicreg.encoders import EncoderConfig, build_encoder
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.weights.architecture import convnext_of, described, native_size, resnet_of, vit_of
from fastvicreg.weights.files import Content
from fastvicreg.weights.layouts import find


@dataclass(frozen=True)
class Imported:
    """An encoder from a file of weights, in evaluation mode."""

    encoder: nn.Module
    config: EncoderConfig
    image_size: int
    """Side of the images that such encoders usually take: the file does not say it."""
    layout: str
    """Which program's checkpoint it was."""
    notes: tuple[str, ...]
    """What was recognised, left out and assumed, a line each."""


def import_weights(content: Content, *, arch: str | None = None, stem: str | None = None) -> Imported:
    """The encoder in ``content``. Its architecture is read from the shapes; ``arch`` is only compared with it.

    ``stem`` says what a first convolution of 3x3 was, where the layout does not tell stride and padding.

    Raises ``UserError`` where there is no encoder that is known here, or it is another one, incomplete or not finite.
    """
    found, origin = find(content), str(content.path)
    config: EncoderConfig
    notes: list[str] = []
    if found.family == "resnet":
        taken = _complete(found.tensors)
        config = resnet_of(taken, origin, stem=stem or "") if stem else _resnet(taken, origin, found.stem)
        if config.stem.startswith("3x3") and not (stem or found.stem):
            notes.append(
                "stride and padding of its 3x3 stem are not in the file: taken as stride 1, padding 1 "
                "(--stem 3x3p2: padding 2, as solo-learn; 3x3s2: stride 2)."
            )
    else:
        of, noun = (vit_of, "vision transformer") if found.family == "vit" else (convnext_of, "ConvNeXt")
        if stem:
            raise UserError(f"--stem {stem}: {origin} holds a {noun}, which has none.")
        taken, config = found.tensors, of(found.tensors, origin)
    if arch is not None and arch != config.arch:
        raise UserError(f"--arch {arch}: {origin} holds {described(config)}; give --arch {config.arch}, or none.")
    with torch.random.fork_rng(devices=[]):  # a run that begins with these weights draws what it would have drawn
        encoder = build_encoder(config)
    assert isinstance(encoder, nn.Module)
    checkpoints.load_weights(encoder, taken, origin)
    if spoilt := checkpoints.not_finite(taken):
        raise UserError(f"{origin}: {spoilt} of the encoder is not finite.")
    told = f"{content.path.name}: {described(config)}, from {found.title}"
    told += f"; left out: {', '.join(found.left_out)}." if found.left_out else "."
    notes.insert(0, told)
    if content.foreign:
        notes.append(f"names of code in it were not looked up, and nothing was run: {', '.join(content.foreign)}.")
    size = native_size(config)
    notes.append(f"pixels: {size} px, ImageNet's mean and standard deviation; the file does not say its own.")
    return Imported(encoder.eval(), config, size, found.title, tuple(notes))


def require_same(found: EncoderConfig, asked: EncoderConfig, path: str | Path) -> None:
    """``UserError`` where an encoder of ``found`` cannot begin a run of ``asked``, with the options for it."""
    alike = _of_weights(found) == _of_weights(asked)
    if isinstance(found, ResNetConfig) and isinstance(asked, ResNetConfig):
        # Stride and padding of a stem are the run's own to choose: its weights have no part in them.
        alike = (found.arch, found.width, found.stem[:3]) == (asked.arch, asked.width, asked.stem[:3])
    if alike:
        return
    settings = {name: value for name, value in _of_weights(found).items() if name != "arch"}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    raise UserError(
        f"--init {path} holds {described(found)}, the run is of {described(asked)}: give --arch {found.arch} {options}."
    )


def _of_weights(config: EncoderConfig) -> dict[str, Any]:
    """The settings that weights depend on.

    Stochastic depth is how a run trains, and no part of what is trained; of a ConvNeXt's layer scales it counts whether
    there are any, not what they began with.
    """
    settings: dict[str, Any] = asdict(config)  # type: ignore[call-overload]
    settings.pop("drop_path", None)
    if isinstance(config, ConvNeXtConfig) and config.layer_scale:
        settings["layer_scale"] = ConvNeXtConfig.layer_scale
    return settings


def _resnet(tensors: dict[str, Tensor], origin: str, stem: str) -> ResNetConfig:
    """``stem`` is what the layout means by a 3x3 convolution; it says nothing of others."""
    kernel = tuple(tensors["conv1.weight"].shape)[2] if "conv1.weight" in tensors else 0
    return resnet_of(tensors, origin, stem=stem if kernel == 3 else "")


def _complete(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With batch norms' counters, which files of torch before 0.4.1 and converted ones have not."""
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.zeros((), dtype=torch.int64)
        for name in tensors
        if name.endswith("running_mean")
    }
    return {**counters, **tensors}
