"""The swap test: the same run with one part replaced at a time, un-profiled: proof for what a trace blames."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Cursor, Terms
from fastvicreg.methods.settings import takes_places
from fastvicreg.pipelines import build_engine
from fastvicreg.profiles.bench.registry import Benchmark
from fastvicreg.profiles.bench.swap_verdict import FED, FULL, LOADER, MODEL, WITHOUT
from fastvicreg.profiles.measure import summarize, synchronize
from fastvicreg.profiles.parts import START, Loop, fed, first_batch, loader, opened, step, whole, with_engine
from fastvicreg.train.assemble import Run, as_module, build_optimizer
from fastvicreg.train.distributed import gather
from fastvicreg.train.updater import Update, Updater

COLUMNS = ("swap", "images_per_s", "spread", "n", "ratio", "ratio_spread", "saves", "note")

TURN = 0.4
"""Seconds that a timed turn takes, about ..."""
LEAST_WINDOW = 3
"""... or as long as so many steps take."""
LEAST_ROUNDS = 3
"""Fewer rounds than these have no spread to speak of."""
NO_DIFFERENCE = "no difference beyond the noise"


Progress = Callable[[int, int, float], None]
"""Called with the turns that are done, those there will be, and the seconds that the rest will take about."""


def run(
    config: TrainConfig,
    *,
    repeats: int = 5,
    window: int = 0,
    budget: float | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row a replacement, ``images_per_s`` being its ceiling: what the run reaches where that part costs nothing.

    The rows take turns in each of the ``repeats``; a turn is ``window`` timed steps (0: about 0.4 s, at least 3) after
    some that fill the pipeline. ``ratio`` is the rate over the full run's, round by round; ``saves`` the share of a
    step of the full run that goes with the part. With --pipeline synthetic there is no data to leave out. ``budget``
    seconds end it earlier: no round begins that would not fit, but one is always taken.

    Among several processes one row more leaves out their communication: each trains on its own share alone. The rates
    are of all together, timed by the process that asks.

    ``UserError`` where the run cannot be built.
    """
    began = time.perf_counter()
    with opened(config) as built, ExitStack() as ending:
        loops = loops_of(config, built, ending)
        turns = {name: Turn(loop, built.device, filling(config, name)) for name, loop in loops.items()}
        cursor, round_s = START, 0.0
        for turn in turns.values():  # compiles, and tells how long a step takes
            seconds, cursor = turn.take(cursor)
            enough = max(LEAST_WINDOW, round(TURN / seconds))
            turn.window = window or max(gather(enough, built.processes))
            round_s += seconds * (turn.filling + turn.window)
        rates: dict[str, list[float]] = {name: [] for name in turns}
        rounds = repeats
        for number in range(repeats):
            if budget is not None:
                left = budget - (time.perf_counter() - began)
                # All processes go on, or none.
                rounds = min(gather(number + max(int(left / round_s), 0 if number else 1), built.processes))
                rounds = min(rounds, repeats)
                if number >= rounds:
                    break
            began_round = time.perf_counter()
            for name, turn in turns.items():
                if progress:
                    done, total = sum(map(len, rates.values())), rounds * len(turns)
                    progress(done, total, (total - done) * round_s / len(turns))
                seconds, cursor = turn.take(cursor)
                rates[name].append(config.run.batch_size / seconds)
            round_s = time.perf_counter() - began_round
    return [row_of(name, values, rates[FULL]) for name, values in rates.items()]


def row_of(name: str, values: Sequence[float], full: Sequence[float]) -> dict[str, Any]:
    rate = summarize(values)
    # Round by round: a machine whose clock drifts slows both sides of a ratio alike.
    ratio = summarize([own / other for own, other in zip(values, full, strict=True)])
    row = {"swap": name, "images_per_s": rate.ms, "spread": rate.spread, "n": rate.n}
    row |= {"ratio": ratio.ms, "ratio_spread": ratio.spread}
    if name not in WITHOUT.values():
        return row
    row["saves"] = max(0.0, 1 - 1 / ratio.ms)
    if ratio.n < LEAST_ROUNDS:
        return row | {"note": f"{ratio.n} round{'s' * (ratio.n > 1)}: the noise is not known"}
    return row | ({"note": NO_DIFFERENCE} if ratio.ms - 1 <= ratio.ms * ratio.spread else {})


@dataclass
class Turn:
    """Times some steps of a loop."""

    loop: Callable[[Cursor], Loop]
    device: str
    filling: int
    window: int = LEAST_WINDOW

    def take(self, start: Cursor) -> tuple[float, Cursor]:
        """(seconds of a step, where the next turn starts).

        The turns go on through the data, as a run does: else each but the first would find its images in memory.
        """
        loop, last = self.loop(start), start
        try:
            for _ in range(self.filling):
                next(loop)
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(self.window):
                last = next(loop)
            synchronize(self.device)
            seconds = (time.perf_counter() - began) / self.window
        finally:
            loop.close()
        return seconds, Cursor(last.epoch, last.batch + 1)


