"""DALI's decoders on a GPU machine: on the CPU, and on the GPU at several hardware loads and threads."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvicreg.contracts import Cursor, Engine, Source
from fastvicreg.demo import embedded
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.profiles.bench.peers_dali import own_reader_pass
from fastvicreg.profiles.bench.registry import Benchmark, Options
from fastvicreg.profiles.measure import summarize

COLUMNS = ("decoder", "hw_decoder_load", "threads", "images_per_s", "spread", "n", "gpu_bytes")

LOADS = (0.0, 0.3, 0.5, 0.65, 0.8, 1.0)


def run(
    data: str | Path | None = None, *, size: int = 224, batch: int = 256, repeats: int = 5
) -> Iterator[dict[str, Any]]:
    """Our engine with each decoder over ``data``, and the peer on the GPU; an image gives two views; each row as it is
    known.

    Rows: ``decoder``, ``hw_decoder_load`` (None on the CPU), ``threads`` (a quarter, half and all of the cores),
    ``images_per_s``, ``spread``, ``n``, and ``gpu_bytes``, what all the process's work holds of the GPU's memory beyond
    what was in use before the row. Crops decoded on the CPU are timed until they are on the GPU. A folder of images is
    converted first. ``UserError`` where torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        raise UserError("bench decoders compares decoding on a GPU, and torch finds no CUDA device: see bench loader.")
    data = data or embedded.write_once() / "train"
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(data)
        if isinstance(source, FolderSource):
            source = open_source(convert_dataset(data, Path(folder) / "shards", Settings(format="dali")).path)
        cores = len(os.sched_getaffinity(0))
        threads = sorted({max(1, cores // 4), max(1, cores // 2), cores})
        yield from _rows(source, size, min(batch, len(source)), threads, repeats)


def _rows(source: Source, size: int, batch: int, threads: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    settings: list[tuple[str, float | None, int]] = [("cpu", None, count) for count in threads]
    settings += [("mixed", load, count) for count in threads for load in LOADS]
    settings += [("dali-own-reader", None, count) for count in threads]
    for decoder, load, count in settings:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        engine: Engine | None = None
        if decoder == "dali-own-reader":
            one_pass = own_reader_pass(source, size, batch, count, device="cuda")
        else:
            engine, one_pass = _engine_pass(source, size, batch, count, decoder, load)
        rates, least = [], free
        for repeat in range(repeats + 1):
            began = time.perf_counter()
            images = one_pass()
            if repeat:  # the first one builds and allocates
                rates.append(images / (time.perf_counter() - began))
            least = min(least, torch.cuda.mem_get_info()[0])
        if engine is not None:
            engine.close()
        summary = summarize(rates)
        del one_pass, engine  # DALI keeps the memory of a pipeline for as long as it lives
        yield {
            "decoder": decoder,
            "hw_decoder_load": load,
            "threads": count,
            "images_per_s": summary.ms,
            "spread": summary.spread,
            "n": summary.n,
            "gpu_bytes": free - least,
        }


def _engine_pass(
    source: Source, size: int, batch: int, threads: int, decoder: str, load: float | None
) -> tuple[Engine, Callable[[], int]]:
    plan = train_plan(len(source), seed=0, recipe=named_recipe("official"), image_size=size)
    options: dict[str, Any] = {"decoder": decoder} | ({} if load is None else {"hw_decoder_load": load})
    engine = build_engine("dali", source, plan, batch_size=batch, workers=threads, device="cuda", **options)

    def one_pass() -> int:
        images = 0
        for crops in engine.batches(Cursor(0, 0)):
            crops.crops_BVHWC.to("cuda", non_blocking=True)
            images += len(crops.slot_B)
        torch.cuda.synchronize()
        return images

    return engine, one_pass


@dataclass(frozen=True)
class BenchOptions(Options):
    """DALI's decoders on a GPU."""

    data: str | None = None
    """Folder of images or of shards; default: the embedded ones."""

    size: int = 224
    """Side of a view in pixels."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("decoder", "hw_decoder_load", "threads"),
    figure="images_per_s",
    better="higher",
    options=BenchOptions,
)
