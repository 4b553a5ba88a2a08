"""The cost model as a table: what a step is predicted to take on GPUs that are not at hand, and what holds it back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastvicreg.encoders import takes, varied
from fastvicreg.errors import UserError
from fastvicreg.pairing import FITTING, encoders_of
from fastvicreg.presets import preset as named_preset
from fastvicreg.profiles.bench.registry import Benchmark, Output
from fastvicreg.registry import unknown

COLUMNS = (
    *("gpu", "gpus", "batch", "norms", "step_ms", "conv_ms", "norm_ms", "comm_ms", "other_ms", "images_per_s"),
    *("scaling", "epoch_min", "bound", "cores", "gb_s", "fits"),
)


@dataclass(frozen=True)
class DataForm:
    """How fast one core delivers two views of an image, and how many bytes are read for it."""

    images_per_core_s: float
    mean_bytes: float


FORMS = {
    "originals": DataForm(475, 110_078),
    "beton-500": DataForm(885, 54_961),
    "beton-400": DataForm(885 * 1.325, 36_685),
    "raw-256": DataForm(885 * 6.52, 141_206),
}
"""ImageNet's own JPEGs through native, and 500 px at quality 90 through ffcv: profiles/results/cpu/loader.json, by one
worker of a 2.8 GHz Xeon. 400 px at quality 90, and the pixels of 256 px, by what decoding and cropping them gain over
500 px: profiles/results/cpu/forms.json."""

CROP_SECONDS = 0.147e-3
"""One core's, for a view of 224 px: profiles/results/cpu/resample.json has it of both, numba, on the same Xeon."""
CROP_SIDE, CROPS = 224, 2
"""What a form's rate has of it already."""

MOST_PIXELS = 16384
"""A side that no training has."""

ROWS = {"originals": "native", "beton-500": "ffcv", "beton-400": "ffcv", "raw-256": "ffcv"}
"""The pipeline whose row of ``bench loader`` measures a form."""


@dataclass(frozen=True)
class ModelOptions(Output):
    """Predict steps on GPUs; nothing is measured."""

    gpu: str = "h100"
    """a100-40, a100-80, h100, h200 or rtx3090."""
    gpus: tuple[str, ...] = ("1", "8", "16", "32", "64")
    """Numbers of GPUs; A..B doubles from A to B, as in 1..1024."""
    preset: str = "imagenet-100ep"
    """Encoder, method, recipe and sizes."""
    arch: tuple[str, ...] = ()
    """Another encoder than the preset's, with FIELD=VALUE for each setting, as in resnet101 or vit_small patch=8."""
    branch_b: tuple[str, ...] = ()
    """The second view's own encoder, likewise."""
    batch_size: int = 2048
    """TOTAL batch."""
    batch_per_gpu: int = 0
    """In place of --batch-size: as many images on each GPU, however many there are."""
    image_size: int = 0
    """Pixels; 0: the preset's."""
    num_views: int = 0
    """Views of each image, the recipe's own in turn; 0: the preset's."""
    norms: Literal["eager", "compiled", "fused"] = "eager"
    """How batch norm, addition and ReLU run: torch's operations, torch.compile's, or kernels.norm."""
    views: Literal["separate", "joint"] = "joint"
    """joint: both views' statistics in one collective."""
    activations: Literal["keep", "recompute"] = "keep"
    """recompute: outputs of batch norms are not kept, and more images fit."""
    form: str = "originals"
    """What the images are stored as: originals, beton-500 or beton-400 (JPEG of that longest side at quality 90), or
    raw-256 (pixels)."""
    cores: int = 0
    """Cores of each GPU that load data; 0: as many as it takes."""
    loader: str | None = None
    """A bench loader JSON of the machine in question: its images a core-second are taken."""
    images: int = 1_281_167
    """Images of an epoch."""


