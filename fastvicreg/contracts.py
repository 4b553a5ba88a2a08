"""The seams between data loading, kernels and the training loop: what crosses them, and in which shape.

Shape suffixes used throughout the project: N samples, B batch (this rank's share), V views, H height, W width,
C channels (RGB), P photometric parameters, D embedding width, F feature width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Crops:
    """One batch as an engine delivers it: pixels on the host or the device, uint8.

    ``slot_B`` is the sample the plan asked for (photometric parameters follow it); ``index_B`` the sample delivered,
    which differs only where ``fault_B`` says why.
    """

    crops_BVHWC: Tensor  # uint8
    slot_B: Tensor  # int64
    index_B: Tensor  # int64
    label_B: Tensor  # int64, -1: none
    fault_B: Tensor  # uint8, a Fault
    cursor: Cursor  # of this batch


@dataclass(frozen=True)
class Views:
    """Augmented, normalised views on the device; each (B, C, H, W) in channels_last memory order."""

    views: tuple[Tensor, ...]
    index_B: Tensor
    label_B: Tensor
    cursor: Cursor


class Terms(NamedTuple):
    """A loss: ``total`` carries the gradient, ``parts`` are detached, unweighted scalars named by the objective."""

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

    def size(self, epoch: int) -> int:
        """Side of the square crops in pixels."""
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

    def faults(self) -> Mapping[str, int]:
        """Replaced samples since the epoch's start, by cause."""
        ...

    def close(self) -> None: ...


class Objective(Protocol):
    """Owns its expander, predictor and target network; an ``nn.Module``."""

    def __call__(self, views: tuple[Tensor, ...], encoder: nn.Module) -> Terms: ...
    def after_step(self, schedule: Mapping[str, float]) -> None:
        """Called once the optimizer has stepped: target networks move here."""
        ...


class Step(Protocol):
    """One update: forward, backward, finite gate, optimizer. Never synchronises with the device."""

    def __call__(self, views: tuple[Tensor, ...], schedule: Mapping[str, float]) -> Terms: ...


def photometric_identity(*shape: int) -> Tensor:
    """``params`` of the given leading shape that leave every view as it is: (*shape, P), float32."""
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, 0.0, 0.0, 256.0])
    return identity.expand(*shape, len(Photometric)).clone()
