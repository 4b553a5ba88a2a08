"""FFCV's ``.beton`` file, version 2: header, field descriptors, per-sample metadata, pages, allocation table.

All numbers are little-endian. A sample lies in one page and never straddles two; the table, which ends the file,
gives a pointer its size. Written after libffcv/ffcv 1.0.2 (``types.py``, ``writer.py``, ``memory_allocator.py``).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvicreg.errors import DamagedError, UserError

VERSION = 2
MIN_PAGE, MAX_PAGE = 1 << 21, 1 << 31
"""Bytes; powers of two. FFCV's own limits: a huge page, and what its 32-bit field holds."""
MAX_SIDE = 65535
"""Pixels: width and height are 16-bit."""
JPG, RAW = 0, 1

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
DESCRIPTOR = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

RGB_FIELD, INT_FIELD = 2, 1
LABELS = ("label", "labels", "target", "targets", "y", "class", "class_id", "cls", "category")
"""Names of int fields that hold classes, the one to be preferred first."""
NUMBERS = ("idx", "index", "indices", "id", "ids", "uid", "sample", "sample_id")
"""Names of int fields that number the samples."""
BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
FIELDS: dict[int, tuple[str, np.dtype]] = {
    0: ("float", np.dtype("<f8")),
    INT_FIELD: ("int", np.dtype("<i8")),
    RGB_FIELD: ("RGB image", IMAGE),
    3: ("bytes", BYTES),
    4: ("ndarray", np.dtype("<u8")),
    5: ("JSON", BYTES),
    6: ("torch tensor", np.dtype("<u8")),
}
"""Field types by their number; a custom field (255) has a layout that only its author knows."""


@dataclass(frozen=True)
class Layout:
    """Where everything in a ``.beton`` file lies; N samples, T allocations sorted by pointer."""

    path: Path
    mapped: memoryview  # the whole file, read-only
    page_size: int
    fields: tuple[tuple[str, int], ...]  # (name, type number), in the file's order
    metadata_N: np.ndarray  # fields f0, f1, ... in the order of ``fields``
    metadata_end: int
    table: int  # offset of the allocation table
    allocations_T: np.ndarray  # ALLOCATION
    image: str  # name of the RGB field that is read
    inode: int  # of the file that is mapped, which another may replace

    @property
    def image_N(self) -> np.ndarray:
        """IMAGE rows of the field ``image``."""
        return self.metadata_N[f"f{self.fields.index((self.image, RGB_FIELD))}"]

    def labels(self, name: str = "") -> tuple[np.ndarray, str]:
        """(label_N, int64, -1 everywhere where there is none; what a person may not expect of the choice, or "").

        Of several int fields that called as a label is taken, never one that numbers the samples; ``name`` names
        another. ``UserError`` where there is no int field of that name.
        """
        ints = [field for field, kind in self.fields if kind == INT_FIELD]
        if name and name not in ints:
            raise UserError(
                f"--label {name}: {self.path} has no int field of that name, only {', '.join(ints) or 'none'}."
            )
        named = sorted((field for field in ints if field.lower() in LABELS), key=lambda one: LABELS.index(one.lower()))
        chosen = name or next(iter([*named, *(field for field in ints if field.lower() not in NUMBERS)]), "")
        others = [field for field in ints if field != chosen]
        if chosen:
            label_N = self.metadata_N[f"f{self.fields.index((chosen, INT_FIELD))}"]
            note = f"{self.path}: the labels are the field {chosen!r}"
            note += f", not {', '.join(map(repr, others))} (--label names another)" if others else ""
            return label_N, "" if chosen == "label" and not others else note
        why = [f"{field!r} holds {FIELDS[kind][0]} values" for field, kind in self.fields if field.lower() in LABELS]
        why += [f"{field!r} numbers the samples (--label {field} takes it all the same)" for field in others]
        return np.full(len(self.metadata_N), -1), f"{self.path}: no labels: {'; '.join(why)}" if why else ""


def metadata_dtype(kinds: list[int] | tuple[int, ...]) -> np.dtype:
    """One sample's row: the fields in their order, aligned as C would align them."""
    return np.dtype([("", FIELDS[kind][1]) for kind in kinds], align=True)


