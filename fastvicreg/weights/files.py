"""Files of weights as tensors by name, wherever in them they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.weights import pickled

DEPTH = 3
"""Dictionaries within dictionaries that are looked into."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    path: Path
    groups: Mapping[str, dict[str, Tensor]]
    """Tensors by name, for each dictionary that has some: "" for the file's own, else its keys ("state_dict")."""
    metadata: Mapping[str, str]
    """Texts of a safetensors file's header."""
    foreign: tuple[str, ...] = ()
    """Names of code in a pickle that placeholders stand for."""
    others: tuple[str, ...] = ()
    """Keys of what is not weights, such as "optimizer" and "epoch"."""


def read(path: Path) -> Content:
    """The tensors in a safetensors file or in one of ``torch.save``, told apart by content.

    ``UserError`` where it is neither, is damaged, holds no tensor by name, or would run code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    # 8 bytes of length, then JSON: neither a zip archive nor a pickle has a brace there.
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return _safetensors(path)
    loaded, foreign = pickled.load(path)
    if isinstance(loaded, Tensor) or not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, no tensors by name: give a state_dict.")
    groups = dict(_groups(loaded))
    if not groups:
        keys = ", ".join(map(str, list(loaded)[:8])) or "nothing"
        raise UserError(f"{path} holds no tensors by name, only {keys}: give a checkpoint or a state_dict.")
    tops = {group.partition(".")[0] for group in groups}
    others = tuple(key for key in loaded if isinstance(key, str) and key not in tops and key not in groups.get("", {}))
    return Content(path, groups, {}, foreign, others)


def _safetensors(path: Path) -> Content:
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or a damaged one ({error}).") from error
    if not tensors:
        raise UserError(f"{path} holds no tensors.")
    return Content(path, {"": tensors}, metadata)


def _groups(content: Mapping[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    own = {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if own:
        yield where, own
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth < DEPTH and "optim" not in key:
            yield from _groups(value, f"{where}.{key}" if where else key, depth + 1)