def filling(config: TrainConfig, name: str) -> int:
    """Steps until the batches that were decoded ahead while nothing took them are gone, or back."""
    made_at_once = config.data.pipeline == "synthetic" or name in (WITHOUT["data"], MODEL)
    return 2 if made_at_once else config.data.prefetch + 2


def loops_of(config: TrainConfig, run: Run, ending: ExitStack) -> dict[str, Callable[[Cursor], Loop]]:
    """The rows' loops; ``ending`` closes the steps that they have beside the run's own."""
    processes = run.processes.world_size
    alone = run if processes == 1 else _copied(config, run, _alone())
    model = alone.step.replaced(loss=mean_square, updater=without_update(alone))
    views = first_batch(run).views[: run.plan.views]  # a pair's other members do not pass the photometric kernel

    def same_views(group_BVHWC: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        alike = [view for view in views if view.shape[2:] == group_BVHWC.shape[2:4]]
        return tuple(alike[: group_BVHWC.shape[1]])

    def another() -> Run:
        """Of several processes, each step needs a method of its own."""
        return run if processes == 1 else _copied(config, run)

    loss_free, still = another(), another()
    runs = {
        FULL: run,
        WITHOUT["augment"]: replace(run, feed=run.feed.replaced(kernel=same_views)),
        WITHOUT["loss"]: replace(loss_free, step=loss_free.step.replaced(loss=mean_square, world_size=processes)),
        WITHOUT["optimizer"]: replace(
            still, step=still.step.replaced(updater=without_update(still), world_size=processes)
        ),
    }
    if processes > 1:
        runs[WITHOUT["comm"]] = alone
    if config.data.pipeline != "synthetic":
        size, rank = config.run.batch_size, run.processes.rank
        noise = build_engine(
            "synthetic",
            run.data.train,
            run.plan,
            batch_size=size,
            rank=rank,
            world_size=processes,
            device=run.device,
            places=takes_places(config.method),
        )
        runs[WITHOUT["data"]] = with_engine(run, noise)
    for step_of_row in {id(built.step): built.step for built in (*runs.values(), alone)}.values():
        if step_of_row is not run.step:
            ending.callback(step_of_row.close)
    ending.callback(model.close)
    loops = {name: partial(whole, config, built) for name, built in runs.items()}
    return loops | {
        LOADER: partial(loader, config, run),
        FED: partial(fed, config, run),
        MODEL: partial(step, config, replace(run, step=model)),
    }


def _copied(config: TrainConfig, run: Run, group: dist.ProcessGroup | None = None) -> Run:
    """The run with modules of its own, whose batch is that of ``group`` (None: of all); gradients are not averaged."""
    method = copy.deepcopy(run.method)
    for part in as_module(method).modules():
        if hasattr(part, "process_group"):  # batch norms, and methods whose loss is of the whole batch
            part.process_group = group  # type: ignore[assignment]
    captured = config.step.captured
    optimizer = build_optimizer(
        config.optim,
        method.param_groups(),
        batch_size=config.run.batch_size,
        impl=kernel_choices(config)["lars"],
        captured=captured,
    )
    clipping = run.step.updater.clipping
    updater = Updater(as_module(method), optimizer, device=run.device, precision=run.precision, clipping=clipping)
    step = config.step.build(method, updater, device=run.device, precision=run.precision, world_size=1)
    return replace(run, method=method, step=step)


def _alone() -> dist.ProcessGroup:
    """A group of this process only; all processes ask for theirs at once."""
    own, _ = dist.new_subgroups(1)
    assert isinstance(own, dist.ProcessGroup)
    return own


def without_update(run: Run) -> NoUpdate:
    return NoUpdate(as_module(run.method), run.step.updater.optimizer, device=run.device, precision=run.precision)


class NoUpdate(Updater):
    """Forward and backward alone."""

    def __call__(self, total: Tensor) -> Update:
        """Leaves weights and gradients as they are."""
        return Update(total, False)


def mean_square(embeddings: Any, targets: Any) -> Terms:
    """No loss: the embeddings' mean square gives every weight a gradient at next to no cost."""
    trained = [leaf for leaf in tree_leaves(embeddings) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return Terms(torch.stack([leaf.float().square().mean() for leaf in trained]).sum(), {})


BENCHMARK = Benchmark(run, COLUMNS, key=("swap",), figure="images_per_s", better="higher")
