"""Networks from images to features, by the name of their architecture. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from fastvicreg import registry
from fastvicreg.registry import resolve_class

if TYPE_CHECKING:
    from fastvicreg.contracts import Encoder

RESNET = "fastvicreg.encoders.resnet.config:ResNetConfig"
VIT = "fastvicreg.encoders.vit.config:ViTConfig"

ENCODERS = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet50x2": RESNET,
    "vit_tiny": VIT,
    "vit_small": VIT,
    "vit_base": VIT,
}
"""Architectures to the class of their settings, whose ``arch`` field holds the name."""


class EncoderConfig(Protocol):
    """Settings of a family of encoders: a frozen dataclass whose file imports no torch."""

    @property
    def arch(self) -> str: ...
    def check(self) -> None:
        """``UserError`` for a value that no network can have."""
        ...

    def build(self) -> Encoder:
        """A network with fresh weights, drawn from torch's global generator."""
        ...


def config_class(arch: str) -> type[Any]:
    """The settings' class of ``arch``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("architecture", arch, ENCODERS)


def owner_of(field: str) -> str | None:
    """The first architecture that has a setting called ``field``."""
    return registry.owner_of(field, "architecture", ENCODERS)


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that ``config`` describes, with fresh weights. ``UserError`` for a value that it cannot have."""
    config_class(config.arch)
    config.check()
    return config.build()
