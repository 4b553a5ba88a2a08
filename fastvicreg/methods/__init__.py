"""Self-supervised methods, by name. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fastvicreg import registry
from fastvicreg.errors import UserError
from fastvicreg.registry import resolve_class

if TYPE_CHECKING:
    from fastvicreg.contracts import BuildContext, Method

METHODS = {
    "vicreg": "fastvicreg.methods.vicreg.config:VICRegConfig",
    "byol": "fastvicreg.methods.byol.config:BYOLConfig",
    "simsiam": "fastvicreg.methods.simsiam.config:SimSiamConfig",
    "barlow_twins": "fastvicreg.methods.barlow_twins.config:BarlowTwinsConfig",
    "simclr": "fastvicreg.methods.simclr.config:SimCLRConfig",
    "moco": "fastvicreg.methods.moco.config:MoCoConfig",
    "wmse": "fastvicreg.methods.wmse.config:WMSEConfig",
    "swav": "fastvicreg.methods.swav.config:SwAVConfig",
    "dino": "fastvicreg.methods.dino.config:DINOConfig",
    "vicregl": "fastvicreg.methods.vicregl.config:VICRegLConfig",
}
"""Names to the class of their settings."""


class MethodConfig(Protocol):
    """Settings of a method: a frozen dataclass whose file imports no torch."""

    name: ClassVar[str]

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        ...

    def build(self, context: BuildContext) -> Method:
        """The method with fresh weights, drawn from torch's global generator."""
        ...


def config_class(name: str) -> type[Any]:
    """The settings' class of the method ``name``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("method", name, METHODS)


def owner_of(field: str) -> str | None:
    """The first method that has a setting called ``field``."""
    return registry.owner_of(field, "method", METHODS)


def notes_of(config: MethodConfig) -> tuple[str, ...]:
    """What a person should know of a method's settings, one line each; none where its config has no ``notes()``."""
    notes = getattr(config, "notes", None)
    return notes() if notes else ()


def check_widths(flag: str, widths: tuple[int, ...]) -> None:
    """``UserError`` where a head has no layer, or one too narrow to have a covariance."""
    if not widths or min(widths) < 2:
        raise UserError(f"{flag} {' '.join(map(str, widths))} has a layer below 2: give widths such as 8192 8192 8192.")
