"""Values that vary over a run: the learning rate's warm-up and cosine, weight decay, and a method's own schedules."""

from __future__ import annotations

from functools import partial

from fastvicreg.config import OptimConfig
from fastvicreg.contracts import Horizon, Method, Schedule
from fastvicreg.optim import cosine_schedule, half_cosine

LR, WEIGHT_DECAY = "lr", "weight_decay"


def schedules_of(method: Method, optim: OptimConfig, horizon: Horizon) -> tuple[dict[str, Schedule], str]:
    """Every schedule of a run by name, the learning rate first, and a line to show where the warm-up was shortened."""
    warmup, note = warmup_steps(optim, horizon)
    rate = partial(
        cosine_schedule,
        steps=horizon.steps,
        warmup_steps=warmup,
        base_lr=optim.base_lr,
        batch_size=horizon.batch_size,
    )
    optimizers: dict[str, Schedule] = {LR: rate}
    if optim.weight_decay_end is not None:  # main_dino.py's cosine_scheduler, at every step
        optimizers[WEIGHT_DECAY] = partial(
            half_cosine, start=optim.weight_decay, end=optim.weight_decay_end, steps=horizon.steps
        )
    own = method.schedules(horizon)
    assert not own.keys() & {LR, WEIGHT_DECAY}, "learning rate and weight decay are the optimizer's"
    return {**optimizers, **own}, note


def warmup_steps(optim: OptimConfig, horizon: Horizon) -> tuple[int, str]:
    """Steps of the warm-up, and a line to show where it had to be shortened."""
    if optim.warmup_share:
        return min(round(optim.warmup_share * horizon.steps), horizon.steps - 1), ""
    steps = round(optim.warmup_epochs * horizon.steps_per_epoch)
    if steps < horizon.steps:
        return steps, ""
    shorter = horizon.steps // 10
    return shorter, (
        f"a warm-up of {optim.warmup_epochs:g} epochs never ends in {horizon.steps / horizon.steps_per_epoch:.3g}: "
        f"shortened to 10 % of the steps ({shorter}); --warmup-share sets it."
    )
