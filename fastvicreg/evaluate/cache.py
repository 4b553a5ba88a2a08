"""Features on disk, found again by what they were computed from: weights, images and preprocessing.

A file is safetensors, appears whole or not at all, and is read by every protocol. Image files are told by name, label,
size and time of change, not by their bytes: reading those is what the cache saves.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from xxhash import xxh3_128

from fastvicreg import __version__
from fastvicreg.caches import cache_folder
from fastvicreg.contracts import Source
from fastvicreg.evaluate.features import Features, evaluation_resize
from fastvicreg.pipelines.pairs.modalities import modality_of
from fastvicreg.pipelines.patterns import expand, is_pattern
from fastvicreg.pipelines.to_rgb import rule_of

log = logging.getLogger(__name__)

VERSION = 2
"""Of the file's form and of what the key names."""
LIMIT = 32 << 30
"""Bytes that all cached features may take; those not used for longest go first."""


def weights_digest(encoder: nn.Module) -> str:
    """XXH3-128 of the network's structure and of every tensor in it."""
    whole = xxh3_128(repr(encoder).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def data_digest(source: Source, where: str) -> str:
    """XXH3-128 of every sample's name and label, and of size and time of change of the files at ``where``."""
    modality = modality_of(source)
    kind = f"{rule_of(source)} {source.classes}" + (f" {modality.described()}" if modality is not None else "")
    whole = xxh3_128(kind.encode("utf-8", "surrogateescape"))
    for index in range(len(source)):
        whole.update(f"{source.name(index)}\0{source.label(index)}\0".encode("utf-8", "surrogateescape"))
    for path in _files(source, Path(where)):
        status = os.stat(path)
        whole.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    return whole.hexdigest()


def _files(source: Source, where: Path) -> Iterator[str | Path]:
    """The files that hold the samples."""
    if is_pattern(where):
        yield from expand(where)
    elif where.is_dir() and (where / source.name(0)).is_file():
        for index in range(len(source)):
            yield f"{where}/{source.name(index)}"
    elif where.is_dir():
        yield from sorted(path for path in where.rglob("*") if path.is_file())  # shards may lie in folders of it
    else:
        yield where


def features_key(
    encoder: nn.Module, source: Source, where: str, *, image_size: int, device: str, image: str = ""
) -> str:
    """What names a file of features: equal only where the features are.

    ``image`` is what was named of samples that hold several (--image): these have one name, label and file.
    """
    parts = (
        f"{VERSION} {__version__} {image_size} {evaluation_resize(image_size)} {torch.device(device).type}",
        weights_digest(encoder),
        data_digest(source, where),
        repr(image),
    )
    return xxh3_128(" ".join(parts).encode()).hexdigest()


def _path(key: str) -> Path:
    return cache_folder() / "features" / f"{key}.safetensors"


def load_features(key: str, device: str = "cpu") -> Features | None:
    """The features that were saved under ``key``; None where there are none, or the file is damaged."""
    path = _path(key)
    try:
        with safe_open(path, "pt", device=device) as file:
            faults = int((file.metadata() or {})["faults"])
            found = Features(file.get_tensor("features"), file.get_tensor("labels"), faults)
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("the cached features %s are damaged (%s): they are computed again.", path, error)
        return None
    return found


def save_features(key: str, features: Features) -> None:
    """Write the features under ``key``; a warning in one line where there is no room or no right to write."""
    path = _path(key)
    tensors = {"features": features.features_NF.cpu().contiguous(), "labels": features.labels_N.cpu().contiguous()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, size)
        if size > min(LIMIT, shutil.disk_usage(path.parent).free // 2):
            log.warning("the features (%.1f GB) are not cached: they would take over half of what is free.", size / 1e9)
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        save_file(tensors, temporary, {"faults": str(features.faults)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        log.warning("the features are not cached: %s.", getattr(error, "strerror", None) or error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _make_room(folder: Path, size: int) -> None:
    """Delete the files that were not used for longest until ``size`` bytes more are within ``LIMIT``."""
    used = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.safetensors"))
    total = sum(held for _, held, _ in used) + size
    for _, held, path in used:
        if total <= LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= held
