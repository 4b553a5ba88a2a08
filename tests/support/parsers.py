"""Every parser of files that come from elsewhere, as a function of bytes: what it must give, and what it may raise.

``PARSERS[name](data, folder)`` is True where the bytes are read and what was read of them lies within them, False where
they are refused by the error that the parser names. Anything else is a fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastvicreg import config_file
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features_file import read_features
from fastvicreg.pipelines.convert.journal import ENTRY, Journal
from fastvicreg.pipelines.decode import DecodeError, decode_rgb, read_image_header
from fastvicreg.pipelines.formats.beton.layout import RAW
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.jpeg import JpegError, read_header
from fastvicreg.pipelines.manifest import read_manifest
from fastvicreg.profiles.trace.events import read_trace
from fastvicreg.profiles.trace.summary import summarize
from fastvicreg.train.checkpoint import CheckpointError, restore
from fastvicreg.train.updater import Updater

LARGEST = 1 << 20
"""Pixels of an image above which it is not decoded here: damaged headers name such sizes."""


class OutOfBoundsError(Exception):
    """A parser gave something that is not in its file."""


def require(good: bool, what: str) -> None:
    if not good:
        raise OutOfBoundsError(what)


def refused(error: Exception) -> bool:
    """False, once the message has been held to one line."""
    require("\n" not in str(error), f"more than a line: {error}")
    return False


def beton(data: bytes, folder: Path) -> bool:
    """A .beton without a manifest: header, descriptors, metadata, allocation table, and every sample's bytes."""
    path = folder / "x.beton"
    path.write_bytes(data)
    try:
        source = BetonSource(path)
    except UserError as error:
        return refused(error)
    layout = source.layout
    image = layout.image_N
    for index in range(len(source)):
        start, given = int(image["data_ptr"][index]), source.stored(index)
        require(layout.metadata_end <= start <= start + len(given) <= layout.table, f"sample {index} is at {start}")
        width, height = source.size(index)
        if image["mode"][index] == RAW:
            require(len(given) == 3 * width * height, f"sample {index}: {len(given)} bytes")
        source.encoded(index)
        source.label(index)
    return True


def shards(path: Path) -> bool:
    try:
        source = ShardSource(path)
    except UserError as error:
        return refused(error)
    layout = source.layout
    for index in range(len(source)):
        start, size = layout.image_N2[index].tolist()
        whole = len(layout.mapped[int(layout.shard_N[index])])
        require(0 <= start < start + size <= whole, f"sample {index}: {size} bytes at {start} of {whole}")
        require(len(source.stored(index)) == size, f"sample {index} is not {size} bytes")
        source.label(index)
        source.name(index)
        for finding in source.findings_from(index):
            require(-1 <= finding.sample < len(source), f"{finding}")
        try:
            source.encoded(index)
        except OSError:
            continue
    return True


def tar(data: bytes, folder: Path) -> bool:
    """A tar file without an index, which is walked."""
    (folder / "x.tar").write_bytes(data)
    return shards(folder / "x.tar")