def run(
    gpu: str = "h100",
    gpus: tuple[str, ...] = ("1",),
    preset: str = "imagenet-100ep",
    arch: tuple[str, ...] = (),
    branch_b: tuple[str, ...] = (),
    batch_size: int = 2048,
    batch_per_gpu: int = 0,
    image_size: int = 0,
    num_views: int = 0,
    norms: str = "eager",
    views: str = "joint",
    activations: str = "keep",
    form: str = "originals",
    cores: int = 0,
    loader: str | None = None,
    images: int = 1_281_167,
) -> list[dict[str, Any]]:
    """A row a number of GPUs; times in ms, ``images_per_s`` and ``gb_s`` (read from storage) of all GPUs together.

    ``scaling`` is a GPU's rate against that of the first row, ``cores`` those that feed one GPU, ``fits`` the largest
    total batch that the memory holds.

    ``UserError`` for a name that there is not, numbers that no run can have, and a file that holds no such figures.
    """
    from fastvicreg.profiles import cost_model as model
    from fastvicreg.profiles.layers import trace

    for flag, value, least in (
        ("--batch-size", batch_size, 2), ("--batch-per-gpu", batch_per_gpu, 0), ("--cores", cores, 0),
        ("--image-size", image_size, 0), ("--images", images, 1), ("--num-views", num_views, 0),
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{flag} {value}: give {least} or more.")
    if image_size > MOST_PIXELS:
        raise UserError(f"--image-size {image_size}: give {MOST_PIXELS} or less.")
    if gpu not in model.GPUS:
        raise UserError(unknown("GPU", gpu, model.GPUS))
    data = measured(loader, form) if loader else form_of(form)
    config = named_preset(preset).config
    if image_size:
        config = replace(config, data=replace(config.data, image_size=image_size))
    if num_views:
        config = replace(config, data=replace(config.data, num_views=num_views))
    if arch:
        config = replace(config, encoder=varied(config.encoder, arch, "--arch"))
    if branch_b:
        config = replace(config, method=_branched(config.method, branch_b))
    for flag, encoder in encoders_of(config):
        if (what := takes(encoder)) != "images":
            given = f"{flag} {encoder.arch} takes {what}"
            raise UserError(f"{given}, and the model counts images: give {FITTING['images']}.")
    config.check()
    kind, traced = model.GPUS[gpu], trace(config)
    per_core = core_rate(data, traced.pixels)
    fits = model.largest_batch(replace(config, run=replace(config.run, views=views, activations=activations)), kind)
    alone: float | None = None
    rows = []
    for count in counts(gpus):
        found = model.predict(
            traced,
            kind,
            gpus=count,
            batch_size=batch_per_gpu * count or batch_size,
            norms=norms,
            joint=views == "joint",
            loader_rate=cores * per_core or math.inf,
        )
        rate = found.batch / found.step
        alone = alone or rate
        rows.append(
            {
                "gpu": gpu,
                "gpus": count,
                "batch": found.batch * count,
                "norms": norms,
                "step_ms": found.step * 1e3,
                "conv_ms": found.convolutions * 1e3,
                "norm_ms": found.norms * 1e3,
                "comm_ms": found.collectives * 1e3,
                "other_ms": (found.head + found.update + found.augment) * 1e3,
                "images_per_s": rate * count,
                "scaling": rate / alone,
                "epoch_min": images / (rate * count) / 60,
                "bound": found.bound if found.batch <= fits else "memory",
                "cores": found.batch / found.device / per_core,
                "gb_s": rate * count * data.mean_bytes / 1e9,
                "fits": fits * count,
                "spread": 0.0,
            }
        )
    return rows


def core_rate(data: DataForm, pixels: int) -> float:
    """Images a second of one core: ``data``'s rate, and the time for what an image's views have beyond two of 224 px.

    ``pixels`` are values of all views, three colours each. An image is decoded once, however many views are cut of it.
    """
    beyond = max(0.0, pixels / (3 * CROP_SIDE**2) - CROPS)
    return data.images_per_core_s if not beyond else 1 / (1 / data.images_per_core_s + beyond * CROP_SECONDS)


def _branched(method: Any, words: tuple[str, ...]) -> Any:
    """``method`` with a second encoder; ``UserError`` where it takes one alone."""
    if not hasattr(method, "branch_b"):
        raise UserError(f"--branch-b {words[0]}: {method.name} trains one network: leave it out.")
    return replace(method, branch_b=words)


def counts(given: tuple[str, ...]) -> list[int]:
    """ "1..8" as 1, 2, 4, 8, among plain numbers; ``UserError`` for anything else."""
    found: list[int] = []
    for word in given:
        first, dots, last = word.partition("..")
        if not first.isdecimal() or int(first) < 1 or (dots and (not last.isdecimal() or int(last) < int(first))):
            raise UserError(f"--gpus {word}: give numbers of GPUs, such as 8, or 1..1024 for its doublings.")
        number = int(first)
        while number <= int(last or first):
            found.append(number)
            number *= 2
    return list(dict.fromkeys(found))


def form_of(name: str) -> DataForm:
    """The form called ``name``; ``UserError`` with the nearest where there is none."""
    if name not in FORMS:
        raise UserError(unknown("form", name, FORMS))
    return FORMS[name]


def measured(file: str, form: str) -> DataForm:
    """``form`` with the rate of one worker that a ``bench loader`` result has; ``UserError`` where it has none."""
    form_of(form)
    pipeline = ROWS[form]
    try:
        rows = json.loads(Path(file).read_text())["rows"]
        found = [row for row in rows if row.get("pipeline") == pipeline]
        best = min(found, key=lambda row: row.get("workers", 1))
        return DataForm(float(best["images_per_cpu_s"]), float(best["mean_bytes"]))
    except OSError as error:
        raise UserError(f"--loader {file}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--loader {file} holds no row of the pipeline {pipeline}: give the --json of fastvicreg bench loader."
        ) from error


BENCHMARK = Benchmark(
    run,
    COLUMNS,
    key=("gpu", "gpus", "batch", "norms"),
    options=ModelOptions,
    figure="step_ms",
    title="predicted, not measured",
)
