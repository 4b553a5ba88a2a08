"""Loading and cropping alone: our engines, a torch DataLoader with PIL, FFCV, and the floor no pipeline can beat.

Every row does the same work on the same bytes: decode, RandomResizedCrop and flip, uint8, two views; no photometric
operation.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvicreg.contracts import Cursor, Source
from fastvicreg.kernels.resample import resample_views
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.profiles.bench.peers import PILViews
from fastvicreg.profiles.bench.peers_ffcv import ffcv_as_shipped_pass
from fastvicreg.profiles.measure import summarize

COLUMNS = ("pipeline", "workers", "images_per_s", "images_per_cpu_s", "spread", "vs_dataloader", "vs_ffcv", "vs_floor")

log = logging.getLogger(__name__)


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def run(
    data: str | Path, *, size: int = 224, batch: int = 50, workers: int = 0, repeats: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows for every pipeline over ``data``; images are source images, each giving two views.

    Over a ``.beton`` every row decodes its bytes, and where FFCV is installed there are rows for it, with our engine
    and as shipped. ``workers`` 0 stands for one a core. The pipelines take turns in each of the ``repeats``.
    """
    source = open_source(data)
    batch = min(batch, len(source))
    passes: dict[tuple[str, int], Callable[[], int]] = {}
    many = workers or torch.get_num_threads()
    for count in sorted({1, many}):
        passes["native", count] = _engine_pass(source, "native", size, batch, count, seed)
        passes["torch-dataloader", count] = _dataloader_pass(source, size, batch, count)
    if isinstance(source, BetonSource) and _ffcv_installed():
        for count in sorted({1, many}):
            passes["ffcv", count] = _engine_pass(source, "ffcv", size, batch, count, seed)
            passes["ffcv-as-shipped", count] = ffcv_as_shipped_pass(source.path, size, batch, count)
    passes["synthetic", 1] = _engine_pass(source, "synthetic", size, batch, 1, seed)
    passes["floor: decode + resample (numba)", 1] = _floor_pass(source, size, seed, "numba")
    passes["floor: decode + resample (torch)", 1] = _floor_pass(source, size, seed, "torch")
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in passes}
    for repeat in range(repeats + 1):
        for key, one_pass in passes.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            images = one_pass()
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            if repeat:  # the first round warms caches and compiles
                figures[key].append((images / wall, images / max(cpu, 1e-9)))
    return _rows(figures, sum(len(source.encoded(i)) for i in range(len(source))) / len(source))


def _rows(figures: dict[tuple[str, int], list[tuple[float, float]]], mean_bytes: float) -> list[dict[str, Any]]:
    rows = []
    for (pipeline, workers), values in figures.items():
        wall, cpu = (summarize(rates) for rates in zip(*values, strict=True))
        rows.append(
            {
                "pipeline": pipeline,
                "workers": workers,
                "images_per_s": wall.ms,
                "images_per_cpu_s": cpu.ms,
                "spread": cpu.spread,
                "n": cpu.n,
                "mean_bytes": round(mean_bytes),
            }
        )
    floors = [row for row in rows if row["pipeline"].startswith("floor")]
    best = max(floors, key=lambda row: row["images_per_cpu_s"])
    rows = [row for row in rows if row is best or row not in floors]
    for row in rows:
        own = figures[row["pipeline"], row["workers"]]
        # Round by round: a machine whose clock drifts slows both sides of a ratio alike.
        bases = {"vs_dataloader": "torch-dataloader", "vs_ffcv": "ffcv-as-shipped", "vs_floor": best["pipeline"]}
        for name, base in ((name, (pipeline, 1)) for name, pipeline in bases.items()):
            if base not in figures:
                continue
            ratios = [cpu / other for (_, cpu), (_, other) in zip(own, figures[base], strict=True)]
            row[name] = summarize(ratios).ms
    return rows


def _ffcv_installed() -> bool:
    if util.find_spec("ffcv") is None:
        log.warning("no rows for ffcv: FFCV is not installed; fastvicreg doctor shows how to add it.")
        return False
    return True


def _engine_pass(source: Source, name: str, size: int, batch: int, workers: int, seed: int) -> Callable[[], int]:
    plan = train_plan(len(source), seed=seed, recipe=named_recipe("official"), image_size=size)

    engine = build_engine(name, source, plan, batch_size=batch, workers=workers)  # kept over the passes, as over epochs
    return lambda: sum(len(crops.slot_B) for crops in engine.batches(Cursor(0, 0)))


def _dataloader_pass(source: Source, size: int, batch: int, workers: int) -> Callable[[], int]:
    def one_pass() -> int:
        loader = torch.utils.data.DataLoader(
            PILViews(source, size), batch_size=batch, shuffle=True, num_workers=workers, drop_last=True
        )
        return sum(len(views[0]) for views in loader)

    return one_pass


def _floor_pass(source: Source, size: int, seed: int, impl: str) -> Callable[[], int]:
    """One thread, nothing but a decode and two resamples an image; the same boxes as the engines'."""
    plan = train_plan(len(source), seed=seed, recipe=named_recipe("official"), image_size=size)
    index_B = torch.arange(len(source))
    wh_B2 = torch.tensor([source.size(i) for i in range(len(source))])
    boxes, flips = (part.numpy() for part in plan.boxes(0, index_B, wh_B2))
    encoded = [bytes(source.encoded(i)) for i in range(len(source))]
    out = np.empty((2, size, size, 3), np.uint8)

    def one_pass() -> int:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for i, data in enumerate(encoded):
                resample_views(decode_rgb(data), boxes[i], flips[i], out, impl=impl)
        finally:
            torch.set_num_threads(threads)
        return len(encoded)

    return one_pass