def summed(data: bytes, folder: Path) -> bool:
    """The same with the checksum of every header made right, which else refuses nearly all that is damaged."""
    content = bytearray(data)
    for at in range(0, len(content) - 511, 512):
        block = content[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return tar(bytes(content), folder)


def idx(data: bytes, folder: Path) -> bool:
    """An index, and after an empty line the tar file that it is of."""
    text, _, content = data.partition(b"\n\n")
    (folder / "i").mkdir(exist_ok=True)
    (folder / "i" / "x.tar").write_bytes(content)
    (folder / "i" / "x.idx").write_bytes(text + b"\n")
    return shards(folder / "i")


def jpeg(data: bytes, folder: Path) -> bool:
    """A JPEG's markers."""
    try:
        header = read_header(data)
    except JpegError as error:
        return refused(error)
    require(0 < header.width < 1 << 16 and 0 <= header.height < 1 << 16, f"{header}")
    require(0 < header.components < 256 and 0 <= header.precision < 256, f"{header}")
    require(0 < header.scan < len(data) and data[header.scan] == 0xFF, f"{header}")
    require(header.end == 0 or header.scan < header.end <= len(data), f"{header}")
    require(not header.complete or data[header.end - 2 : header.end] == b"\xff\xd9", f"{header}")
    return True


def image(data: bytes, folder: Path) -> bool:
    """An encoded image of any kind: its header, and its pixels where they are few."""
    try:
        width, height, _ = read_image_header(data)
        if width * height > LARGEST:
            return False
        pixels_HWC = decode_rgb(data)
    except DecodeError as error:
        return refused(error)
    # Pillow's header of an icon may name another of its sizes than that which it decodes.
    require(pixels_HWC.ndim == 3 and pixels_HWC.shape[2] == 3 and pixels_HWC.dtype == np.uint8, f"{pixels_HWC.shape}")
    return True


def manifest(data: bytes, folder: Path) -> bool:
    """The manifest of a dataset."""
    path = folder / "x.manifest"
    path.write_bytes(data)
    try:
        found = read_manifest(path)
    except UserError as error:
        return refused(error)
    require(len(found) == len(found.paths) == len(found.label_N), "its arrays differ in length")
    require(all(isinstance(name, str) for name in (*found.paths, *found.classes)), "a name is no text")
    require(sum(map(len, found.paths)) <= len(data), "its paths are longer than the file")
    return True


def trace(data: bytes, folder: Path) -> bool:
    """A profiler's trace, summed up."""
    path = folder / "trace.json"
    path.write_bytes(data)
    try:
        json.dumps(summarize(read_trace(path)).row())
    except UserError as error:
        return refused(error)
    return True


def config(data: bytes, folder: Path) -> bool:
    """A run's settings."""
    path = folder / "config.json"
    path.write_bytes(data)
    try:
        config_file.to_json(config_file.load(path))
    except UserError as error:
        return refused(error)
    return True


def features(data: bytes, folder: Path, ending: str) -> bool:
    path = folder / f"x.{ending}"
    path.write_bytes(data)
    try:
        splits = read_features(path)
    except UserError as error:
        return refused(error)
    for split in splits:
        require(all(0 <= split.label(index) < len(split.classes) for index in range(len(split))), "a label of no class")
        require(bool(split.features.features_NF.isfinite().all()), "features that are not finite")
    return True


def checkpoint(files: dict[str, bytes], folder: Path) -> bool:
    place = folder / "step-00000001"
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    module, updater = small()
    try:
        progress = restore(place, module, updater)
    except (UserError, CheckpointError) as error:
        return refused(error)
    require(progress.step >= 0 and progress.samples >= 0, f"{progress}")
    require(min(progress.cursor) >= 0, f"{progress}")
    return True


def small() -> tuple[nn.Module, Updater]:
    """What a checkpoint is loaded into; it has been trained for a step."""
    module = nn.Linear(2, 1)
    updater = Updater(module, torch.optim.AdamW(module.parameters()))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    updater.optimizer.step()
    return module, updater


def journal(data: bytes, folder: Path) -> bool:
    """What an interrupted conversion has noted; it is never refused, but cut where it is not whole."""
    path = folder / "journal"
    path.write_bytes(data)
    found = Journal(path)
    found.close()
    end = path.stat().st_size
    require(end <= len(data), "it became longer")
    require(len(found.entries) * ENTRY.itemsize <= end, "more entries than bytes")
    return end > 0


PARSERS: dict[str, Callable[[bytes, Path], bool]] = {
    "beton": beton,
    "tar": tar,
    "tar-summed": summed,
    "idx": idx,
    "jpeg": jpeg,
    "image": image,
    "manifest": manifest,
    "trace": trace,
    "config": config,
    "npz": lambda data, folder: features(data, folder, "npz"),
    "safetensors": lambda data, folder: features(data, folder, "safetensors"),
    "journal": journal,
    "state": lambda data, folder: checkpoint({"state.json": data}, folder),
    "optimizer": lambda data, folder: checkpoint({"optimizer.safetensors": data}, folder),
}