def field_descriptors(fields: list[tuple[str, int]] | tuple[tuple[str, int], ...]) -> bytes:
    """The descriptors of ``fields`` (name, type number); ``UserError`` for a name that does not fit its 16 bytes."""
    rows = np.zeros(len(fields), DESCRIPTOR)
    for row, (name, kind) in zip(rows, fields, strict=True):
        if not name.isascii() or not 1 <= len(name) <= 16:
            raise UserError(f"the field name {name!r} does not fit a .beton: give 1 to 16 ASCII characters.")
        row["type"], row["name"] = kind, name.encode("ascii")
    return rows.tobytes()


def check_page_size(size: int) -> None:
    """``ValueError`` where no ``.beton`` can have pages of ``size`` bytes."""
    if size & (size - 1) or not MIN_PAGE <= size <= MAX_PAGE:
        raise ValueError(f"page size {size}: not a power of two between {MIN_PAGE} and {MAX_PAGE}")


def read_layout(path: str | Path, image: str = "") -> Layout:
    """Map the file and check all of it but the samples' own bytes. ``image`` names the RGB field to be read; without
    it that called "image" is, or the only one.

    ``DamagedError`` for a file that is cut short or contradicts itself, ``UserError`` for one that is no ``.beton``
    of version 2 or has no images; each in one line that names the file.
    """
    path = Path(path)
    mapped, inode = _map(path)
    header = np.frombuffer(mapped, HEADER, 1)[0]
    if int(header["version"]) != VERSION:
        raise UserError(
            f"{path} is a file, but no .beton of version {VERSION} (its version field says {header['version']}): "
            "give a folder of images, or what `fastvicreg convert` or FFCV wrote."
        )
    page_size, samples, table = int(header["page_size"]), int(header["samples"]), int(header["table"])
    try:
        check_page_size(page_size)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}; convert it again.") from None
    fields, start = _fields(path, mapped, int(header["fields"]))
    image = _image_field(path, fields, image)
    if samples == 0:
        raise UserError(f"{path} holds no samples: convert it again.")
    row = metadata_dtype([kind for _, kind in fields])
    end = start + samples * row.itemsize
    if end > len(mapped):
        raise _cut(path, f"its {samples} samples' metadata would end at byte {end}, the file ends at {len(mapped)}")
    if table == 0:
        raise _cut(path, "it has no allocation table, so its writing was interrupted")
    if not end <= table <= len(mapped):
        raise _cut(path, f"its allocation table is at byte {table}, outside {end} to {len(mapped)}")
    if (len(mapped) - table) % ALLOCATION.itemsize:
        raise _cut(path, f"its allocation table of {len(mapped) - table} bytes ends within a row")
    allocations = np.frombuffer(mapped, ALLOCATION, offset=table)
    # Rows of no bytes share their pointer with what follows them.
    allocations = allocations[allocations["size"] > 0]
    allocations = allocations[np.argsort(allocations["ptr"], kind="stable")]
    metadata = np.frombuffer(mapped, row, samples, start)
    layout = Layout(path, mapped, page_size, fields, metadata, end, table, allocations, image, inode)
    _check_samples(layout)
    return layout


