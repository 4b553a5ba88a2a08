"""The seams of data: from a sample's bytes to the batch that a step takes."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


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
    only where ``fault_B`` says why. ``others`` are views that are no pixels, ready for an encoder: of a pair's other
    modalities, after those of its image. ``places_BV5``, where it was asked for, tells where each view was cut.
    """

    groups: tuple[Tensor, ...]  # uint8, (B, views of the group, H, W, C) each
    slot_B: Tensor  # int64
    index_B: Tensor  # int64
    label_B: Tensor  # int64, -1: none
    fault_B: Tensor  # uint8, a Fault
    cursor: Cursor  # of this batch
    others: tuple[Tensor, ...] = ()  # (B, ...) each, on the host
    places_BV5: Tensor | None = None  # float32, on the host: x, y, width, height in source pixels, 1 where flipped

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

    Images are (B, C, H, W) in channels_last memory order; H and W may differ from view to view. Of a pair of modalities
    a view may be a waveform (B, 1, T), a spectrogram as an image, or a caption's words, int64 (B, L).
    """

    views: tuple[Tensor, ...]
    index_B: Tensor
    label_B: Tensor
    cursor: Cursor
    places_BV5: Tensor | None = None
    """Where each view was cut, as ``Crops.places_BV5``, on the device: for a method that takes places."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a method's ``embed`` and ``target`` are given: the views, after them the places where there are any."""
        return self.views if self.places_BV5 is None else (*self.views, self.places_BV5)


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


def photometric_identity(*shape: int) -> Tensor:
    """``params`` of the given leading shape that leave every view as it is: (*shape, P), float32."""
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0, -1.0, 0.0, 0.0, 256.0])
    return identity.expand(*shape, len(Photometric)).clone()
