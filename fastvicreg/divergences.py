"""What a preset is: a whole config, and each place where it departs from what it is named after."""

from __future__ import annotations

from dataclasses import dataclass

from fastvicreg.config import TrainConfig


@dataclass(frozen=True)
class Divergence:
    """Where a preset departs from its source, while ``setting`` ("section.field") is the preset's; "" always."""

    text: str
    setting: str = ""


@dataclass(frozen=True)
class Preset:
    """A config, what it is for, and each divergence from what it is named after."""

    summary: str
    config: TrainConfig
    divergences: tuple[Divergence, ...]

    def told(self, config: TrainConfig) -> list[str]:
        """The divergences that hold for ``config``, which may override the preset's settings."""
        return [
            divergence.text
            for divergence in self.divergences
            if not divergence.setting or _value(config, divergence.setting) == _value(self.config, divergence.setting)
        ]


def _value(config: TrainConfig, setting: str) -> object:
    section, _, name = setting.partition(".")
    return getattr(getattr(config, section), name, None)


SOLO_LEARN = (
    Divergence("solo-learn starts its warm-up at 3e-5 and ends its cosine at 0; this one goes 0, peak, 0.001 x peak"),
    Divergence("solo-learn trains an online linear classifier beside it; this one evaluates kNN"),
    Divergence("precision is fp16 as there; without CUDA give --precision off", "run.precision"),
)
"""Of every preset after solo-learn's scripts/pretrain/cifar."""
