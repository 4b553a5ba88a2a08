"""The manifest of a converted dataset: each sample's hash and origin, and what was left out.

One safetensors file, ``DATA.manifest`` beside a file and ``dataset.manifest`` in a folder: arrays of N samples, the
paths as one UTF-8 blob with offsets, and a JSON text with classes, skip list and settings. The hash is XXH3-64 of the
stored bytes. Its metadata hold the version and the XXH3-128 of all arrays, so that a label that changed is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128

from fastvicreg.errors import DamagedError, UserError

SUFFIX = ".manifest"
VERSION = "2"
UNSIGNED = "1"
"""The version before there was a digest of the arrays; still read."""
KEY = "fastvicreg_manifest"
ARRAYS = {"hash": np.uint64, "size": np.uint64, "label": np.int64, "width": np.uint32, "height": np.uint32}


TABLE = {**ARRAYS, "path_ends": np.uint64}
"""What has a row a sample."""


class ChangedError(OSError):
    """A sample whose bytes are not those that its manifest recorded."""


@dataclass(frozen=True)
class Skipped:
    """A sample of the source that was not converted, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """N samples in the order of the dataset."""

    hash_N: np.ndarray  # uint64, XXH3-64 of the stored bytes
    size_N: np.ndarray  # uint64, stored bytes
    label_N: np.ndarray  # int64, -1: none
    width_N: np.ndarray  # uint32, pixels as stored
    height_N: np.ndarray  # uint32
    paths: Sequence[str]  # relative to the source
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]  # of the conversion
    index_hash: int  # XXH3-64 of the dataset's own index (header, metadata, tables)

    def __len__(self) -> int:
        return len(self.hash_N)


class Paths(Sequence[str]):
    """Millions of paths in one blob; each becomes a ``str`` when it is asked for."""

    def __init__(self, blob: bytes, ends_N: np.ndarray) -> None:
        self._blob, self._ends = blob, ends_N

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._blob[start : int(self._ends[index])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))


def manifest_path(data: str | Path) -> Path:
    """Where the manifest of the dataset ``data`` lies: beside a file, in a folder."""
    return Path(data) / f"dataset{SUFFIX}" if Path(data).is_dir() else Path(f"{data}{SUFFIX}")


def digest(data: bytes | memoryview) -> int:
    """XXH3-64, as a manifest records it."""
    return xxh3_64_intdigest(data)


def index_digest(*parts: bytes | memoryview) -> int:
    """XXH3-64 of the parts one after another."""
    whole = xxh3_64()
    for part in parts:
        whole.update(part)
    return whole.intdigest()


def to_bytes(manifest: Manifest) -> bytes:
    """The file's content: the same bytes for the same manifest."""
    blobs = [path.encode("utf-8", "surrogateescape") for path in manifest.paths]
    ends = np.cumsum([len(blob) for blob in blobs], dtype=np.uint64)
    text = json.dumps(
        {
            "classes": manifest.classes,
            "skipped": [[entry.path, entry.reason] for entry in manifest.skipped],
            "settings": dict(manifest.settings),
            "index_hash": f"{manifest.index_hash:016x}",
        },
        indent=0,
    )
    arrays = {name: np.ascontiguousarray(getattr(manifest, f"{name}_N"), kind) for name, kind in ARRAYS.items()}
    arrays["path_ends"] = ends
    arrays["paths"] = np.frombuffer(b"".join(blobs), np.uint8)
    arrays["json"] = np.frombuffer(text.encode("ascii"), np.uint8)
    # One entry: of several, safetensors would write now one first, now another.
    return save(arrays, {KEY: f"{VERSION} {_digest_of(arrays)}"})


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """XXH3-128 of names, types and values."""
    whole = xxh3_128()
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        whole.update(arrays[name].data)
    return whole.hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """``UserError`` where ``path`` is no manifest, one of another version, or damaged."""
    try:
        with safe_open(os.fspath(path), "numpy") as file:
            version, _, signed = (file.metadata() or {}).get(KEY, "none").partition(" ")
            if version not in (VERSION, UNSIGNED):
                raise UserError(f"{path} is no manifest of version {VERSION} (found {version[:20]!r}): convert again.")
            arrays = {name: file.get_tensor(name) for name in (*ARRAYS, "path_ends", "paths", "json")}
        if version == VERSION and signed != _digest_of(arrays):
            raise DamagedError(f"the manifest {path} is damaged: its contents differ from its digest; convert again.")
        text = json.loads(arrays["json"].tobytes())
        manifest = Manifest(
            **{f"{name}_N": arrays[name] for name in ARRAYS},
            paths=Paths(arrays["paths"].tobytes(), arrays["path_ends"]),
            classes=tuple(text["classes"]),
            skipped=tuple(Skipped(*entry) for entry in text["skipped"]),
            settings=text["settings"],
            index_hash=int(text["index_hash"], 16),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the manifest {path}: {error}; delete it to read its data unchecked.") from error
    shapes = {arrays[name].shape for name in TABLE}
    texts = (*manifest.classes, *(text for entry in manifest.skipped for text in (entry.path, entry.reason)))
    if (
        len(shapes) > 1
        or len(arrays["path_ends"].shape) != 1
        or any(arrays[name].dtype != kind for name, kind in TABLE.items())
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(manifest.settings, dict)
    ):
        raise DamagedError(f"the manifest {path} is damaged: its arrays do not fit together; convert again.")
    return manifest
