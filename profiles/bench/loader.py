"""Loading and cropping alone: our engines, a torch DataLoader with PIL, FFCV, and the floor no pipeline can beat.

Every row does the same work on the same bytes: decode, RandomResizedCrop and flip, uint8, two views; no photometric
operation.
"""

from __future__ import annotations

import logging
import resource
import tempfile
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
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.profiles.bench.peers import PILViews
from fastvicreg.profiles.bench.peers_ffcv import ffcv_as_shipped_pass
from fastvicreg.profiles.measure import summarize

COLUMNS = (
    "pipeline", "workers", "images_per_s", "images_per_cpu_s", "spread", "mean_bytes",
    "vs_dataloader", "vs_ffcv", "vs_floor",
)  # fmt: skip

log = logging.getLogger(__name__)

Figures = dict[tuple[str, int], list[tuple[float, float]]]
"""By pipeline and workers: images a second and a processor second, of each round."""


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def run(
    data: str | Path, *, size: int = 224, batch: int = 50, workers: int = 0, repeats: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows for every pipeline over ``data``; images are source images, each giving two views.

    Over a ``.beton`` every row decodes its bytes. Of a folder FFCV's rows, with our engine and as shipped, read a
    temporary ``.beton`` (longest side 500, all encoded again at quality 90, as FFCV's users write it), so they compare
    with each other only. ``workers`` 0 stands for one a core. The pipelines take turns in each of the ``repeats``.
    """
    source = open_source(data)
    with tempfile.TemporaryDirectory() as folder:
        beton = _beton(source, data, Path(folder)) if _ffcv_installed() else None
        passes = _passes(source, beton, size, min(batch, len(source)), workers or torch.get_num_threads(), seed)
        figures: Figures = {key: [] for key in passes}
        for repeat in range(repeats + 1):
            for key, one_pass in passes.items():
                wall, cpu = time.perf_counter(), cpu_seconds()
                images = one_pass()
                wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
                if repeat:  # the first round warms caches and compiles
                    figures[key].append((images / wall, images / max(cpu, 1e-9)))
        return _rows(figures, _mean_bytes(source), _mean_bytes(beton) if beton else 0)


def _passes(
    source: Source, beton: BetonSource | None, size: int, batch: int, workers: int, seed: int
) -> dict[tuple[str, int], Callable[[], int]]:
    passes: dict[tuple[str, int], Callable[[], int]] = {}
    for count in sorted({1, workers}):
        passes["native", count] = _engine_pass(source, "native", size, batch, count, seed)
        passes["torch-dataloader", count] = _dataloader_pass(source, size, batch, count)
    for count in sorted({1, workers}) if beton else ():
        assert beton is not None
        passes["ffcv", count] = _engine_pass(beton, "ffcv", size, batch, count, seed)
        passes["ffcv-as-shipped", count] = ffcv_as_shipped_pass(beton.path, size, batch, count)
    passes["synthetic", 1] = _engine_pass(source, "synthetic", size, batch, 1, seed)
    for impl in ("numba", "torch"):
        passes[f"floor: decode + resample ({impl})", 1] = _floor_pass(source, size, seed, impl)
    return passes


def _beton(source: Source, data: str | Path, folder: Path) -> BetonSource:
    if isinstance(source, BetonSource):
        return source
    settings = Settings(max_size=500, quality=90, reencode=True)
    return BetonSource(convert_dataset(data, folder / "images.beton", settings).path)


def _mean_bytes(source: Source) -> int:
    return round(sum(len(source.encoded(i)) for i in range(len(source))) / len(source))


def _rows(figures: Figures, source_bytes: int, beton_bytes: int) -> list[dict[str, Any]]:
    floors = {key: summarize([cpu for _, cpu in values]).ms for key, values in figures.items() if key[0][:5] == "floor"}
    best = max(floors, key=floors.__getitem__)
    rows = []
    for key, values in figures.items():
        if key in floors and key != best:
            continue
        wall, cpu = (summarize(rates) for rates in zip(*values, strict=True))
        mean_bytes = beton_bytes if key[0].startswith("ffcv") else source_bytes
        row = {
            "pipeline": key[0],
            "workers": key[1],
            "images_per_s": wall.ms,
            "images_per_cpu_s": cpu.ms,
            "spread": cpu.spread,
            "n": cpu.n,
            "mean_bytes": mean_bytes,
        }
        # Round by round: a machine whose clock drifts slows both sides of a ratio alike.
        for name, base in (
            ("vs_dataloader", ("torch-dataloader", 1)),
            ("vs_ffcv", ("ffcv-as-shipped", 1)),
            ("vs_floor", best),
        ):
            base_bytes = beton_bytes if name == "vs_ffcv" else source_bytes
            if base in figures and base_bytes == mean_bytes:
                row[name] = summarize(
                    [own / other for (_, own), (_, other) in zip(values, figures[base], strict=True)]
                ).ms
        rows.append(row)
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
