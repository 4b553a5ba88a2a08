"""What one H100 or H200 is to reach, each goal measured and said to be met or missed.

On another device the same is measured, and held to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastvicreg.config import TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.presets import preset as named_preset
from fastvicreg.profiles.bench import step
from fastvicreg.profiles.bench.goals_verdict import BATCH, FED, NAMES, OFFICIAL, RATE, SPEED, judged, of_step
from fastvicreg.profiles.bench.registry import Benchmark, DeviceOptions
from fastvicreg.profiles.bench.step_variants import Case
from fastvicreg.profiles.bench.swap import LEAST_WINDOW, TURN, Turn, filling, loops_of
from fastvicreg.profiles.bench.swap_verdict import FULL, WITHOUT
from fastvicreg.profiles.measure import alternating, summarize
from fastvicreg.profiles.parts import START, opened
from fastvicreg.train.device import resolve_precision, search_convolutions
from fastvicreg.train.distributed import Processes
from fastvicreg.train.memory import fitted

COLUMNS = ("goal", "value", "wanted", "verdict", "spread", "detail")

OURS = {
    "cpu": ("eager, joint views", "compiled"),
    "cuda": ("eager, joint views", "graphed, joint views", "compiled, joint views"),
}
LARGE = 2048


def rows(
    device: str = "cpu",
    *,
    preset: str | None = None,
    batch: int = 0,
    large: int = LARGE,
    size: int = 0,
    data: str | None = None,
    pipeline: str = "native",
    only: Sequence[str] = (),
    repeats: int = 5,
) -> Iterator[dict[str, Any]]:
    """One row a goal, as soon as it is known; ``UserError`` for a goal that there is not."""
    if unknown := [name for name in only if name not in NAMES]:
        raise UserError(f"--only {unknown[0]!r} is no goal: choose from {', '.join(NAMES)}.")
    chosen = [NAMES[name] for name in only or NAMES]
    kind = device.split(":")[0]
    gpu = torch.cuda.get_device_name(device) if kind == "cuda" else ""
    name, batch = preset or step.PRESET[kind], batch or step.BATCH[kind]
    if SPEED in chosen or RATE in chosen:
        measured = step.run(name, device, batch, size, repeats, only=(OFFICIAL, *OURS[kind]))
        yield from (row for row in of_step(measured, gpu) if row["goal"] in chosen)
    config = named_preset(name).config
    side = size or config.data.image_size
    config = replace(config, data=replace(config.data, data=data, pipeline=pipeline, image_size=side))
    config = replace(config, run=replace(config.run, batch_size=batch, device=device, eval_every=0))
    if FED in chosen:
        yield _fed(config, gpu, repeats)
    if BATCH in chosen:
        yield _large(replace(config, run=replace(config.run, batch_size=large)), gpu)


def _fed(config: TrainConfig, gpu: str, repeats: int) -> dict[str, Any]:
    """The run's rate with its data over its rate with crops that are there already, round by round."""
    data = config.data
    if data.pipeline == "synthetic":
        return judged(FED, gpu, None, detail="--pipeline synthetic has no data to be fed with")
    with opened(config) as built, ExitStack() as ending:
        every = loops_of(config, built, ending)
        turns = {name: Turn(every[name], built.device, filling(config, name)) for name in (FULL, WITHOUT["data"])}
        cursor = START
        for turn in turns.values():  # compiles, and tells how long a step takes
            seconds, cursor = turn.take(cursor)
            turn.window = max(LEAST_WINDOW, round(TURN / seconds))
        shares = []
        for repeat in range(repeats):
            taken: dict[str, float] = {}
            for name in alternating(turns, repeat):
                taken[name], cursor = turns[name].take(cursor)
            shares.append(taken[WITHOUT["data"]] / taken[FULL])
    share = summarize(shares)
    row = judged(FED, gpu, share.ms, spread=share.spread, detail=f"{data.pipeline}, {data.data or 'embedded images'}")
    # Small images of one format: that they come in time says nothing of ImageNet.
    return row if data.data else row | {"wanted": None, "verdict": "no goal of embedded images: give --data"}


def _large(config: TrainConfig, gpu: str) -> dict[str, Any]:
    """A step of that batch, its activations kept or recomputed as training decides by the free memory."""
    device, batch = config.run.device, config.run.batch_size
    precision = resolve_precision("auto", device)
    search_convolutions(device)
    config, _ = fitted(config, Processes(), device=device, precision=precision)
    keeping = {"activations": config.run.activations, "recompute_stages": config.run.recompute_stages}
    case = Case(precision=precision, views="joint", **keeping)
    try:
        subject = step.build_case(config, case, device, batch)
        peak = step.peak_bytes(subject, device)
        subject()
    except torch.OutOfMemoryError as error:
        return judged(BATCH, gpu, 0, detail=f"{batch} images: {str(error).splitlines()[0]}")
    again = f", blocks of stages {' '.join(map(str, case.recompute_stages))} too" if case.recompute_stages else ""
    used = "" if peak is None else f", {peak / 1e9:.0f} GB beyond weights, gradients and momentum"
    return judged(BATCH, gpu, batch, detail=f"activations: {case.activations}{again}{used}")


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """What one H100 or H200 is to reach, measured and said to be met or missed."""

    preset: str | None = None
    """Default: demo on the CPU, imagenet-100ep on CUDA."""
    batch: int = 0
    """Images of a step; default 64 on the CPU, 256 on CUDA."""
    large: int = LARGE
    """Images of the step that must fit."""
    data: str | None = None
    """Images that the run is fed with; without it the embedded ones, which are small."""
    pipeline: str = "native"
    """Engine that feeds it: native, ffcv or dali."""
    only: tuple[str, ...] = ()
    """Some of the goals: speed, rate, fed, batch."""


BENCHMARK = Benchmark(
    rows,
    COLUMNS,
    key=("goal",),
    options=BenchOptions,
    figure="value",
    better="higher",
    title="goals, met or missed",
)
