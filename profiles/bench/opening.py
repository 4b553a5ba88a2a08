"""How long a large folder of images takes to open: listed the first time, from its kept lists afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvicreg.pipelines.formats.folder import listings
from fastvicreg.pipelines.sources import find_splits, open_source
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.profiles.measure import summarize

COLUMNS = ("opening", "images", "classes", "seconds", "cpu_seconds", "spread", "n")
IMAGENET = 1_281_167
CLASSES = 1000


def run(data: str | None = None, images: int = IMAGENET, repeats: int = 3) -> list[dict[str, Any]]:
    """Rows "first" and "again"; the disk's own cache of names is as it is."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data) if data else _written(Path(folder) / "train", images)
        rows: dict[str, list[tuple[float, float]]] = {"first": [], "again": []}
        kept, counts = listings.kept_at(find_splits(root)[0]), {}
        for _ in range(repeats):
            kept.unlink(missing_ok=True)
            for times in rows.values():
                wall, cpu = time.perf_counter(), time.process_time()
                source = open_source(find_splits(root)[0])
                times.append((time.perf_counter() - wall, time.process_time() - cpu))
                counts = {"images": len(source), "classes": len(source.classes)}
                del source
        if not data:
            kept.unlink(missing_ok=True)
            shutil.rmtree(root)
    return [_row(opening, times) | counts for opening, times in rows.items()]


def _row(opening: str, times: list[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = (summarize(part) for part in zip(*times, strict=True))
    return {"opening": opening, "seconds": wall.ms, "cpu_seconds": cpu.ms, "spread": wall.spread, "n": wall.n}


def _written(root: Path, images: int) -> Path:
    """Empty files in class folders."""
    for name in (f"n{number:08}" for number in range(CLASSES)):
        (root / name).mkdir(parents=True)
    for number in range(images):
        name = f"n{number % CLASSES:08}"
        os.close(os.open(f"{root}/{name}/{name}_{number}.JPEG", os.O_CREAT | os.O_WRONLY, 0o644))
    time.sleep(listings.RECENT)
    return root


@dataclass(frozen=True)
class BenchOptions(Options):
    """How long a large folder of images takes to open."""

    data: str | None = None
    """Folder of images; without it: empty files, made in the temporary folder."""
    images: int = IMAGENET
    """How many of these."""
    repeats: int = 3
    """Repeats of each measurement."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("opening", "images"),
    figure="seconds",
    options=BenchOptions,
)
