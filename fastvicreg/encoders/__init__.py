"""Networks from images, waveforms or captions to features, by the name of their architecture; no torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Protocol

from fastvicreg import registry
from fastvicreg.errors import UserError
from fastvicreg.registry import resolve_class, unknown

if TYPE_CHECKING:
    from fastvicreg.contracts import Encoder

RESNET = "fastvicreg.encoders.resnet.config:ResNetConfig"
VIT = "fastvicreg.encoders.vit.config:ViTConfig"
CONVNEXT = "fastvicreg.encoders.convnext.config:ConvNeXtConfig"
RESNET_1D = "fastvicreg.encoders.resnet1d.config:ResNet1dConfig"
TIMM = "fastvicreg.encoders.timm.config:TimmConfig"
GRU = "fastvicreg.encoders.gru.config:GRUConfig"
TEXT_TRANSFORMER = "fastvicreg.encoders.text_transformer.config:TextTransformerConfig"

ENCODERS = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet50x2": RESNET,
    "vit_tiny": VIT,
    "vit_small": VIT,
    "vit_base": VIT,
    "convnext_tiny": CONVNEXT,
    "convnext_small": CONVNEXT,
    "convnext_base": CONVNEXT,
    "convnext_large": CONVNEXT,
    "convnext_xlarge": CONVNEXT,
    "timm": TIMM,
    "resnet18_1d": RESNET_1D,
    "resnet34_1d": RESNET_1D,
    "gru": GRU,
    "text_transformer": TEXT_TRANSFORMER,
}
"""Architectures to the class of their settings, whose ``arch`` field holds the name."""

MOST_BLOCKS = 256
"""Five times those of the deepest that was published (ViT-22B, 48): more is a slip, and takes minutes to be built."""


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


def check_drop_path(rate: float) -> None:
    """``UserError`` for a --drop-path that is no share, or leaves no branch."""
    if not 0 <= rate < 1:
        raise UserError(f"--drop-path {rate} is no share of the samples to leave out: give 0 or more, below 1.")


def check_blocks(depth: int, drop_path: float) -> None:
    """``UserError`` for a transformer's --depth or --drop-path that no network can have."""
    if depth < 1:
        raise UserError(f"--depth {depth} is too small: give 1 or more.")
    if depth > MOST_BLOCKS:
        raise UserError(f"--depth {depth} is too large: give {MOST_BLOCKS} blocks or fewer.")
    check_drop_path(drop_path)
    if drop_path and depth == 1:
        raise UserError(f"--drop-path {drop_path} drops nothing of --depth 1, whose block is the first: give 0.")


def takes(config: EncoderConfig) -> str:
    """What the network is given: "images", "waveforms" or "text"."""
    return getattr(config, "takes", "images")


def stages_of(config: EncoderConfig) -> int:
    """How many stages the network has whose blocks can be computed again (``blocks.Blocks``)."""
    return getattr(config, "stages", 0)


def vocabulary_of(config: EncoderConfig) -> int | None:
    """Words that a network for text tells apart; None for one of anything else."""
    return getattr(config, "vocabulary", None)


def config_class(arch: str) -> type[Any]:
    """The settings' class of ``arch``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("architecture", arch, ENCODERS)


def owner_of(field: str) -> str | None:
    """The first architecture that has a setting called ``field``."""
    return registry.owner_of(field, "architecture", ENCODERS)


def build_encoder(config: EncoderConfig, *words: str) -> Encoder:
    """The encoder that ``config``, or ``varied`` of it and ``words``, describes, with fresh weights.

    ``UserError`` for a value that it cannot have.
    """
    config = varied(config, words) if words else config
    config_class(config.arch)
    config.check()
    return config.build()


def varied(config: EncoderConfig, words: Sequence[str], option: str = "--branch-b") -> EncoderConfig:
    """Settings of the architecture ``words[0]``, with FIELD=VALUE for each further word: ("resnet34", "width=32").

    ``option`` gave them. Fields that are not named are ``config``'s where it is of the same family, else at their
    defaults. ``UserError`` for an architecture, field or value that there is not.
    """
    import msgspec  # here: --help needs none of it

    arch, *given = words
    flag = f"{option} {' '.join(words)}"
    if "=" in arch:
        raise UserError(f"{flag}: name the architecture first, such as {option} {config.arch} {arch}.")
    kind = config_class(arch)
    known = [field.name for field in fields(kind) if field.name != "arch"]
    settings = asdict(config) if type(config) is kind else {}  # type: ignore[call-overload]
    for word in given:
        name, has_value, value = word.partition("=")
        if not has_value:
            raise UserError(f"{flag}: {word!r} is no setting: give FIELD=VALUE, such as {known[0]}=...")
        if name not in known:
            raise UserError(f"{flag}: {unknown(f'setting of {arch}', name, tuple(known))}")
        settings[name] = f"0{value}" if value.startswith(".") else value  # which msgspec takes for no number
    try:
        made = msgspec.convert({**settings, "arch": arch}, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, name = str(error).partition(" - at ")
        name = name.strip("`$.")
        raise UserError(f"{flag}: {name} cannot be {settings.get(name)!r} ({reason.replace('`', '')}).") from None
    try:
        made.check()
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
    return made
