"""The seams between data loading, kernels and the training loop: what crosses them, and in which shape.

One file although it is long: a newcomer reads every seam in one sitting.

Shape suffixes used throughout the project: N samples, B batch (this rank's share), V views, H height, W width,
C channels (RGB), P photometric parameters, D embedding width, F feature width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastvicreg.errors import UserError as UserError


class Cursor(NamedTuple):
    """The whole state of a data pipeline: the next batch to deliver."""

    epoch: int
    batch: int


class Photometric(IntEnum):
    """Columns of ``params_BVP``, float32, and the value that leaves a view as it is."""

    BRIGHTNESS = 0  # factor, 1
    CONTRAST = 1  # factor, 1
    SATURATION = 2  # factor, 1
    HUE = 3  # shift in turns, -0.5 to 0.5; 0
    ORDER = 4  # index into JITTER_ORDERS; -1: no colour jitter at all
    GRAYSCALE = 5  # 0 or 1
    BLUR_SIGMA = 6  # pixels; 0: no blur
    SOLARIZE = 7  # threshold in 0..255; 256: no solarization


JITTER_ORDERS: tuple[tuple[int, ...], ...] = tuple(itertools.permutations(range(4)))
"""Orders of (0 brightness, 1 contrast, 2 saturation, 3 hue): torchvision's numbering in ColorJitter."""

Support = Literal["crop", "image"]
"""Which source pixels a resampled crop may read: only the box's own (crop, then resize) or all (resize, then crop)."""


class Fault(IntEnum):
    """Why a sample was replaced; 0 where it was delivered as asked for."""

    NONE = 0
    UNREADABLE = 1  # the bytes could not be read
    UNDECODABLE = 2  # the bytes are no image, or a damaged one
    TOO_LARGE = 3  # more pixels than Pillow's decompression-bomb limit
    CHANGED = 4  # the bytes differ from the manifest's hash


class FaultReport(NamedTuple):
    """The samples that an epoch has replaced so far, of the batches delivered."""

    counts: dict[str, int]
    """By cause, a ``Fault``'s name in lower case."""
    named: tuple[str, ...]
    """The first of them: name and reason."""

    @property
    def total(self) -> int:
        """Samples replaced."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Crops:
    """One batch as an engine delivers it: pixels on the host or the device, uint8.

    A group holds consecutive views of one size; all groups together are the plan's views, in its order. ``slot_B`` is
    the sample the plan asked for (photometric parameters follow it); ``index_B`` the sample delivered, which differs
    only where ``fault_B`` says why.
    """

    groups: tuple[Tensor, ...]  # uint8, (B, views of the group, H, W, C) each
    slot_B: Tensor  # int64
    index_B: Tensor  # int64
    label_B: Tensor  # int64, -1: none
    fault_B: Tensor  # uint8, a Fault
    cursor: Cursor  # of this batch

    @property
    def crops_BVHWC(self) -> Tensor:
        """All views, where they are of one size."""
        (crops_BVHWC,) = self.groups
        return crops_BVHWC

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One (B, H, W, C) a view, in the plan's order."""
        return tuple(view_BHWC for group_BVHWC in self.groups for view_BHWC in group_BVHWC.unbind(1))


@dataclass(frozen=True)
class Batch:
    """One batch as the training step takes it: augmented, normalised views on the device.

    Images are (B, C, H, W) in channels_last memory order; H and W may differ from view to view.
    """

    views: tuple[Tensor, ...]
    index_B: Tensor
    label_B: Tensor
    cursor: Cursor


class Terms(NamedTuple):
    """A loss: ``total`` carries the gradient, ``parts`` are detached, unweighted scalars named by the method."""

    total: Tensor
    parts: dict[str, Tensor]


@runtime_checkable
class Source(Protocol):
    """Random access to encoded images, by index."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...
    def encoded(self, index: int) -> bytes | memoryview:
        """The file's bytes; ``OSError`` where they cannot be read."""
        ...

    def label(self, index: int) -> int:
        """Class number, -1 where there is none."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels as stored, EXIF orientation not applied."""
        ...

    def name(self, index: int) -> str:
        """What a person would call the sample: its path relative to the source."""
        ...


@runtime_checkable
class ReadAhead(Protocol):
    """A source that can set the disk to work before its samples are asked for."""

    def read_ahead(self, index_B: Tensor) -> None:
        """A hint that these samples are read soon: returns at once, promises nothing."""
        ...


@runtime_checkable
class Plan(Protocol):
    """Which samples, which crops, which photometric parameters: pure functions of (seed, epoch, sample, view)."""

    views: int
    drop_last: bool
    support: Support

    def order(self, epoch: int) -> Tensor:
        """index_N, int64: the epoch's order over the whole source."""
        ...

    def sizes(self, epoch: int) -> tuple[int, ...]:
        """Side of each view's square crops in pixels."""
        ...

    def boxes(self, epoch: int, index_B: Tensor, wh_B2: Tensor) -> tuple[Tensor, Tensor]:
        """(box_BV4 float64 as x, y, w, h in source pixels, flip_BV bool); integral boxes where support is "crop"."""
        ...

    def photometric(self, epoch: int, index_B: Tensor) -> Tensor:
        """params_BVP, float32, columns as in ``Photometric``."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Turns the plan's indices into uint8 crops: decodes an image once, crops it once a view."""

    def batches_per_epoch(self, epoch: int) -> int: ...
    def batches(self, start: Cursor) -> Iterator[Crops]:
        """From ``start`` to the end of its epoch."""
        ...

    def faults(self) -> FaultReport:
        """The samples replaced since the epoch's start."""
        ...

    def close(self) -> None: ...


