"""A state dict that torchvision's ResNets load strictly, once their ``fc`` is an identity."""

from __future__ import annotations

from pathlib import Path

import torch

from fastvicreg.encoders import EncoderConfig
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.export import Written
from fastvicreg.export.writing import draft_with_card, features, noise_input, peer, require_close, tensors_of
from fastvicreg.pretrained import TrainedEncoder

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")


def name_of(config: EncoderConfig, target: str) -> str:
    """Torchvision's and timm's name of a ResNet; ``UserError`` where they have no such."""
    published = isinstance(config, ResNetConfig) and config.stem == "7x7" and config.width == 64
    if published and config.arch in NAMES:
        return config.arch
    told = f"width {config.width}, stem {config.stem}" if isinstance(config, ResNetConfig) else "no ResNet of images"
    raise UserError(
        f"--to {target} has no {config.arch} ({told}): it takes {', '.join(NAMES)} of width 64 with a 7x7 stem. "
        f"--to safetensors takes any encoder."
    )


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Write a ``.pth`` of ``torch.save`` that ``torch.load(weights_only=True)`` reads, with its card beside it.

    Its features are compared in our network, and in torchvision's where it imports. ``UserError`` for an architecture
    that torchvision has not, and where the file cannot be written.
    """
    name = name_of(trained.config.encoder, "torchvision")
    load = (
        f"model = torchvision.models.{name}(); model.fc = torch.nn.Identity(); "
        f'model.load_state_dict(torch.load("{path}", weights_only=True))'
    )
    x_BCHW = noise_input(trained)
    expected_BF = features(trained.encoder, x_BCHW)
    torchvision, reason = peer("torchvision")
    with draft_with_card(trained, path, f"import torch, torchvision\n\n{load}") as aside:
        torch.save(tensors_of(trained), aside)
        read = torch.load(aside, weights_only=True)
        own = _ours(trained)
        own.load_state_dict(read)
        worst = require_close("torch.load", path, features(own, x_BCHW), expected_BF)
        proof = f"read back by torch.load, largest difference {worst:.0e}; torchvision does not import here ({reason})"
        if torchvision is not None:
            model = torchvision.models.get_model(name)
            model.fc = torch.nn.Identity()
            model.load_state_dict(read)
            worst = require_close("torchvision", path, features(model, x_BCHW), expected_BF)
            proof = f"loaded by torchvision {torchvision.__version__}, largest difference {worst:.0e}"
    return Written(proof, load)


def _ours(trained: TrainedEncoder) -> torch.nn.Module:
    encoder = trained.config.encoder.build()
    assert isinstance(encoder, torch.nn.Module)
    return encoder
