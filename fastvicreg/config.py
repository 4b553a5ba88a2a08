"""Every setting of a run as frozen dataclasses: what the command line overrides, a preset fills in and a run saves.

Importing this file imports no torch: the command line's help must start at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastvicreg.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they become crops."""

    data: str | None = None
    """Folder of images (class folders or flat) or of tar shards, or a .beton; a folder may hold train/ and val/ (or
    test/) of these. Without it: the embedded images."""
    val_data: str | None = None
    """Labelled images for the online kNN, where --data holds no val/ or test/."""
    val_labels: str | None = None
    """Labels of validation images that lie flat: a text, CSV or JSON file of file names and classes."""
    pipeline: str = "native"
    """Engine that decodes and crops: native (any data), ffcv (.beton, FFCV), dali (shards, NVIDIA DALI), synthetic."""
    workers: int = 0
    """Decoding threads of this process; 0: one a core."""
    prefetch: int = 3
    """Batches decoded ahead; each takes batch x views x size x size x 3 bytes."""
    decoder: Literal["auto", "cpu", "mixed"] = "auto"
    """Where dali decodes: cpu, mixed (on the GPU), or auto (mixed where --device is CUDA)."""
    hw_decoder_load: float = 0.65
    """Share of the images that dali's mixed decoder gives to the GPU's JPEG hardware, 0 to 1."""
    shuffle: Literal["full", "blocks"] = "full"
    """full: any order; blocks: reads stay local on slow disks."""
    image_size: int = 224
    """Side of the square views in pixels."""
    recipe: str = "official"
    """Augmentation: official (asymmetric, as the released code), paper (symmetric), small (no blur, 32 px images)."""
    label: str = ""
    """Field of a .beton that holds the classes, where its name does not tell (label, target, y, class ...)."""
    to_rgb: str = "range"
    """Images of more than 8 bits (16-bit, integer, float): range scales each from its own smallest value to its
    largest, LOW:HIGH from these two (0:65535), refuse counts them as faults."""
    fault_count: int = 10
    """A run stops when an epoch has replaced more samples than this ..."""
    fault_share: float = 0.01
    """... and more than this share of those delivered."""


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and its expander."""

    arch: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101 or resnet50x2."""
    width: int = 64
    """Channels of the first stage (resnet50x2 doubles it), at least 16."""
    stem: Literal["7x7", "3x3", "3x3s2"] = "7x7"
    """7x7 stride 2 and max-pool (ImageNet); 3x3 stride 1 or 2 without pooling (small images)."""
    expander: tuple[int, ...] = (8192, 8192, 8192)
    """Widths of the expander's layers; the last is the embedding's."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    objective: str = "vicreg"
    """Name of the objective: vicreg."""
    invariance: float = 25.0
    """Weight of the invariance term."""
    variance: float = 25.0
    """Weight of the variance term; 0 shows the collapse it prevents."""
    covariance: float = 1.0
    """Weight of the covariance term."""
    loss_form: Literal["official", "paper"] = "official"
    """official: each branch's variance hinge halved, as the released code; paper: not halved."""


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move."""

    optimizer: Literal["lars", "sgd", "adamw"] = "lars"
    """LARS as the released code; sgd (momentum .9) and adamw decay no 1-D parameter either."""
    base_lr: float = 0.3
    """Peak learning rate at a total batch of 256; scaled linearly with the batch."""
    weight_decay: float = 1e-6
    """Weight decay of parameters with two or more dimensions."""
    eta: float = 0.001
    """LARS trust coefficient."""
    warmup_epochs: float = 10.0
    """Linear warm-up, in epochs."""
    warmup_share: float = 0.0
    """Where above 0: warm-up as this share of all steps, in place of --warmup-epochs."""


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what is written."""

    epochs: int = 100
    """Passes over the data."""
    batch_size: int = 2048
    """TOTAL batch, over all devices."""
    seed: int = 0
    """Fixes order, crops, augmentation and initial weights."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    precision: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Autocast; auto is bf16 on CUDA and off on the CPU."""
    kernel: tuple[str, ...] = ()
    """Implementations by part, such as loss=gram lars=reference augment=numba resample=torch."""
    log_every: int = 10
    """Steps between reads of the metrics from the device; every step is still recorded."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is also written at each epoch's end and at a stop."""
    keep: int = 2
    """Checkpoints kept, at least 2."""
    eval_every: int = 1
    """Epochs between online kNN evaluations; 0: none."""
    knn_bank: int = 50_000
    """Training images in the kNN bank, spread evenly over the data."""
    steps: int = 0
    """Stop after this many steps in all; 0: run all epochs."""