class Waited(Protocol):
    """What a step lost to waiting for its batch."""

    def seconds(self) -> float:
        """On CUDA only known once the device has done that step, which this does not wait for."""
        ...


@dataclass(frozen=True)
class Fed:
    """A batch ready for the step, and what waiting for it cost."""

    batch: Batch
    data_wait: Waited


class Feed(Protocol):
    """All that the trainer knows of data."""

    def epoch(self, start: Cursor) -> Generator[Fed, None, None]:
        """From ``start`` to the end of its epoch."""
        ...


class ParamGroup(NamedTuple):
    """Parameters, whether weight decay and LARS's trust ratio apply to them, and how their learning rate differs."""

    params: list[nn.Parameter]
    adapted: bool
    lr_scale: float = 1.0
    """Factor of the run's learning rate."""
    constant_lr: bool = False
    """Whether the learning rate stays at its peak, without warm-up and cosine."""


def by_dimension(module: nn.Module) -> list[ParamGroup]:
    """The usual rule: parameters of one dimension (biases, norms) are neither decayed nor adapted."""
    params = [param for param in module.parameters() if param.requires_grad]
    wide, narrow = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    return [ParamGroup(wide, True), ParamGroup(narrow, False)]


class Encoder(Protocol):
    """An ``nn.Module`` from images (B, 3, H, W) to features (B, F); ``features`` is F."""

    features: int

    def __call__(self, x_BCHW: Tensor) -> Tensor: ...
    def param_groups(self) -> list[ParamGroup]:
        """All trained parameters: a network's tokens and norms are its own to name."""
        ...


Schedule = Callable[[int], float]
"""The value of a schedule at a step, counted from 0."""


class Horizon(NamedTuple):
    """The extent of a run, which schedules are stretched over."""

    steps: int
    steps_per_epoch: int
    batch_size: int  # total


@dataclass(frozen=True)
class Column:
    """One of a method's parts as display, log and plots show it."""

    name: str
    """Key in ``Terms.parts``."""
    short: str
    """Heading in a line of text."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Reference values: what they are called to the parts that hold them."""
    scale: Literal["linear", "log"] = "linear"


class Spread(NamedTuple):
    """How a method's embeddings spread over a batch: collapse is a part that falls far below its healthy value."""

    part: str
    """Key in ``Terms.parts``: a standard deviation."""
    healthy: float
    cause: str
    """What a collapse most likely comes from, and the flag that helps; "": the learning rate."""


class Method(Protocol):
    """A self-supervised method: an ``nn.Module`` that owns its encoders, heads, targets and queues.

    The step calls ``embed``, ``target`` and ``loss`` in this order, under autocast, and ``after_update`` once the
    optimizer had its turn. What ``embed`` and ``target`` return is the method's own: any nesting of tensors.
    """

    columns: tuple[Column, ...]

    @property
    def spread(self) -> Spread: ...

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """For evaluation and export, the principal one first, by attribute name, which begins its tensors' names."""
        ...

    def schedules(self, horizon: Horizon) -> Mapping[str, Schedule]:
        """What the method varies over the run, beside the learning rate "lr"; logged and shown by these names."""
        ...

    def embed(self, views: tuple[Tensor, ...]) -> Any:
        """Embeddings with gradient; ``UserError`` for a number of views that it does not take."""
        ...

    def target(self, views: tuple[Tensor, ...]) -> Any:
        """Embeddings without gradient, of a target network; None where there is none."""
        ...

    def loss(self, embeddings: Any, targets: Any) -> Terms: ...
    def after_update(self, scalars: Mapping[str, float | Tensor], finite: bool | Tensor) -> None:
        """Move targets and queues; nothing moves where ``finite`` is not set.

        Both the schedules' values and ``finite`` may be scalars on the device, which nothing may wait for.
        """
        ...

    def param_groups(self) -> list[ParamGroup]: ...


@dataclass(frozen=True)
class BuildContext:
    """What a method is built from beside its own settings."""

    build_encoder: Callable[[], Encoder]
    """A new encoder at every call, as the run's settings describe it."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    """Implementations by part, as --kernel names them; parts that are not named are "auto"."""


class Step(Protocol):
    """One update: forward, backward, finite gate, optimizer. Never synchronises with the device."""

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """``scalars`` holds this step's learning rate as "lr", and the method's schedules.

        What is returned holds until the next call.
        """
        ...


def photometric_identity(*shape: int) -> Tensor:
    """``params`` of the given leading shape that leave every view as it is: (*shape, P), float32."""
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, 0.0, 0.0, 256.0])
    return identity.expand(*shape, len(Photometric)).clone()
