"""What every source of a format tells beside its samples: where it lies, what was recorded of it, and its faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fastvicreg.contracts import Source


class Finding(NamedTuple):
    """One fault: of a sample, or of the dataset as a whole (``sample`` -1)."""

    sample: int
    path: str
    fault: str


@runtime_checkable
class DatasetSource(Source, Protocol):
    """A ``Source`` over files of one format, as ``open_source`` opens it."""

    format: ClassVar[str]
    """The format's name: its folder here, and what ``convert --format`` calls it where we write it."""
    kind: ClassVar[str]
    """What a person calls such data."""
    path: Path

    def expected_hash(self, index: int) -> int | None:
        """XXH3-64 of the stored bytes as a manifest recorded it; None without one."""
        ...

    def recorded_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) as the files recorded it beside the image; None where the image alone tells."""
        ...

    def findings_from(self, index: int) -> Iterator[Finding]:
        """Faults of the file that begins with this sample, beyond those of its samples; none where none begins."""
        ...


@runtime_checkable
class StoredSource(DatasetSource, Protocol):
    """One that holds encoded images in files of its own."""

    def is_raw(self, index: int) -> bool:
        """Whether the sample is stored as pixels."""
        ...


class Elsewhere(Protocol):
    """Where samples are read that do not lie in the files which tell of them."""

    def read(self, index: int) -> memoryview:
        """The sample's stored bytes."""
        ...

    def ahead(self, index_B: np.ndarray) -> None:
        """These samples are read soon."""
        ...
