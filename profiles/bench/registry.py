"""Names of the benchmarks, and the form in which each describes itself. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Literal

from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

Row = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """Where the figures go; every benchmark's options begin with these."""

    out: str | None = None
    """Folder that receives the figures as PART.json."""
    json: str | None = None
    """Write the figures to this file."""
    plot: str | None = None
    """Draw the figures as bars, a .png or .svg file; for benchmarks that have a picture."""


@dataclass(frozen=True)
class Options(Output):
    """Options of a benchmark that takes repeats alone."""

    repeats: int = 5
    """Repeats of each measurement."""


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Options of a benchmark that runs on either device."""

    device: str = "cpu"
    """cpu or cuda."""


@dataclass(frozen=True)
class Picture:
    """Bars of one column; the label of a bar joins other columns."""

    label: tuple[str, ...]
    value: str = "images_per_s"
    leave_out: Callable[[Row], bool] | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; its module calls it ``BENCHMARK``."""

    run: Callable[..., Iterable[Row]]
    """Takes ``options``'s own fields, by name; gives rows that carry a median and its ``spread``, as a list or one by
    one as they are measured, so that what ends the program early costs those to come alone."""
    columns: tuple[str, ...]
    """Shown, in this order."""
    key: tuple[str, ...]
    """Columns that tell what a row measures: rows alike in them are compared between two results."""
    options: type[Output] = Options
    figure: str = "ms"
    """The column that is compared between two results."""
    better: Literal["lower", "higher"] = "lower"
    picture: Picture | None = None
    title: str = ""
    """What stands above the table; "": that the figures are medians."""
    failures: Callable[[Sequence[Row]], int] | None = None
    """The number of rows that failed, for a benchmark that checks; any makes exit code 1."""

    def arguments(self, options: Output) -> dict[str, Any]:
        """What ``run`` takes of the parsed options."""
        output = {field.name for field in fields(Output)}
        return {field.name: getattr(options, field.name) for field in fields(options) if field.name not in output}


BENCHMARKS: dict[str, str] = {
    "plan": "order, boxes and parameters of an epoch",
    "convert": "a folder of images into .beton and shards, beside FFCV's writer",
    "loader": "loading and cropping by every pipeline, beside a DataLoader, FFCV and DALI",
    "resolution": "views of each size of --resolution by every pipeline, of images stored in several forms",
    "opening": "a folder of a million image files, listed and from its kept lists",
    "fidelity": "a trained encoder's kNN on images stored in other forms",
    "remote": "the loader over remote files read by ranges, beside the same files here",
    "loss": "forward and backward of the VICReg loss by every implementation",
    "lars": "one update of a ResNet-50 with its expander by every implementation",
    "augment": "photometric augmentation of one batch by every implementation, beside Pillow",
    "resample": "two random resized crops of an image by every implementation",
    "norm": "batch norm, addition and ReLU by every implementation",
    "knn": "kNN of frozen features, every k in one pass, beside a loop in solo-learn's form",
    "probe": "linear classifiers on features computed once: L-BFGS beside the paper's SGD",
    "step": "a preset's whole update by every way to run it, beside the official step",
    "goals": "what one H100 or H200 is to reach, met or missed: speed, views/s, feeding, batch",
    "train": "a short run by every pipeline, end to end: stopped, resumed, evaluated",
    "model": "a step on GPUs that are not at hand, predicted: time, bottleneck, batch that fits, cores that feed it",
    "trace": "reading a profiler's trace",
    "ceilings": "what this machine copies and multiplies at most",
    "correctness": "every implementation against its reference, without times",
    "decoders": "DALI's decoders on a GPU",
}
"""Benchmarks by the name of their module in this folder; a line for ``fastvicreg bench --help``."""

SWAP = {"swap": "what holds a run back, by replacing one part of it at a time"}
"""Takes a whole run's options, so that it has a command of its own; its results are compared as the others' are."""


def benchmark(name: str, known: Mapping[str, str] = BENCHMARKS) -> Benchmark:
    """The benchmark of that name; ``UserError`` with the nearest name where there is none."""
    if name not in known:
        raise UserError(unknown("part", name, known))
    return import_module(f"fastvicreg.profiles.bench.{name}").BENCHMARK
