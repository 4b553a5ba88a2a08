"""Whether a dataset is whole: its structure, each sample's hash and markers, and on request every pixel decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastvicreg.errors import DamagedError
from fastvicreg.pipelines.ahead import reading_in_order
from fastvicreg.pipelines.decode import JPEG, DecodeError, decode_rgb, read_image_header
from fastvicreg.pipelines.formats.dataset import DatasetSource, Finding
from fastvicreg.pipelines.jpeg import JpegError, read_header
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.sources import one_dataset, open_source
from fastvicreg.stalls import LIMIT


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
    image: str = "",
    label: str = "",
    decode: bool = False,
    workers: int = 0,
    stall: float = LIMIT,
    on_progress: Callable[[int, int, int, int], None] = lambda done, total, size, faults: None,
) -> Report:
    """Check the dataset at ``path``; ``on_progress(samples done, of, bytes, faults)`` after each sample.

    Always: the structure of a ``.beton``, a tar shard's members against its index and class numbers; hashes where there
    is a manifest; of a JPEG the markers up to the scan and its end, of other images the header; sizes against the
    metadata. With ``decode`` every image in full. ``image`` and ``label`` as for ``open_source``.
    ``UserError`` where ``path`` is no dataset, ``StalledError`` where samples give nothing for ``stall`` seconds.
    """
    started = time.monotonic()
    path = one_dataset(path, "verify")
    try:
        source = open_source(path, image=image, label=label, sequential=True)
    except DamagedError as error:
        whole = (Finding(-1, str(path), str(error)),)
        return Report(Path(path), 0, 0, 0, False, False, whole, time.monotonic() - started)
    total, size = len(source), 0
    findings: list[Finding] = []
    check = partial(check_sample, source, decode=decode)
    deep: dict[str, tuple[int, int]] = {}
    ahead = reading_in_order(source)
    checked = in_order(check, range(total), workers=workers, name="fastvicreg-verify", stall=stall)
    for index, (read, fault, kind) in enumerate(checked):
        ahead(index)
        size += read
        if kind:
            count, first = deep.get(kind, (0, index))
            deep[kind] = count + 1, first
        findings += source.findings_from(index)
        if fault:
            findings.append(Finding(index, source.name(index), fault))
        on_progress(index + 1, total, size, len(findings))
    hashed = source.expected_hash(0) is not None
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


def check_sample(source: DatasetSource, index: int, *, decode: bool) -> Checked:
    """Read one sample, and decode it on request."""
    try:
        encoded = source.encoded(index)
    except OSError as error:
        return Checked(0, error.strerror or str(error))
    deep = ""
    try:
        if bytes(encoded[:2]) != JPEG:
            deep = read_image_header(encoded)[2]
        size = image_size(encoded, decode=decode)
    except DecodeError as error:
        return Checked(len(encoded), str(error), deep)
    recorded = source.recorded_size(index)
    if recorded is not None and size != recorded:
        fault = f"the image is {size[0]} x {size[1]} pixels, the metadata says {recorded[0]} x {recorded[1]}"
        return Checked(len(encoded), fault, deep)
    return Checked(len(encoded), "", deep)


def image_size(encoded: bytes | memoryview, *, decode: bool) -> tuple[int, int]:
    """(width, height) by markers or header, or, with ``decode``, of all pixels; ``DecodeError`` for what is damaged."""
    if decode:
        return _decoded_size(encoded)
    return _jpeg_size(encoded) if bytes(encoded[:2]) == JPEG else read_image_header(encoded)[:2]


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
