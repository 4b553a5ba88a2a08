"""Features and labels that any program wrote, as one .npz or .safetensors file.

Keys: ``train_features`` (N, F) and ``val_features`` (M, F), floats; ``train_labels`` (N) and ``val_labels`` (M), class
numbers from 0. Class names: an array of strings ``classes`` in the .npz, a JSON list ``classes`` in the metadata of the
.safetensors; without, a class is called by its number.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import Features
from fastvicreg.json_text import parse_json

SPLITS = ("train", "val")
LARGEST = 1e15
"""Of a feature: the square of a vector's length is then finite in fp32."""
KEYS = tuple(f"{split}_{what}" for split in SPLITS for what in ("features", "labels"))


class LabelledFeatures:
    """Features whose labels are checked as a source's are."""

    def __init__(self, features: Features, classes: tuple[str, ...]) -> None:
        self.features, self.classes = features, classes
        self._labels = features.labels_N.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        return self._labels[index]


def read_features(path: str | Path) -> tuple[LabelledFeatures, LabelledFeatures]:
    """(train, val) of ``path``; ``UserError`` for what is missing in it, does not fit together or is not finite."""
    tensors, names = _read(Path(path))
    for key in KEYS:
        if key not in tensors:
            raise UserError(f"--features {path} has no {key!r}: give {', '.join(KEYS)}; it holds {_held(tensors)}.")
    splits = [_split(tensors, split, path) for split in SPLITS]
    (_, wide), (_, other) = (split.features_NF.shape for split in splits)
    if wide != other:
        raise UserError(f"--features {path}: train_features are {wide} wide and val_features {other}: give one width.")
    if names:
        count = 1 + max(int(split.labels_N.max()) for split in splits)
        if len(names) < count:
            raise UserError(
                f"--features {path}: 'classes' has {len(names)} names, and the labels go up to {count - 1}."
            )
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"--features {path}: 'classes' has {twice!r} twice: give each class a name of its own.")
        classes = tuple(names)
    else:
        splits, classes = _numbered(splits)
    train, val = (LabelledFeatures(split, classes) for split in splits)
    return train, val


def _numbered(splits: list[Features]) -> tuple[list[Features], tuple[str, ...]]:
    """Numbers without names, which may have gaps: the classes are those that occur, under their own numbers."""
    present_C = torch.cat([split.labels_N for split in splits]).unique()
    numbered = [split._replace(labels_N=torch.searchsorted(present_C, split.labels_N)) for split in splits]
    return numbered, tuple(map(str, present_C.tolist()))


def _split(tensors: Mapping[str, Tensor], split: str, path: str | Path) -> Features:
    features, labels = tensors[f"{split}_features"], tensors[f"{split}_labels"]
    where = f"--features {path}: {split}"
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        found = f"{features.dtype} of shape {tuple(features.shape)}"
        raise UserError(f"{where}_features are {found}: give floats of shape (samples, features).")
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise UserError(f"{where}_labels are {found}: give one whole number a sample.")
    if len(labels) != len(features):
        raise UserError(f"{where}_features has {len(features):,} rows and {split}_labels {len(labels):,}.")
    if int(labels.min()) < 0:
        unlabelled = int((labels < 0).sum())
        raise UserError(
            f"{where}_labels: {unlabelled:,} of {len(labels):,} are below 0: leave samples without one out."
        )
    features = features.float()
    finite_N = features.isfinite().all(1)
    if not finite_N.all():
        bad = (~finite_N).nonzero()
        raise UserError(
            f"{where}_features: {len(bad):,} of {len(features):,} rows are not finite, row {int(bad[0])} first."
        )
    if float(features.abs().max()) > LARGEST:
        raise UserError(
            f"{where}_features go up to {float(features.abs().max()):g}: scale them to {LARGEST:g} at most."
        )
    if len(features) > 1 and bool((features == features[0]).all()):
        raise UserError(f"{where}_features are all equal: nothing can be told apart by them.")
    return Features(features, labels.long())


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors, and the classes' names where the file has some."""
    try:
        if path.suffix == ".npz":
            if path.exists() and not zipfile.is_zipfile(path):
                raise UserError(f"--features {path} is no .npz file: write it by numpy.savez.")
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {key: file[key] for key in file.files}
            names = [str(name) for name in arrays.pop("classes", ())]
            return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}, names
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = _listed((file.metadata() or {}).get("classes", "[]"), path)
                return {key: file.get_tensor(key) for key in file.keys()}, [str(name) for name in names]  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"--features {path} does not exist.") from None
    except UserError:
        raise
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        if "Object arrays" in reason:
            reason = "it holds an array of Python objects; save class names as numpy.array(names, dtype=str)."
        raise UserError(f"--features {path} cannot be read: {reason}") from error
    raise UserError(f"--features {path} ends in {path.suffix or 'nothing'}: give a .npz or a .safetensors file.")


def _listed(text: str, path: Path) -> list[Any]:
    """The metadata's class names."""
    try:
        names = parse_json(text)
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise UserError(f"--features {path}: 'classes' in its metadata is {text[:40]!r}, no JSON list of names.")
    return names


def _held(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(map(repr, list(tensors)[:6])) or "nothing"
