"""Features and labels that any program wrote, as one .npz or .safetensors file.

Keys: ``train_features`` (N, F) and ``val_features`` (M, F), floats; ``train_labels`` (N) and ``val_labels`` (M), class
numbers from 0. Class names: an array of strings ``classes`` in the .npz, a JSON list ``classes`` in the metadata of the
.safetensors; without, a class is called by its number.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import Features

SPLITS = ("train", "val")
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
    count = 1 + max(int(split.labels_N.max()) for split in splits)
    if names and len(names) < count:
        raise UserError(f"--features {path}: 'classes' has {len(names)} names, and the labels go up to {count - 1}.")
    classes = tuple(names) or tuple(map(str, range(count)))
    train, val = (LabelledFeatures(split, classes) for split in splits)
    return train, val


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
    finite_N = features.isfinite().all(1)
    if not finite_N.all():
        bad = (~finite_N).nonzero()
        raise UserError(
            f"{where}_features: {len(bad):,} of {len(features):,} rows are not finite, row {int(bad[0])} first."
        )
    return Features(features.float(), labels.long())


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors, and the classes' names where the file has some."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {key: file[key] for key in file.files}
            names = [str(name) for name in arrays.pop("classes", ())]
            return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}, names
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = json.loads((file.metadata() or {}).get("classes", "[]"))
                return {key: file.get_tensor(key) for key in file.keys()}, [str(name) for name in names]  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"--features {path} does not exist.") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"--features {path} cannot be read: {str(error).splitlines()[0]}") from error
    raise UserError(f"--features {path} ends in {path.suffix or 'nothing'}: give a .npz or a .safetensors file.")


def _held(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(map(repr, list(tensors)[:6])) or "nothing"
