"""Whether the sections of a run's settings go together: each is right by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastvicreg.encoders import stages_of
from fastvicreg.errors import UserError
from fastvicreg.pairing import check_views

if TYPE_CHECKING:
    from fastvicreg.config import TrainConfig


def check_agreement(config: TrainConfig) -> None:
    """``UserError`` for the first two that do not."""
    _check_sizes(config)
    check_views(config)
    if config.run.recompute_stages:
        _check_recomputed(config)
    if config.step.captured and config.optim.weight_decay_end is not None:
        raise UserError(
            f"--step {config.step.name} records the weight decay as it is, and --weight-decay-end moves it: "
            "give --step eager or compiled."
        )


def _check_sizes(config: TrainConfig) -> None:
    sizes, run = config.data.training_sizes(), config.run
    if len(sizes) > max(1, run.epochs):
        raise UserError(f"--resolution {config.data.resolution} has {len(sizes)} sizes for --epochs {run.epochs}.")
    if len(sizes) > 1 and run.total_steps:
        raise UserError(
            f"--resolution {config.data.resolution} goes by epochs, --total-steps {run.total_steps} by steps: "
            "give one of them."
        )


def _check_recomputed(config: TrainConfig) -> None:
    arch, numbers = config.encoder.arch, config.run.recompute_stages
    given, stages = f"--recompute-stages {' '.join(map(str, numbers))}", stages_of(config.encoder)
    if not stages:
        raise UserError(f"{given}: {arch} has no stages whose blocks could be computed again: leave it out.")
    if not all(1 <= number <= stages for number in numbers):
        which = f"stages 1 to {stages}: give some of these" if stages > 1 else "one, of all blocks: give 1"
        raise UserError(f"{given}: {arch} has {which}.")
    if config.step.name == "compiled":
        raise UserError(f"{given}: --step compiled keeps what its compiler chooses: leave one of them out.")