@dataclass(frozen=True)
class TrainConfig:
    """All of a run's settings."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}


def to_json(config: TrainConfig) -> str:
    """``config`` as indented JSON, one section an object."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_mapping(content: dict[str, Any], origin: str) -> TrainConfig:
    """The inverse of ``to_json`` after parsing; ``UserError`` naming ``origin`` where a section or field is unknown."""
    sections = {}
    for name, values in content.items():
        if name not in SECTIONS or not isinstance(values, dict):
            raise UserError(f"{origin}: unknown section {name!r}; a config has {', '.join(SECTIONS)}.")
        known = {f.name for f in dataclasses.fields(SECTIONS[name])}
        for key in values:
            if key not in known:
                raise UserError(f"{origin}: unknown field {key!r} in {name!r}; it has {', '.join(sorted(known))}.")
        hints = get_type_hints(SECTIONS[name])
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for key, value in given.items():
            if not _fits(value, hints[key]):
                raise UserError(f"{origin}: {key} cannot be {value!r}; it takes {_spelled(hints[key])}.")
        sections[name] = SECTIONS[name](**given)
    return TrainConfig(**sections)


def _fits(value: object, hint: Any) -> bool:
    """Whether ``value`` is of the type that a field is annotated with."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in arguments
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(entry, arguments[0]) for entry in value)
    if kind is UnionType:
        return any(_fits(value, choice) for choice in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _spelled(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)


def load(path: str | Path) -> TrainConfig:
    """Read a saved config: a JSON file, or a run's folder that holds ``config.json``."""
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON config: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no config: it holds a {type(content).__name__}, not an object of sections.")
    return from_mapping(content, str(file))


def check(config: TrainConfig) -> None:
    """``UserError`` for the first value no run can have."""
    data, model, optim, run = config.data, config.model, config.optim, config.run
    at_least = {
        "--epochs": (run.epochs, 1),
        "--batch-size": (run.batch_size, 2),
        "--image-size": (data.image_size, 8),
        "--prefetch": (data.prefetch, 1),
        "--workers": (data.workers, 0),
        "--log-every": (run.log_every, 1),
        "--checkpoint-every": (run.checkpoint_every, 1),
        "--keep": (run.keep, 2),
        "--eval-every": (run.eval_every, 0),
        "--knn-bank": (run.knn_bank, 1),
        "--steps": (run.steps, 0),
        "--seed": (run.seed, 0),
        "--fault-count": (data.fault_count, 0),
        "--fault-share": (data.fault_share, 0.0),
        "--weight-decay": (optim.weight_decay, 0.0),
        "--eta": (optim.eta, 0.0),
        "--warmup-epochs": (optim.warmup_epochs, 0.0),
        "--warmup-share": (optim.warmup_share, 0.0),
    }
    for flag, (value, least) in at_least.items():
        if not value >= least:
            raise UserError(f"{flag} {value} is too small: give {least} or more.")
    if not 0 <= data.hw_decoder_load <= 1:
        raise UserError(f"--hw-decoder-load {data.hw_decoder_load} is no share: give 0 to 1.")
    if data.decoder != "auto" and data.pipeline != "dali":
        raise UserError(f"--decoder {data.decoder} is the dali pipeline's: give --pipeline dali, or leave it out.")
    finite = ("weight_decay", "eta", "warmup_epochs"), ("invariance", "variance", "covariance")
    for section, names in zip((optim, config.objective), finite, strict=True):
        for name in names:
            value = getattr(section, name)
            if not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} {value} cannot train: give a finite value.")
    if not 0 < optim.base_lr < float("inf"):
        raise UserError(f"--base-lr {optim.base_lr} cannot train: give a finite value above 0.")
    if optim.warmup_share >= 1:
        raise UserError(f"--warmup-share {optim.warmup_share} leaves no step after the warm-up: give less than 1.")
    if not model.expander or min(model.expander) < 2:
        raise UserError(f"--expander {model.expander} has a layer below 2: give widths such as 8192 8192 8192.")


def kernel_choices(config: TrainConfig) -> dict[str, str]:
    """``--kernel part=impl ...`` as a mapping; parts not named are "auto"."""
    parts = ("loss", "lars", "augment", "resample")
    chosen: dict[str, str] = dict.fromkeys(parts, "auto")
    for entry in config.run.kernel:
        part, _, impl = entry.partition("=")
        if part not in parts or not impl:
            raise UserError(f"--kernel {entry!r} is no part=implementation; the parts are {', '.join(parts)}.")
        chosen[part] = impl
    return chosen
