"""Conversion to ``.beton`` and to tar shards, beside FFCV's own DatasetWriter on the same images and the bare disk."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from fastvicreg.demo import embedded
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.journal import write_all
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.profiles.measure import summarize

COLUMNS = ("how", "workers", "images_per_s", "spread", "mb_per_s", "mean_bytes", "vs_datasetwriter", "vs_disk", "n")

PEER = "FFCV DatasetWriter, 500 px, q90"
OWN = {
    "bytes kept": Settings(),
    "tar shards, bytes kept": Settings(format="dali"),
    "500 px, q90, all encoded again": Settings(max_size=500, quality=90, reencode=True),
}
DISK = "the disk alone: the same bytes in one file"
BLOCK = 8 << 20
TIMEOUT = 600

log = logging.getLogger(__name__)

# As FFCV's users write a folder: PIL images into RGBImageField. Its own process, because the writer forks and because
# numba's threads must not have started before; the import is not counted.
WRITE = """
import json, sys, time
from PIL import Image
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

files, labels = json.load(open(sys.argv[1]))

class Folder:
    def __len__(self):
        return len(files)

    def __getitem__(self, i):
        return Image.open(files[i]).convert("RGB"), labels[i]

fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90), "label": IntField()}
start = time.perf_counter()
DatasetWriter(sys.argv[2], fields, num_workers=int(sys.argv[3])).from_indexed_dataset(Folder())
print("seconds", time.perf_counter() - start)
"""


def run(data: str | Path | None = None, *, workers: int = 0, repeats: int = 5) -> list[dict[str, Any]]:
    """One row a way of writing the image folder ``data``; our rows and the disk's include the fsync, FFCV's does none.

    ``vs_disk`` compares bytes a second with the disk's in the same round, which is the ceiling where bytes are kept.
    ``UserError`` where ``data`` is no folder or FFCV's writer fails.
    """
    data = data or embedded.write_once() / "train"
    source = FolderSource(data)
    workers = workers or len(os.sched_getaffinity(0))
    peer = util.find_spec("ffcv") is not None
    if not peer:
        log.warning("no row for FFCV's DatasetWriter: FFCV is not installed; fastvicreg doctor shows how to add it.")
    seconds: dict[str, list[float]] = {name: [] for name in (*OWN, *([PEER] if peer else []), DISK)}
    size: dict[str, int] = {}
    for repeat in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            for number, name in enumerate(seconds):
                shards = name in OWN and OWN[name].format == "shards"
                target = Path(folder) / (str(number) if shards else f"{number}.beton")
                if name == DISK:
                    taken = _disk(target, size["bytes kept"])
                else:
                    taken = _peer(source, target, workers) if name == PEER else _own(data, target, OWN[name], workers)
                files = target.iterdir() if shards else [target]
                size[name] = sum(file.stat().st_size for file in files)
                if repeat:  # the first round warms the file cache
                    seconds[name].append(taken)
    return [_row(name, seconds, size, len(source), workers) for name in seconds]


def _row(
    name: str, seconds: Mapping[str, Sequence[float]], sizes: Mapping[str, int], images: int, workers: int
) -> dict[str, Any]:
    values, peer, size = seconds[name], seconds.get(PEER), sizes[name]
    share = size / sizes[DISK]
    timing = summarize(values)
    row: dict[str, Any] = {
        "how": name,
        "workers": workers,
        "images_per_s": images / timing.ms,
        "spread": timing.spread,
        "mb_per_s": size / timing.ms / 1e6,
        "mean_bytes": round(size / images),
        "vs_disk": summarize([share * disk / own for own, disk in zip(values, seconds[DISK], strict=True)]).ms,
        "n": timing.n,
    }
    if peer:
        row["vs_datasetwriter"] = summarize([other / own for own, other in zip(values, peer, strict=True)]).ms
    return row


def _own(data: str | Path, target: Path, settings: Settings, workers: int) -> float:
    start = time.perf_counter()
    convert_dataset(data, target, settings, workers=workers)
    return time.perf_counter() - start


def _disk(target: Path, size: int) -> float:
    """Seconds that ``size`` bytes take from memory to the disk, one write after another and one fsync."""
    block = memoryview(os.urandom(BLOCK))
    start = time.perf_counter()
    with target.open("wb", buffering=0) as file:
        for at in range(0, size, BLOCK):
            write_all(file.fileno(), block[: size - at])
        os.fsync(file.fileno())
    return time.perf_counter() - start


def _peer(source: FolderSource, target: Path, workers: int) -> float:
    listing = target.with_suffix(".json")
    files = [str(source.path / source.name(i)) for i in range(len(source))]
    listing.write_text(json.dumps([files, [source.label(i) for i in range(len(source))]]))
    command = [sys.executable, "-c", WRITE, str(listing), str(target), str(workers)]
    # With TBB, numba's first choice, a process that has forked never ends.
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "omp"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise UserError(f"FFCV's DatasetWriter failed on {source.path}: {str(error.stderr)[-200:]}") from error
    return float(done.stdout.rsplit("seconds", 1)[1])


@dataclass(frozen=True)
class BenchOptions(Options):
    """Conversions of a folder of images."""

    data: str | None = None
    """Folder of images; default: the embedded ones."""

    workers: int = 0
    """Threads or processes; 0: one a core."""


BENCHMARK = Benchmark(
    run, COLUMNS, key=("how", "workers"), figure="images_per_s", better="higher", options=BenchOptions
)
