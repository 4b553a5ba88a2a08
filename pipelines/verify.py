"""Whether a dataset is whole: its structure, each sample's hash and markers, and on request every pixel decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.errors import DamagedError
from fastvicreg.pipelines import shards
from fastvicreg.pipelines.decode import JPEG, DecodeError, decode_rgb, read_image_header
from fastvicreg.pipelines.jpeg import JpegError, read_header
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.shard_labels import class_name
from fastvicreg.pipelines.sources import one_dataset, open_source
from fastvicreg.pipelines.sources.beton import BetonSource
from fastvicreg.pipelines.sources.shards import ShardSource


class Finding(NamedTuple):
    """One fault: of a sample, or of the dataset as a whole (``sample`` -1)."""

    sample: int
    path: str
    fault: str


class Checked(NamedTuple):
    """One sample: bytes read, the fault or "", and what it is where it has more than 8 bits a channel."""

    size: int
    fault: str = ""
    deep: str = ""


@dataclass(frozen=True)
class Report:
    """What was checked, and every fault found."""

    path: Path
    samples: int  # checked
    classes: int  # 0: no labels
    bytes: int  # read
    hashed: bool  # against a manifest
    decoded: bool
    findings: tuple[Finding, ...]
    seconds: float
    notes: tuple[str, ...] = ()  # which field has the labels; what lies beside the images
    deep: tuple[tuple[str, int, str], ...] = ()  # images of more than 8 bits: (what they are, how many, the first)


def verify_dataset(
    path: str | Path,
    *,
    decode: bool = False,
    workers: int = 0,
    on_progress: Callable[[int, int, int, int], None] = lambda done, total, size, faults: None,
) -> Report:
    """Check the dataset at ``path``; ``on_progress(samples done, of, bytes, faults)`` after each sample.

    Always: the structure of a ``.beton``, a tar shard's members against its index and class numbers; hashes where there
    is a manifest; of a JPEG the markers up to the scan and its end, of other images the header; sizes against the
    metadata. With ``decode`` every image in full.
    ``UserError`` where ``path`` is no dataset.
    """
    started = time.monotonic()
    path = one_dataset(path, "verify")
    try:
        source = open_source(path)
    except DamagedError as error:
        whole = (Finding(-1, str(path), str(error)),)
        return Report(Path(path), 0, 0, 0, False, False, whole, time.monotonic() - started)
    total, size = len(source), 0
    findings: list[Finding] = []
    check = partial(check_sample, source, decode=decode)
    begins = _first_samples(source) if isinstance(source, ShardSource) else {}
    deep: dict[str, tuple[int, int]] = {}
    for index, (read, fault, kind) in enumerate(in_order(check, range(total), workers=workers)):
        size += read
        if kind:
            count, first = deep.get(kind, (0, index))
            deep[kind] = count + 1, first
        if isinstance(source, ShardSource) and index in begins:
            findings += check_shard(source, begins[index], index)
        if fault:
            findings.append(Finding(index, source.name(index), fault))
        on_progress(index + 1, total, size, len(findings))
    hashed = isinstance(source, BetonSource | ShardSource) and source.manifest is not None
    findings.sort(key=lambda finding: finding.sample)
    return Report(
        Path(path),
        total,
        len(source.classes),
        size,
        hashed,
        decode,
        tuple(findings),
        time.monotonic() - started,
        (*notes_of(source), *left_out(source)),
        tuple((kind, count, source.name(first)) for kind, (count, first) in sorted(deep.items())),
    )


def check_sample(source: Source, index: int, *, decode: bool) -> Checked:
    """Read one sample, and decode it on request."""
    try:
        encoded = source.encoded(index)
    except OSError as error:
        return Checked(0, error.strerror or str(error))
    deep = ""
    try:
        if bytes(encoded[:2]) == JPEG:
            size = _decoded_size(encoded) if decode else _jpeg_size(encoded)
        else:
            width, height, deep = read_image_header(encoded)
            size = _decoded_size(encoded) if decode else (width, height)
    except DecodeError as error:
        return Checked(len(encoded), str(error), deep)
    recorded = isinstance(source, BetonSource) or (isinstance(source, ShardSource) and source.manifest is not None)
    if recorded and size != source.size(index):
        width, height = source.size(index)
        fault = f"the image is {size[0]} x {size[1]} pixels, the metadata says {width} x {height}"
        return Checked(len(encoded), fault, deep)
    return Checked(len(encoded), "", deep)


def check_shard(source: ShardSource, shard: int, first: int) -> Iterator[Finding]:
    """The faults of the shard numbered ``shard``, whose first sample is ``first``: index against tar file, classes."""
    tar, index = source.layout.files[shard]
    if index is None:
        return  # walked when it was opened: nothing that could differ
    mapped = source.layout.mapped[shard]
    listed: list[shards.Component] = []
    tables = shards.read_index(index, index.read_bytes())
    places = [table.place_S for table in tables if table.column(shards.IMAGE) is not None]
    sample_of = {
        place: first + at for at, place in enumerate(np.sort(np.concatenate([np.empty(0, np.int64), *places])).tolist())
    }
    for table in tables:
        for place, components in table.samples():
            listed += components
            sample = sample_of.get(place, -1)  # one without an image is none
            label = source.label(sample) if sample >= 0 else None
            for component in components:
                if fault := _member_fault(mapped, component, label, source.classes):
                    yield Finding(sample, source.name(sample) if sample >= 0 else str(tar), fault)
    others = list(shards.unlisted(mapped, listed))
    for at in (at for at, name in others if not name):
        yield Finding(-1, str(tar), f"{tar}: the {shards.BLOCK} bytes at {at} are no tar header")
    if names := [name for _, name in others if name]:
        yield Finding(-1, str(tar), f"{tar}: {len(names):,} members (such as {names[0]}) are not in {index.name}")


def _member_fault(tar: memoryview, component: shards.Component, label: int | None, classes: tuple[str, ...]) -> str:
    """What is wrong with a member that an index lists, of a sample of class ``label``; or ""."""
    extension, start, size, name = component
    if not shards.is_member(shards.member_at(tar, start), name, size):
        return f"no regular member {name} of {size} bytes begins at byte {start}, where its index says"
    if extension not in shards.LABEL or label is None:
        return ""
    try:
        found: int | str = shards.read_label(tar[start : start + size], extension)
    except ValueError as error:
        name = class_name(tar[start : start + size])
        found = label if label >= 0 and name == classes[label] else str(error)
    return "" if found == label else f"its .{extension} is {found}, recorded is {label}"


def _first_samples(source: ShardSource) -> dict[int, int]:
    """Shard by its first sample."""
    shard, sample = np.unique(source.layout.shard_N, return_index=True)
    return dict(zip(sample.tolist(), shard.tolist(), strict=True))


def _jpeg_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """(width, height) without decoding; a JPEG whose markers are not plainly good is decoded after all."""
    try:
        header = read_header(encoded)
    except JpegError:
        return _decoded_size(encoded)
    return (header.width, header.height) if header.complete and header.height else _decoded_size(encoded)


def _decoded_size(encoded: bytes | memoryview) -> tuple[int, int]:
    height, width = decode_rgb(encoded).shape[:2]
    return width, height
