"""Ways to run one training step, by name: forward, backward and update of a method. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fastvicreg import registry
from fastvicreg.registry import resolve_class

if TYPE_CHECKING:
    from fastvicreg.contracts import Method
    from fastvicreg.train.steps.eager.step import EagerStep
    from fastvicreg.train.updater import Updater

STEPS = {
    "eager": "fastvicreg.train.steps.eager.config:EagerConfig",
    "compiled": "fastvicreg.train.steps.compiled.config:CompiledConfig",
    "graphed": "fastvicreg.train.steps.graphed.config:GraphedConfig",
    "cached": "fastvicreg.train.steps.cached.config:CachedConfig",
}
"""Names to the class of their settings."""


class StepConfig(Protocol):
    """Settings of a way to run a step: a frozen dataclass whose file imports no torch."""

    name: ClassVar[str]
    captured: ClassVar[bool]
    """Whether it is recorded once and replayed: then the optimizer must read its learning rate on the device."""

    def check(self) -> None:
        """``UserError`` for the first value that no run can have."""
        ...

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """``UserError`` where it cannot divide a total batch."""
        ...

    def build(self, method: Method, updater: Updater, *, device: str, precision: str, world_size: int) -> EagerStep:
        """The step; ``UserError`` where it cannot run here."""
        ...


def config_class(name: str) -> type[Any]:
    """The settings' class of the step ``name``; ``UserError`` with the nearest name where there is none."""
    return resolve_class("step", name, STEPS)


def owner_of(field: str) -> str | None:
    """The first step that has a setting called ``field``."""
    return registry.owner_of(field, "step", STEPS)
