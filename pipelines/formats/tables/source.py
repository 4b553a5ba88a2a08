"""Images in the rows of parquet or arrow files, as the Hugging Face hub has them."""
# pyright: reportMissingImports=false

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.classes import number_or_name, numbers_of
from fastvicreg.pipelines.decode import DecodeError, image_size
from fastvicreg.pipelines.formats.dataset import Finding
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.formats.tables.columns import Columns, chosen
from fastvicreg.pipelines.formats.tables.files import TableFile, open_file
from fastvicreg.pipelines.passed import Passed
from fastvicreg.pipelines.to_rgb import RANGE, ToRGB

FLUSH = 64 << 20
"""Bytes of images that are written between two words on how far it is."""


class TableSource:
    """The rows of ``files`` in their order; of parquet an image is read after those before it, or once ``spool`` ran.

    A row without image bytes cannot be read, and is skipped by who converts; one without the label that was named is
    left out. Memory: labels and names of all rows, and a few thousand encoded images.
    """

    format: ClassVar[str] = "tables"
    kind: ClassVar[str] = "parquet or arrow files"

    def __init__(self, path: Path, files: Sequence[Path], to_rgb: ToRGB = RANGE, keys: Keys = ANY) -> None:
        """``UserError`` where there are no images, or files whose columns differ; ``DamagedError`` for a cut file."""
        self.path, self.to_rgb = path, to_rgb
        self._files: list[TableFile] = [open_file(file) for file in files]
        first = self._files[0]
        self.columns: Columns = chosen(first.schema, keys, first.path)
        for file in self._files[1:]:
            other = chosen(file.schema, keys, file.path)
            if other._replace(notes=()) != self.columns._replace(notes=()):
                raise UserError(
                    f"{first.path} and {file.path} differ in the columns of image or label: give one kind of them."
                )
        self.notes = self.columns.notes
        self.passed = Passed()
        self._file = np.repeat(np.arange(len(self._files)), [file.rows for file in self._files])
        self._row = np.concatenate([np.arange(file.rows) for file in self._files])
        self._names = [name for file in self._files for name in self._named(file)]
        self._label, self.classes = self._labels()
        if not len(self._file):
            raise UserError(f"no row in {path}: copy it again.")
        self.random = all(file.random for file in self._files)
        self._images = [file.images(self.columns.image) for file in self._files]
        self._spooled: tuple[memoryview, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._file)

    def encoded(self, index: int) -> memoryview:
        """The image's bytes; ``OSError`` where the row has none, or the file cannot be read."""
        if self._spooled is not None:
            data, ends = self._spooled
            found = data[int(ends[index - 1]) if index else 0 : int(ends[index])]
        else:
            found = self.image_bytes(index)
        if not len(found):
            raise OSError(f"the row has no bytes in its column {self.columns.image}")
        return found

    def label(self, index: int) -> int:
        """The class's number, -1 where the row has none."""
        return int(self._label[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the image's header; ``OSError`` where it has none."""
        try:
            return image_size(self.encoded(index))
        except DecodeError as error:
            raise OSError(str(error)) from error

    def name(self, index: int) -> str:
        """The file's name, and the image's own path or the row's number."""
        return f"{self._files[self._file[index]].path.name}/{self._names[index]}"

    def expected_hash(self, index: int) -> None:
        """None: nothing is recorded of the images."""

    def recorded_size(self, index: int) -> None:
        """None: the image alone tells."""

    def findings_from(self, index: int) -> Iterator[Finding]:
        """None: a file's structure was checked when it was opened."""
        return iter(())

    def spool(self, path: Path) -> Iterator[int]:
        """Write all images one after another to ``path``, so that any is read by itself; yields the bytes so far.

        A file that an earlier call has completed is taken as it is. ``OSError`` where the disk refuses.
        """
        where = path.with_name(f"{path.name}.ends")
        if not where.is_file():
            ends, end = np.zeros(len(self), np.uint64), 0
            with path.open("wb") as file:
                for index in range(len(self)):
                    image = self.image_bytes(index)
                    file.write(image)
                    if (end + len(image)) // FLUSH > end // FLUSH:
                        yield end
                    end += len(image)
                    ends[index] = end
                file.flush()
                os.fsync(file.fileno())
            draft = where.with_name(f"{where.name}.draft")
            draft.write_bytes(ends.tobytes())
            os.replace(draft, where)
        ends = np.frombuffer(where.read_bytes(), np.uint64)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if len(ends) != len(self) or size != int(ends[-1]):
                raise UserError(f"{path} is another source's: delete {path.parent}.")
            self._spooled = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""), ends

    def image_bytes(self, index: int) -> memoryview:
        """The bytes of an image, none where the row has none."""
        number = int(self._file[index])
        try:
            value = self._images[number][int(self._row[index])]
        except IndexError as error:
            raise OSError("the file has fewer rows than it announces") from error
        return memoryview(value.as_buffer()).cast("B") if value.is_valid else memoryview(b"")

    def _named(self, file: TableFile) -> list[str]:
        """A name for each row."""
        paths = file.column(f"{self.columns.image}.path").to_pylist() if self.columns.paths else [None] * file.rows
        return [path or str(row) for row, path in enumerate(paths)]

    def _labels(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """(label_N, classes); rows without a label that was named are left out."""
        column, classes = self.columns.label, self.columns.classes
        if not column:
            return np.full(len(self._file), -1), ()
        found = [_class(value) for file in self._files for value in file.column(column).to_pylist()]
        if self.columns.named:
            found = self._without(found)
        label_N, numbered = numbers_of(found)
        if classes and label_N.max() >= len(classes):
            raise DamagedError(
                f"{self.path}: the column {column} has the class {label_N.max()}, and its schema names {len(classes)} "
                "classes."
            )
        return label_N, classes or numbered

    def _without(self, found: list[int | str | None]) -> list[int | str | None]:
        """The labels that are there, and their rows alone."""
        keep = np.array([value is not None for value in found], bool)
        for index in np.flatnonzero(~keep).tolist():
            self.passed.add(f"row whose {self.columns.label} is empty", self.name(index))
        if not keep.any():
            raise UserError(f"no row in {self.path} has a {self.columns.label}: --label names another column.")
        self._file, self._row = self._file[keep], self._row[keep]
        self._names = [name for name, good in zip(self._names, keep.tolist(), strict=True) if good]
        return [value for value in found if value is not None]


def _class(value: int | str | None) -> int | str | None:
    """The class as a table has it; None for none."""
    if isinstance(value, str):
        return number_or_name(value) if value.strip() else None
    return None if value is None or value < 0 else value
