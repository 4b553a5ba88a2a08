"""A loader over a remote dataset, read by ranges, beside the same files on this disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastvicreg.caches import cache_folder
from fastvicreg.contracts import Cursor, Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.profiles.bench.registry import Benchmark, Options, Picture
from fastvicreg.profiles.measure import alternating, summarize

COLUMNS = ("samples", "workers", "images_per_s", "spread", "n", "of_local", "mean_bytes")


def run(
    data: str | None = None, address: str | None = None, size: int = 224, workers: int = 0, repeats: int = 5
) -> list[dict[str, Any]]:
    """Rows "local", "ranges" (nothing is kept) and "kept" (all that came before is), epoch by epoch in turns.

    The row "opening" is the seconds until the address can be read, and the bytes that came for it.
    """
    if not data or not address:
        raise UserError("bench remote compares two places of the same files: give --data PATH and --address URL.")
    shutil.rmtree(cache_folder() / "ranges", ignore_errors=True)
    came = 0

    def told(done: int, total: int, count: int) -> None:
        nonlocal came
        came = count

    began = time.perf_counter()
    remote = open_source(placed(address, cache_gb=0, told=told).path)
    opening = time.perf_counter() - began
    local = open_source(data)
    if len(local) != len(remote):
        raise UserError(f"{data} holds {len(local):,} samples and {address} {len(remote):,}: give the same files.")
    kept = open_source(placed(address, cache_gb=1e3).path)
    passes = {name: _pass(source, size, workers) for name, source in
              (("local", local), ("ranges", remote), ("kept", kept))}  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        for name in alternating(passes, repeat):
            start = time.perf_counter()
            images = passes[name]()
            if repeat:  # the first round warms caches and compiles, and fills what is kept
                rates[name].append(images / (time.perf_counter() - start))
    mean = sum(len(local.encoded(index)) for index in range(len(local))) // len(local)
    first = {"samples": "opening", "seconds": opening, "bytes": came, "images": len(local)}
    return [first, *(_row(name, rates, workers, mean) for name in passes)]


def _row(name: str, rates: dict[str, list[float]], workers: int, mean_bytes: int) -> dict[str, Any]:
    rate = summarize(rates[name])
    of_local = summarize([one / base for one, base in zip(rates[name], rates["local"], strict=True)])
    return {
        "samples": name,
        "workers": workers,
        "images_per_s": rate.ms,
        "spread": rate.spread,
        "n": rate.n,
        "of_local": of_local.ms,
        "of_local_spread": of_local.spread,
        "mean_bytes": mean_bytes,
    }


def _pass(source: Source, size: int, workers: int) -> Callable[[], int]:
    plan = train_plan(len(source), seed=0, recipe=named_recipe("official"), image_size=size)
    engine = build_engine("native", source, plan, batch_size=min(64, len(source)), workers=workers)
    epochs = iter(range(1 << 30))
    return lambda: sum(len(crops.slot_B) for crops in engine.batches(Cursor(next(epochs), 0)))


@dataclass(frozen=True)
class BenchOptions(Options):
    """A loader over a remote dataset beside the same files on this disk."""

    data: str | None = None
    """The files on this disk."""
    address: str | None = None
    """The same files elsewhere (https://, s3://, gs://, hf://)."""
    size: int = 224
    """Side of a view in pixels."""
    workers: int = 0
    """Decoding threads; 0: one a core."""


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("samples", "workers"),
    figure="images_per_s",
    better="higher",
    picture=Picture(("samples",), leave_out=lambda row: row["samples"] == "opening"),
    options=BenchOptions,
)
