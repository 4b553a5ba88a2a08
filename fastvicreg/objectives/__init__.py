"""What can be minimised, by name."""

from __future__ import annotations

from torch import nn

from fastvicreg.config import ObjectiveConfig
from fastvicreg.registry import resolve

OBJECTIVES = {"vicreg": "fastvicreg.objectives.vicreg:VICReg"}


def build_objective(
    config: ObjectiveConfig, features: int, widths: tuple[int, ...], *, impl: str = "auto"
) -> nn.Module:
    """The objective that ``config`` names, on features of width ``features``; ``UserError`` for an unknown name."""
    return resolve("objective", config.objective, OBJECTIVES)(features, widths, config, impl=impl)
