"""Loading and cropping alone: our engines, a torch DataLoader with PIL, FFCV, DALI, and the floor under them all.

Every row does the same work on the same bytes: decode, RandomResizedCrop and flip, uint8, two views; no photometric
operation.
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvicreg.contracts import Cursor, Source
from fastvicreg.demo import embedded
from fastvicreg.kernels.resample import resample_views
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.decode import decode_rgb
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.profiles.bench.peers import PILViews
from fastvicreg.profiles.bench.peers_dali import own_reader_pass
from fastvicreg.profiles.bench.peers_ffcv import ffcv_as_shipped_pass
from fastvicreg.profiles.bench.registry import Benchmark, Options, Picture
from fastvicreg.profiles.measure import alternating, summarize
from fastvicreg.threads import one_thread

COLUMNS = (
    "pipeline", "workers", "images_per_s", "images_per_cpu_s", "spread", "mean_bytes",
    "vs_dataloader", "vs_ffcv", "vs_dali", "vs_floor",
)  # fmt: skip

log = logging.getLogger(__name__)

Figures = dict[tuple[str, int], list[tuple[float, float]]]
"""By pipeline and workers: images a second and a processor second, of each round."""


def cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def run(
    data: str | Path | None = None,
    *,
    size: int = 224,
    batch: int = 50,
    workers: int = 0,
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows for every pipeline over ``data``; images are source images, each giving two views.

    Over a ``.beton`` every row decodes its bytes, over shards all but FFCV's. Of a folder FFCV's and DALI's rows, with
    our engine and their own, read a temporary ``.beton`` and shards (longest side 500, all encoded again at quality 90,
    as FFCV's users write it), so they compare with each other only. ``workers`` 0 stands for one a core. The pipelines
    take turns in each of the ``repeats``.
    """
    data = data or embedded.write_once() / "train"
    source = open_source(data)
    with tempfile.TemporaryDirectory() as folder:
        beton = _beton(source, data, Path(folder)) if installed("ffcv", "FFCV") else None
        stored = _stored(source, data, Path(folder)) if installed("nvidia.dali", "DALI") else None
        workers = workers or torch.get_num_threads()
        passes = _passes(source, beton, stored, size, min(batch, len(source)), workers, seed)
        figures: Figures = {key: [] for key in passes}
        for repeat in range(repeats + 1):
            for key in alternating(passes, repeat):
                one_pass = passes[key]
                wall, cpu = time.perf_counter(), cpu_seconds()
                images = one_pass()
                wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
                if repeat:  # the first round warms caches and compiles
                    figures[key].append((images / wall, images / max(cpu, 1e-9)))
        read = {"ffcv": beton, "dali": stored}
        return _rows(figures, mean_bytes(source), {name: mean_bytes(own) for name, own in read.items() if own})


def _passes(
    source: Source,
    beton: BetonSource | None,
    stored: Source | None,
    size: int,
    batch: int,
    workers: int,
    seed: int,
) -> dict[tuple[str, int], Callable[[], int]]:
    passes: dict[tuple[str, int], Callable[[], int]] = {}
    for count in sorted({1, workers}):
        passes["native", count] = engine_pass(source, "native", size, batch, count, seed)
        passes["torch-dataloader", count] = _dataloader_pass(source, size, batch, count)
    for count in sorted({1, workers}) if beton else ():
        assert beton is not None
        passes["ffcv", count] = engine_pass(beton, "ffcv", size, batch, count, seed)
        passes["ffcv-as-shipped", count] = ffcv_as_shipped_pass(beton.path, size, batch, count)
    for count in sorted({1, workers}) if stored else ():
        assert stored is not None
        passes["dali", count] = engine_pass(stored, "dali", size, batch, count, seed)
        passes["dali-own-reader", count] = own_reader_pass(stored, size, batch, count)
    passes["synthetic", 1] = engine_pass(source, "synthetic", size, batch, 1, seed)
    for impl in ("numba", "torch"):
        passes[f"floor: decode + resample ({impl})", 1] = _floor_pass(source, size, seed, impl)
    return passes


def _beton(source: Source, data: str | Path, folder: Path) -> BetonSource:
    if isinstance(source, BetonSource):
        return source
    settings = Settings(max_size=500, quality=90, reencode=True)
    return BetonSource(convert_dataset(data, folder / "images.beton", settings).path)


def _stored(source: Source, data: str | Path, folder: Path) -> Source:
    """What DALI's rows read: the source itself where it can, else temporary shards."""
    if not isinstance(source, FolderSource):
        return source
    settings = Settings(format="dali", max_size=500, quality=90, reencode=True)
    return open_source(convert_dataset(data, folder / "shards", settings).path)


def mean_bytes(source: Source) -> int:
    """Of the encoded samples."""
    return round(sum(len(source.encoded(i)) for i in range(len(source))) / len(source))


def _rows(figures: Figures, source_bytes: int, own_bytes: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row a pipeline; ``own_bytes`` are the mean bytes of what the pipelines named after a format read."""

    def bytes_of(pipeline: str) -> int:
        return own_bytes.get(pipeline.partition("-")[0], source_bytes)

    floors = {key: summarize([cpu for _, cpu in values]).ms for key, values in figures.items() if key[0][:5] == "floor"}
    best = max(floors, key=floors.__getitem__)
    rows = []
    for key, values in figures.items():
        if key in floors and key != best:
            continue
        wall, cpu = (summarize(rates) for rates in zip(*values, strict=True))
        row = {
            "pipeline": key[0],
            "workers": key[1],
            "images_per_s": wall.ms,
            "images_per_cpu_s": cpu.ms,
            "spread": cpu.spread,
            "n": cpu.n,
            "mean_bytes": bytes_of(key[0]),
        }
        # Round by round: a machine whose clock drifts slows both sides of a ratio alike.
        for name, base in (
            ("vs_dataloader", ("torch-dataloader", 1)),
            ("vs_ffcv", ("ffcv-as-shipped", 1)),
            ("vs_dali", ("dali-own-reader", key[1])),
            ("vs_floor", best),
        ):
            if base in figures and bytes_of(base[0]) == bytes_of(key[0]):
                row[name] = summarize(
                    [own / other for (_, own), (_, other) in zip(values, figures[base], strict=True)]
                ).ms
        rows.append(row)
    return rows


def installed(module: str, name: str) -> bool:
    """Whether ``module`` is there; where not, a warning says that ``name`` has no rows."""
    try:
        found = util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        log.warning("no rows for %s, which is not installed; fastvicreg doctor shows how to add it.", name)
    return found


def engine_pass(source: Source, name: str, size: int, batch: int, workers: int, seed: int) -> Callable[[], int]:
    """A function that takes one epoch of an engine's two views of ``size``; gives the number of source images."""
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
        with one_thread():
            for i, data in enumerate(encoded):
                resample_views(decode_rgb(data), boxes[i], flips[i], out, impl=impl)
        return len(encoded)

    return one_pass


@dataclass(frozen=True)
class BenchOptions(Options):
    """Loading and cropping by every pipeline."""

    data: str | None = None
    """Folder of images or of shards, or a .beton; default: the embedded ones."""

    size: int = 224
    """Side of a view in pixels."""

    workers: int = 0
    """Threads or processes; 0: one a core."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("pipeline", "workers"),
    figure="images_per_cpu_s",
    better="higher",
    picture=Picture(("pipeline", "workers"), leave_out=lambda row: row["pipeline"] == "synthetic"),
    options=BenchOptions,
)
