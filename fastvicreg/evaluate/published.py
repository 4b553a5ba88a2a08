"""The figures that VICReg's authors published, beside which a run of their settings is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvicreg.config import TrainConfig
from fastvicreg.evaluate.protocols.linear import PRESETS as LINEAR
from fastvicreg.presets import PRESETS

IMAGENET = 1000
"""Classes."""
PAPER = "arXiv 2105.04906"


@dataclass(frozen=True)
class Figure:
    """One published figure: of which preset's run, by which protocol and settings, in percent."""

    preset: str
    protocol: str
    source: str
    value: float
    top5: float | None = None
    setting: tuple[tuple[str, Any], ...] = ()
    """Settings of the protocol or of one of its rankings that it is for."""
    classes: int = IMAGENET
    measure: str = "top-1"

    def told(self) -> str:
        """ "published for imagenet-1000ep (...): top-1 73.2, top-5 91.1"."""
        settings = "".join(f", {name} {value}" for name, value in self.setting if name == "k")
        top5 = "" if self.top5 is None else f", top-5 {self.top5}"
        return f"published ({self.source}{settings}): {self.measure} {self.value}{top5}"


def _linear(preset: str) -> tuple[tuple[str, Any], ...]:
    own = LINEAR[preset]
    return (("frozen_features", False), ("epochs", own.epochs), ("head", own.head))


LONG = "imagenet-1000ep"
FIGURES = (
    Figure(LONG, "linear", f"{PAPER} Table 1", 73.2, 91.1, _linear("imagenet")),
    Figure("imagenet-100ep", "linear", f"{PAPER} Table 5", 68.6, None, _linear("imagenet")),
    Figure(LONG, "semi", f"{PAPER} Table 1, 1 % of the labels", 54.8, 79.4, (("percent", 1.0), ("epochs", 20))),
    Figure(LONG, "semi", f"{PAPER} Table 1, 10 % of the labels", 69.5, 89.5, (("percent", 10.0), ("epochs", 20))),
    Figure(LONG, "knn", f"{PAPER} Table 11", 64.5, None, (("k", 20),)),
    Figure(LONG, "knn", f"{PAPER} Table 11", 62.8, None, (("k", 200),)),
    Figure(LONG, "linear", f"{PAPER} Table 2, Places205", 54.3, None, _linear("places205"), 205),
    Figure(LONG, "linear", f"{PAPER} Table 2, iNaturalist 2018", 47.0, None, _linear("inat18"), 8142),
    Figure(LONG, "svm", f"{PAPER} Table 2, VOC07", 86.6, None, (), 20, "mAP"),
)


def is_run_of(config: TrainConfig, preset: str) -> bool:
    """Whether a run trained by ``config`` is one of ``preset``: all that changes what is learnt is the preset's."""
    own = PRESETS[preset]().config
    data = ("recipe", "image_size", "resolution", "small_size", "num_views")
    run = ("epochs", "total_steps", "batch_size", "steps", "init")
    return (
        (config.encoder, config.method, config.optim) == (own.encoder, own.method, own.optim)
        and all(getattr(config.data, name) == getattr(own.data, name) for name in data)
        and all(getattr(config.run, name) == getattr(own.run, name) for name in run)
    )


def published(config: TrainConfig, protocol: str, settings: Mapping[str, Any], classes: int) -> list[Figure]:
    """The figures for a run of ``config`` by that protocol on data of so many classes; none for any other run.

    A setting of ``settings`` that holds several values, as --k, is for each of them.
    """

    def holds(name: str, value: Any) -> bool:
        given = settings.get(name)
        return value in given if isinstance(given, tuple) else value == given

    return [
        figure
        for figure in FIGURES
        if figure.protocol == protocol
        and figure.classes == classes
        and all(holds(name, value) for name, value in figure.setting)
        and is_run_of(config, figure.preset)
    ]
