"""Whether each of a run's encoders is given what it takes: images, or the modalities of its pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastvicreg.encoders import EncoderConfig, takes, varied
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import branch_of, takes_two_views
from fastvicreg.pipelines.pairs.config import KINDS

if TYPE_CHECKING:
    from fastvicreg.config import TrainConfig

FITTING = {"images": "resnet50", "waveforms": "resnet18_1d", "text": "gru"}
"""An encoder of what each kind of view is."""


def check_views(config: TrainConfig) -> None:
    """``UserError`` where an encoder is not given what it takes, or there is no second one for a pair."""
    encoders = encoders_of(config)
    if not config.pair.pair:
        for flag, encoder in encoders:
            if (kind := takes(encoder)) != "images":
                raise UserError(
                    f"{flag} {encoder.arch} takes {kind}: name the pair that it is part of, such as --pair image text."
                )
        if len(encoders) == 2 and config.data.num_views > 2:
            raise UserError(
                f"--num-views {config.data.num_views}: --branch-b {encoders[1][1].arch} gives each of two views a "
                "network of its own: leave one of them out."
            )
        if takes_two_views(config.method):
            _check_two(config)
        return
    given = f"--pair {' '.join(config.pair.pair)}"
    sides = config.pair.parsed()
    _refuse_others(config, given, images=sides[0].modality == "image")
    if len(encoders) == 1:
        encoders *= 2
    for option, side, (flag, encoder) in zip(("--arch", "--branch-b"), sides, encoders, strict=True):
        if (kind := KINDS[side.modality]) != takes(encoder):
            raise UserError(
                f"{given}: {flag} {encoder.arch} takes {takes(encoder)}, not {kind}: give {option} {FITTING[kind]}."
            )


def _check_two(config: TrainConfig) -> None:
    """``UserError`` for a recipe of more."""
    from fastvicreg.pipelines.recipes import named_recipe  # only here: help needs no numpy

    data, method = config.data, config.method.name
    recipe = named_recipe(data.recipe, small_size=data.small_size, num_views=data.num_views)
    if (count := len(recipe.views)) == 2:
        return
    if data.num_views:
        raise UserError(f"--num-views {count}: --method {method} takes two views: give --num-views 2.")
    counted = f"{count} view{'s' * (count > 1)}"
    raise UserError(
        f"--recipe {data.recipe} cuts {counted}, and --method {method} takes two: "
        "give a recipe of two, such as official."
    )


def encoders_of(config: TrainConfig) -> list[tuple[str, EncoderConfig]]:
    """(the option that gives it, its settings): one, or two with a second branch."""
    found: list[tuple[str, EncoderConfig]] = [("--arch", config.encoder)]
    if words := branch_of(config.method):
        found.append(("--branch-b", varied(config.encoder, words)))
    return found


def _refuse_others(config: TrainConfig, given: str, *, images: bool) -> None:
    """``UserError`` for settings that a pair has no place for."""
    data = config.data
    if data.data is None:
        raise UserError(f"{given} needs --data: the embedded images have nothing beside them.")
    for flag, value in (("--image", data.image), ("--val-labels", data.val_labels)):
        if value:
            raise UserError(f"{flag} {value}: {given} names what holds each view; leave it out.")
    if data.num_views:
        raise UserError(f"--num-views {data.num_views}: {given} has two views, one of each side: leave it out.")
    if data.resolution and not images:
        raise UserError(f"--resolution {data.resolution} is of images, and {given} has none: leave it out.")
    if not hasattr(config.method, "branch_b"):
        raise UserError(f"{given}: {config.method.name} has one network for all views: give --method vicreg.")
