"""The swap test: the same run with one part replaced at a time, un-profiled: proof for what a trace blames."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastvicreg.assemble import Run, as_module, build_optimizer
from fastvicreg.config import TrainConfig, kernel_choices
from fastvicreg.contracts import Cursor, Terms
from fastvicreg.distributed import gather
from fastvicreg.pipelines import build_engine
from fastvicreg.profiles.bench.registry import Benchmark
from fastvicreg.profiles.measure import summarize, synchronize
from fastvicreg.profiles.parts import START, Loop, fed, first_batch, loader, opened, step, whole, with_engine
from fastvicreg.step import EagerStep
from fastvicreg.updater import Update, Updater

COLUMNS = ("swap", "images_per_s", "spread", "n", "ratio", "ratio_spread", "saves")

FULL = "full run"
LOADER = "loader only"
FED = "loader + augmentation only"
MODEL = "forward + backward only"
WITHOUT = {
    "data": "synthetic data",
    "augment": "no augmentation",
    "loss": "no loss",
    "optimizer": "no optimizer",
    "comm": "no communication",
}
"""Part to the row that goes without it."""

TURN = 0.4
"""Seconds that a timed turn takes, about ..."""
LEAST_WINDOW = 3
"""... or as long as so many steps take."""


def run(config: TrainConfig, *, repeats: int = 5, window: int = 0) -> list[dict[str, Any]]:
    """One row a replacement, ``images_per_s`` being its ceiling: what the run reaches where that part costs nothing.

    The rows take turns in each of the ``repeats``; a turn is ``window`` timed steps (0: about 0.4 s, at least 3) after
    some that fill the pipeline. ``ratio`` is the rate over the full run's, round by round; ``saves`` the share of a
    step of the full run that goes with the part. With --pipeline synthetic there is no data to leave out.

    Among several processes one row more leaves out their communication: each trains on its own share alone. The rates
    are of all together, timed by the process that asks.

    ``UserError`` where the run cannot be built.
    """
    with opened(config) as built:
        loops = _loops(config, built)
        turns = {name: _Turn(loop, built.device, _filling(config, name)) for name, loop in loops.items()}
        cursor = START
        for turn in turns.values():  # compiles, and tells how long a step takes
            seconds, cursor = turn.take(cursor)
            enough = max(LEAST_WINDOW, round(TURN / seconds))
            turn.window = window or max(gather(enough, built.processes))
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(repeats):
            for name, turn in turns.items():
                seconds, cursor = turn.take(cursor)
                rates[name].append(config.run.batch_size / seconds)
    return [_row(name, values, rates[FULL]) for name, values in rates.items()]


def _row(name: str, values: Sequence[float], full: Sequence[float]) -> dict[str, Any]:
    rate = summarize(values)
    # Round by round: a machine whose clock drifts slows both sides of a ratio alike.
    ratio = summarize([own / other for own, other in zip(values, full, strict=True)])
    row = {"swap": name, "images_per_s": rate.ms, "spread": rate.spread, "n": rate.n}
    row |= {"ratio": ratio.ms, "ratio_spread": ratio.spread}
    return row | ({"saves": max(0.0, 1 - 1 / ratio.ms)} if name in WITHOUT.values() else {})


@dataclass
class _Turn:
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


def _filling(config: TrainConfig, name: str) -> int:
    """Steps until the batches that were decoded ahead while nothing took them are gone, or back."""
    made_at_once = config.data.pipeline == "synthetic" or name in (WITHOUT["data"], MODEL)
    return 2 if made_at_once else config.data.prefetch + 2


def _loops(config: TrainConfig, run: Run) -> dict[str, Callable[[Cursor], Loop]]:
    processes = run.processes.world_size
    alone = run if processes == 1 else _copied(config, run, _alone())
    model = alone.step.replaced(loss=mean_square, updater=_without_update(alone))
    views = first_batch(run).views

    def same_views(*_: Any, **__: Any) -> tuple[Tensor, ...]:
        return views

    def another() -> Run:
        """Of several processes, each step needs a method of its own."""
        return run if processes == 1 else _copied(config, run)

    loss_free, still = another(), another()
    runs = {
        FULL: run,
        WITHOUT["augment"]: replace(run, feed=run.feed.replaced(kernel=same_views)),
        WITHOUT["loss"]: replace(loss_free, step=loss_free.step.replaced(loss=mean_square, world_size=processes)),
        WITHOUT["optimizer"]: replace(
            still, step=still.step.replaced(updater=_without_update(still), world_size=processes)
        ),
    }
    if processes > 1:
        runs[WITHOUT["comm"]] = alone
    if config.data.pipeline != "synthetic":
        size, rank = config.run.batch_size, run.processes.rank
        noise = build_engine(
            "synthetic", run.data.train, run.plan, batch_size=size, rank=rank, world_size=processes, device=run.device
        )
        runs[WITHOUT["data"]] = with_engine(run, noise)
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
    optimizer = build_optimizer(config.optim, method.param_groups(), impl=kernel_choices(config)["lars"])
    updater = Updater(as_module(method), optimizer, device=run.device, precision=run.precision)
    return replace(run, method=method, step=EagerStep(method, updater, device=run.device, precision=run.precision))


def _alone() -> dist.ProcessGroup:
    """A group of this process only; all processes ask for theirs at once."""
    own, _ = dist.new_subgroups(1)
    assert isinstance(own, dist.ProcessGroup)
    return own


def _without_update(run: Run) -> NoUpdate:
    return NoUpdate(as_module(run.method), run.step.updater.optimizer, device=run.device, precision=run.precision)


class NoUpdate(Updater):
    """Forward and backward alone."""

    def __call__(self, total: Tensor) -> Update:
        """Leaves weights and gradients as they are."""
        return Update(total, False)


def mean_square(embeddings: Any, targets: Any) -> Terms:
    """No loss: the embeddings' mean square gives every weight a gradient at next to no cost."""
    trained = [leaf for leaf in tree_leaves(embeddings) if leaf.requires_grad]
    return Terms(torch.stack([leaf.float().square().mean() for leaf in trained]).sum(), {})


