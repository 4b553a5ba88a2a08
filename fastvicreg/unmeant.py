"""Settings that a new run is refused and a saved one goes on with: they change nothing, or nobody means them."""

from __future__ import annotations

from fastvicreg.config import DataConfig, TrainConfig, kernel_choices
from fastvicreg.errors import UserError
from fastvicreg.methods.settings import Regularized


def refuse_unmeant(config: TrainConfig) -> None:
    """``UserError`` for the first of them, of a config that has passed its ``check``.

    A method's config may have a ``check_unused`` of its own.
    """
    if config.pair.pair and config.data.small_size:
        raise UserError(
            f"--small-size {config.data.small_size} is of a recipe's small views, and --pair "
            f"{' '.join(config.pair.pair)} has one view of each side: leave it out."
        )
    _check_small_views(config.data)
    config.pair.check_unused()
    _check_loss_kernel(config)
    if check := getattr(config.method, "check_unused", None):
        check()


def _check_loss_kernel(config: TrainConfig) -> None:
    method, chosen = config.method, kernel_choices(config).get("loss", "auto")
    if isinstance(method, Regularized) and not method.is_regularized and chosen != "auto":
        raise UserError(
            f"--kernel loss={chosen} computes the variance and covariance terms, and {method.name} has none of them: "
            "give --variance or --covariance a weight above 0, or leave it out."
        )


def _check_small_views(data: DataConfig) -> None:
    from fastvicreg.pipelines.recipes import named_recipe  # only here: help needs no numpy

    recipe = named_recipe(data.recipe, small_size=data.small_size, num_views=data.num_views)
    small, large = max(view.size or 0 for view in recipe.views), min(data.training_sizes())
    if small > large:
        raise UserError(
            f"--recipe {data.recipe} cuts small views of {small} px, above the {large} px of its large ones: give "
            f"--small-size {max(8, round(large * 3 / 7 / 8) * 8)}."
        )
