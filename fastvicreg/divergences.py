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


NO_RESIDUAL = Divergence("a block starts as its shortcut (zero_init_residual); the published code does not do that")
FP16 = Divergence("autocast is bf16 on CUDA; the released code's is fp16 (--precision fp16)", "run.precision")
FP32 = Divergence("autocast is bf16 on CUDA; the released code computes in fp32 (--precision off)", "run.precision")

WARM_START = Divergence("solo-learn starts its warm-up at 3e-5; this one at 0")

SOLO_LEARN = (
    NO_RESIDUAL,
    Divergence("solo-learn ends its cosine at 0; this one at 0.001 x peak"),
    Divergence("solo-learn normalises with CIFAR-10's mean and standard deviation; this one with ImageNet's"),
    Divergence("solo-learn trains an online linear classifier beside it; this one evaluates kNN"),
    Divergence("precision is fp16 as there; without CUDA give --precision off", "run.precision"),
)
"""Of every preset after solo-learn's scripts/pretrain/cifar."""
