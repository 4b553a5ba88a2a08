"""Images in a ``.beton`` file, FFCV's or ours, read through numpy and mmap: no FFCV needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastvicreg.errors import DamagedError
from fastvicreg.pipelines.classes import numbered, unlabelled_in_words
from fastvicreg.pipelines.formats.beton.layout import RAW, Layout, read_layout, stored_size
from fastvicreg.pipelines.formats.dataset import Elsewhere, Finding
from fastvicreg.pipelines.formats.hints import PageHints
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.manifest import (
    ChangedError,
    Manifest,
    digest,
    index_digest,
    manifest_path,
    read_manifest,
)
from fastvicreg.pipelines.mapped import address_of, require_whole, size_now
from fastvicreg.pipelines.unfinished import require_in_place


class BetonSource:
    """Random access to a ``.beton``'s images and labels, of the fields that ``keys`` name or ``Layout`` picks.

    With a manifest beside the file, ``encoded`` checks each sample's hash. The file must not shrink while it is open.
    """

    format: ClassVar[str] = "beton"
    kind: ClassVar[str] = "a .beton file"

    def __init__(self, path: str | Path, keys: Keys = ANY) -> None:
        """``keys``: the fields of image and label.

        ``UserError`` where ``path`` is no sound ``.beton`` with images, or its manifest is another file's.
        """
        self.path = Path(path)
        self.layout: Layout = read_layout(path, keys.image)
        self.manifest: Manifest | None = _manifest(self.layout)
        image = self.layout.image_N
        self._mapped = self.layout.mapped
        self._start = np.ascontiguousarray(image["data_ptr"])
        self._stored = stored_size(self.layout)
        self._hints = PageHints(address_of(self._mapped) + self._start.astype(np.int64), self._stored)
        self._width, self._height = np.ascontiguousarray(image["width"]), np.ascontiguousarray(image["height"])
        self._raw = image["mode"] == RAW
        label_N, note = self.layout.labels(keys.label)
        self._label = np.ascontiguousarray(label_N)
        self.elsewhere: Elsewhere | None = None  # where the samples are, if not in the file
        self.classes: tuple[str, ...] = self.manifest.classes if self.manifest else numbered(self._label)
        unlabelled = unlabelled_in_words(self._label, self.classes)
        notes = (note, f"{self.path}: {unlabelled}" if unlabelled else "")
        self.notes: tuple[str, ...] = tuple(filter(None, notes))

    def __len__(self) -> int:
        return len(self._start)

    def encoded(self, index: int) -> bytes | memoryview:
        """A JPEG's stored bytes, not copied; a raw sample as a binary PPM, which Pillow reads.

        ``ChangedError`` (an ``OSError``) where the stored bytes are not those that the manifest recorded.
        """
        stored = self.stored(index)
        if self.manifest is not None and digest(stored) != int(self.manifest.hash_N[index]):
            raise ChangedError(f"the bytes differ from the manifest's hash {self.expected_hash(index):016x}")
        if not self._raw[index]:
            return stored
        return b"P6\n%d %d\n255\n%b" % (self._width[index], self._height[index], stored)

    def stored(self, index: int) -> memoryview:
        """The sample's bytes in the file as they are, unchecked: a JPEG, or height x width x 3 raw pixels.

        ``OSError`` where the file has been cut since it was opened: to read there would end the process (SIGBUS).
        """
        if self.elsewhere is not None:
            return self.elsewhere.read(index)
        start = int(self._start[index])
        end = start + int(self._stored[index])
        require_whole(self.path, end, self.layout.inode)
        return self._mapped[start:end]

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) each: the file's number, which is 0; start and size of the stored bytes."""
        return np.zeros(len(self), np.int64), self._start.astype(np.int64), self._stored.astype(np.int64)

    def whole(self, index_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B,) whether the file, as it is now, still holds these samples."""
        end_B = self._start[index_B] + self._stored[index_B]
        return end_B <= np.uint64(size_now(self.path, len(self._mapped), self.layout.inode))

    def is_raw(self, index: int) -> bool:
        """Whether the sample is stored as pixels."""
        return bool(self._raw[index])

    def expected_hash(self, index: int) -> int | None:
        """XXH3-64 of the stored bytes as the manifest recorded it; None without a manifest."""
        return None if self.manifest is None else int(self.manifest.hash_N[index])

    def recorded_size(self, index: int) -> tuple[int, int]:
        """(width, height) from the metadata."""
        return self.size(index)

    def findings_from(self, index: int) -> Iterator[Finding]:
        """None: the file's structure was checked when it was opened."""
        return iter(())

    def label(self, index: int) -> int:
        """The class's number, -1 where the file has none."""
        return int(self._label[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the metadata."""
        return int(self._width[index]), int(self._height[index])

    def name(self, index: int) -> str:
        """The path that the manifest recorded, else the sample's number."""
        return f"sample {index}" if self.manifest is None else self.manifest.paths[index]

    def read_ahead(self, index_B: Tensor) -> None:
        """Have these samples read while others are decoded."""
        hint = self._hints if self.elsewhere is None else self.elsewhere.ahead
        hint(index_B.numpy())


def _manifest(layout: Layout) -> Manifest | None:
    where = manifest_path(layout.path)
    if not where.exists():
        return None
    require_in_place(layout.path)
    manifest = read_manifest(where)
    index = index_digest(layout.mapped[: layout.metadata_end], layout.mapped[layout.table :])
    if len(manifest) != len(layout.metadata_N) or manifest.index_hash != index:
        raise DamagedError(
            f"{layout.path} and its manifest do not belong together: one of them was changed or replaced; "
            f"convert again, or delete {where} to read the file unchecked."
        )
    return manifest
