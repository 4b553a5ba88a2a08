"""Files of one modality below a folder, as a source: the members of pairs that lie beside each other."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import image_size
from fastvicreg.pipelines.formats.folder.source import read_file
from fastvicreg.pipelines.formats.listing import identity, is_file, is_folder, is_shown, scan
from fastvicreg.pipelines.to_rgb import parse_rule


def sample_key(name: str) -> str:
    """A sample's key, whichever way its accents are written: macOS parts them from their letters."""
    return unicodedata.normalize("NFC", name)


class Files:
    """Files below ``root`` with one of ``endings``, sorted; the folders that they lie in are their classes."""

    kind = "a folder of files"

    def __init__(self, root: Path, endings: tuple[str, ...], to_rgb: str) -> None:
        self.root = root
        self.to_rgb = parse_rule(to_rgb)
        self.endings: list[str] = []
        """Of the files that were not taken."""
        names = sorted(_walk(root))
        self._names: list[str] = []
        self.keys: list[str] = []
        others: dict[str, None] = {}
        for name in names:
            ending = next((one for one in endings if name.lower().endswith(f".{one}")), None)
            if ending is None:
                others[os.path.splitext(name)[1].lower()] = None
                continue
            self._names.append(name)
            self.keys.append(sample_key(name[: -len(ending) - 1]))
        self.endings = [one for one in others if one]
        if len(set(self.keys)) < len(self.keys):
            twice = next(one for one, next_one in itertools.pairwise(sorted(self.keys)) if one == next_one)
            raise UserError(f"{root} holds {twice} with several of the endings {', '.join(endings)}: name one of them.")
        folders = [key.partition("/")[0] for key in self.keys if "/" in key]
        nested = len(folders) == len(self.keys)
        self.classes: tuple[str, ...] = tuple(sorted(set(folders))) if nested else ()
        number = {name: at for at, name in enumerate(self.classes)}
        self._label = [number.get(key.partition("/")[0], -1) for key in self.keys]

    def __len__(self) -> int:
        return len(self._names)

    def encoded(self, index: int) -> bytes:
        return read_file(f"{self.root}/{self._names[index]}")

    def label(self, index: int) -> int:
        return self._label[index]

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.encoded(index))

    def name(self, index: int) -> str:
        return self._names[index]


def _walk(root: Path) -> Iterator[str]:
    """Paths of all files below ``root``, relative to it."""
    pending, seen = [""], set()
    while pending:
        folder = pending.pop()
        if (place := identity(root / folder)) in seen:  # a link that leads back
            continue
        seen.add(place)
        for entry in scan(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_folder(entry):
                if is_shown(entry.name):
                    pending.append(path)
            elif is_file(entry) and not entry.name.startswith("."):
                yield path