def _map(path: Path) -> tuple[memoryview, int]:
    """(the file's content, its inode)."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            size = status.st_size
            if size < HEADER.itemsize:
                raise UserError(f"{path} is a file, but no .beton: it has {size} bytes, a header {HEADER.itemsize}.")
            return memoryview(mmap.mmap(handle, size, access=mmap.ACCESS_READ)), status.st_ino
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


def _fields(path: Path, mapped: memoryview, count: int) -> tuple[tuple[tuple[str, int], ...], int]:
    """((name, type number), ...) and the offset after the descriptors."""
    end = HEADER.itemsize + count * DESCRIPTOR.itemsize
    if end > len(mapped):
        raise _cut(path, f"its {count} field descriptors would end at byte {end}, the file ends at {len(mapped)}")
    rows = np.frombuffer(mapped, DESCRIPTOR, count, HEADER.itemsize)
    for row in rows:
        if not row["name"].isascii():  # FFCV reads and writes no other
            raise DamagedError(f"{path} is damaged: a field's name is {row['name']!r}; convert it again.")
    fields = tuple((row["name"].decode("ascii", "replace"), int(row["type"])) for row in rows)
    for name, kind in fields:
        if kind not in FIELDS:
            raise UserError(f"{path}: the field {name!r} is of type {kind}, whose layout is not known here.")
    return fields, end


def _image_field(path: Path, fields: tuple[tuple[str, int], ...], asked: str) -> str:
    images = [name for name, kind in fields if kind == RGB_FIELD]
    if not images:
        raise UserError(f"{path} has no RGB image field: its fields are {', '.join(n for n, _ in fields) or 'none'}.")
    if asked and asked not in images:
        raise UserError(f"--image {asked}: {path} has no RGB field of that name, only {', '.join(images)}.")
    if not asked and len(images) > 1 and "image" not in images:
        raise UserError(
            f'{path} has the image fields {", ".join(images)}, none of which is called "image": name one by --image.'
        )
    return asked or ("image" if "image" in images else images[0])


def _check_samples(layout: Layout) -> None:
    """Every allocation lies inside the pages, none overlaps, and every pointer of the metadata has its allocation."""
    path, rows = layout.path, layout.allocations_T
    ptr, size = rows["ptr"], rows["size"]
    table = np.uint64(layout.table)
    outside = (ptr < layout.metadata_end) | (ptr > table) | (size > table - np.minimum(ptr, table))
    _none(path, rows, outside, "lies outside the pages")
    _none(path, rows, rows["sample"] >= len(layout.metadata_N), "is no sample of the file")
    _none(path, rows[1:], ptr[:-1] + size[:-1] > ptr[1:], "overlaps the sample before it")
    page = np.uint64(layout.page_size)
    _none(path, rows, ptr // page != (ptr + size - np.uint64(1)) // page, "straddles two pages")
    for place, (name, kind) in enumerate(layout.fields):
        pointers = _pointers(layout.metadata_N[f"f{place}"], kind)
        if pointers is None:
            continue
        samples, wanted = pointers
        found = rows[np.minimum(np.searchsorted(ptr, wanted), len(rows) - 1)] if len(rows) else None
        lost = np.ones(len(samples), bool) if found is None else (found["ptr"] != wanted) | (found["sample"] != samples)
        if lost.any():
            first = samples[lost.argmax()]
            raise _cut(path, f"the {name} of sample {first} is not in the allocation table ({lost.sum()} such samples)")
    image, stored = layout.image_N, stored_size(layout)
    pixels = image["width"].astype(np.uint64) * image["height"]
    for wrong, what in (
        (image["mode"] > RAW, "is stored in an unknown mode"),
        (pixels == 0, "has no pixels"),
        ((image["mode"] == RAW) & (stored != 3 * pixels), "is raw, but its bytes are not width x height x 3"),
    ):
        if wrong.any():
            raise DamagedError(f"{path} is damaged: sample {wrong.argmax()} {what}; convert it again.")


def stored_size(layout: Layout) -> np.ndarray:
    """Bytes of each sample's image: (N,) uint64."""
    rows = layout.allocations_T
    return rows["size"][np.searchsorted(rows["ptr"], layout.image_N["data_ptr"])]


def _pointers(field_N: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(samples, their pointers) of a field whose bytes lie in the pages; None for one that is all metadata."""
    samples = np.arange(len(field_N), dtype=np.uint64)
    if kind == RGB_FIELD:
        return samples, field_N["data_ptr"]
    if FIELDS[kind][1] is BYTES:
        some = field_N["size"] > 0
        return samples[some], field_N["ptr"][some]
    return (samples, field_N) if FIELDS[kind][1] == np.dtype("<u8") else None


def _none(path: Path, rows: np.ndarray, wrong: Any, what: str) -> None:
    if wrong.any():
        row = rows[wrong.argmax()]
        raise DamagedError(
            f"{path} is damaged: the allocation of sample {row['sample']} ({row['size']} bytes at {row['ptr']}) "
            f"{what}; convert it again."
        )


def _cut(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} is cut short or damaged: {what}; convert it again.")