@dataclass(frozen=True)
class Verdict:
    """What holds the run back: "data", "augment", "loss", "optimizer", "comm" or "model" (forward and backward).

    ``margin`` is how many times the runner-up's cost its own is; ``separated`` whether the rounds' spread allows to
    tell the two apart.
    """

    bottleneck: str
    margin: float
    separated: bool
    text: str


MODEL_PART = "model"
SPELLED = {"augment": "augmentation", "comm": "communication", MODEL_PART: "forward and backward"}
REMEDIES = {
    "data": "--workers, --pipeline ffcv or dali (fastvicreg bench loader compares them)",
    "augment": "--kernel augment=... (fastvicreg bench augment compares them)",
    "loss": "--kernel loss=... (fastvicreg bench loss compares them)",
    "optimizer": "--kernel lars=... (fastvicreg bench lars compares them)",
    "comm": "a larger --batch-size, which spreads a step's communication over more images",
    MODEL_PART: "--precision, --device (fastvicreg bench step compares them)",
}
LEAST_SHARE = 0.01


def verdict(rows: Sequence[Mapping[str, Any]], pipeline: str) -> Verdict:
    """Of ``run``'s rows: the data where the loader alone is slower than all the rest, else the dearest of the rest."""
    by_name = {row["swap"]: row for row in rows}
    full, supply = by_name[FULL], by_name[LOADER]
    demand = by_name.get(WITHOUT["data"], full)
    times = supply["images_per_s"] / demand["images_per_s"]
    told = abs(times - 1) > supply["ratio_spread"] + demand["ratio_spread"]
    if times < 1:
        text = (
            f"data: the {pipeline} pipeline alone delivers {_rate(supply)} images/s, the rest of the run takes "
            f"{_rate(demand)} ({1 / times:.2f}x)"
        )
        if demand["images_per_s"] > full["images_per_s"]:
            text += f"; with data for free the run's {_rate(full)} become {_rate(demand)}"
        return _spoken("data", 1 / times, told, text)
    shares = {part: by_name[name]["saves"] for part, name in WITHOUT.items() if part != "data" and name in by_name}
    shares[MODEL_PART] = min(1.0, 1 / by_name[MODEL]["ratio"])
    names = WITHOUT | {MODEL_PART: MODEL}
    spreads = {part: by_name[names[part]]["ratio_spread"] for part in shares}
    top, second = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    text = (
        f"{_spell(top)}: {shares[top]:.0%} of a step; next {_spell(second)} with {shares[second]:.0%}; "
        f"the {pipeline} pipeline alone delivers {times:.1f}x what the rest of the run takes"
    )
    apart = shares[top] - shares[second] > spreads[top] + spreads[second]
    return _spoken(top, shares[top] / max(shares[second], LEAST_SHARE), apart and told, text)


def _spoken(part: str, margin: float, told: bool, text: str) -> Verdict:
    doubt = "" if told else "; within the rounds' spread, so not proven: give more --repeats"
    return Verdict(part, margin, told, f"bottleneck: {text}{doubt}. Try {REMEDIES[part]}.")


def _spell(part: str) -> str:
    return SPELLED.get(part, part)


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['images_per_s']:,.0f}"


BENCHMARK = Benchmark(run, COLUMNS, key=("swap",), figure="images_per_s", better="higher")
