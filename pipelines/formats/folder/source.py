"""Images in a folder: one sub-folder a class, or flat without labels; read in sorted order, on every machine alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import MAX_BYTES, image_size
from fastvicreg.pipelines.formats.absent import require_folder
from fastvicreg.pipelines.formats.dataset import Finding
from fastvicreg.pipelines.formats.folder.listings import Entries, Listings, state_of
from fastvicreg.pipelines.formats.listing import (
    ARCHIVES,
    ending_of,
    identity,
    image_extensions,
    is_file,
    is_folder,
    is_shown,
    path_exists,
    scan,
)
from fastvicreg.pipelines.passed import Passed
from fastvicreg.pipelines.to_rgb import RANGE, ToRGB

PART = ".parquet"
"""img2dataset's output as files: the folders 00000/, 00001/ ... lie beside 00000.parquet, 00001.parquet ..."""


class FolderSource:
    """Random access to the image files below ``root``.

    The sub-folders of ``root`` are the classes, in sorted order; a class's images may lie any number of folders deep.
    Where ``root`` itself holds the images there are no classes and every label is -1; both at once are refused.
    ``passed`` counts what was not taken: files of other types, hidden ones, links that lead nowhere or back.
    """

    format: ClassVar[str] = "folder"
    kind: ClassVar[str] = "a folder of images"

    def __init__(self, root: str | Path, to_rgb: ToRGB = RANGE) -> None:
        """``UserError`` where ``root`` is missing, no folder, holds no image, or may not be listed."""
        self.path = Path(root)
        require_folder(self.path)
        self.passed = Passed()
        self.to_rgb = to_rgb
        listings = self._listings = Listings(self.path)
        here = {identity(self.path)}
        flat, folders = self._list(".", here)
        by_class = [self._walk(folder, here | {identity(self.path / folder)}) for folder in folders]
        if flat and any(by_class):
            raise UserError(
                f"{root} holds {len(flat)} images (such as {flat[0]}) beside folders of images (such as "
                f"{next(f for f in by_class if f)[0]}): move them into a class folder, or the folders elsewhere."
            )
        parts = bool(folders) and all(path_exists(self.path / f"{folder}{PART}") for folder in folders)
        self.notes: tuple[str, ...] = (f"{root}: img2dataset's parts are no classes: no labels",) if parts else ()
        self.classes: tuple[str, ...] = () if flat or parts else tuple(folders)
        self._files: list[str] = flat or [file for files in by_class for file in files]
        self._labels: list[int] = [-1] * len(flat) or [
            -1 if parts else n for n, files in enumerate(by_class) for _ in files
        ]
        listings.save(len(self._files))
        if not self._files:
            endings = ".jpg .jpeg .png .webp"
            there = self.passed.lines()
            raise UserError(
                f"no image in {root}: it holds no file that ends in {endings} or another type Pillow reads"
                + (f", but {'; '.join(there[:3])}{self._unpack()}." if there else ".")
            )

    def _unpack(self) -> str:
        """What to do with compressed tar files, where there are some."""
        kind = next((kind for kind in self.passed.counts if kind in ARCHIVES), None)
        if kind is None:
            return ""
        tool = f"{ARCHIVES[kind]} {self.path / self.passed.first[kind]}"
        return (
            f"; unpack such files first ({tool}), or convert tar files as they are: fastvicreg convert {self.path} DST"
        )

    def __len__(self) -> int:
        return len(self._files)

    def encoded(self, index: int) -> bytes:
        """The file's bytes; ``OSError`` where they cannot be read, or are too many for an image."""
        return read_file(f"{self.path}/{self._files[index]}")

    def label(self, index: int) -> int:
        """The class's number, -1 in a flat folder."""
        return self._labels[index]

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the file's header."""
        return image_size(self.encoded(index))

    def name(self, index: int) -> str:
        """The file's path relative to the folder."""
        return self._files[index]

    def expected_hash(self, index: int) -> None:
        """None: nothing is recorded of image files."""

    def recorded_size(self, index: int) -> None:
        """None: the image alone tells."""

    def findings_from(self, index: int) -> Iterator[Finding]:
        """None: there are no files but the samples."""
        return iter(())

    def _list(self, folder: str, above: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
        """(images, folders) in ``folder``, which lies in the folders ``above``: their paths relative to the root."""
        try:
            state = state_of(self.path / folder)
        except OSError:
            state = None  # listing it tells why
        entries = self._listings.get(folder, state) if state else None
        if entries is None:
            entries, links = self._look(folder, above)
            if state and not links:
                self._listings.put(folder, state, entries)
        self.passed.include(entries.passed)
        return entries.images, entries.folders

    def _look(self, folder: str, above: set[tuple[int, int]]) -> tuple[Entries, bool]:
        """(what lies in ``folder``, whether there are links in it)."""
        images, folders, passed, links = [], [], Passed(), False
        extensions, prefix = image_extensions(), "" if folder == "." else f"{folder}/"
        for entry in scan(self.path / folder):
            name = entry.name
            path = prefix + name
            links = links or entry.is_symlink()
            # Most entries by far: a million of them take seconds.
            if name[name.rfind(".") :].lower() in extensions and name[0] != "." and is_file(entry):
                images.append(path)
            elif is_folder(entry):
                if not is_shown(entry.name):
                    passed.add("hidden or left by a program", path)
                elif entry.is_symlink() and identity(entry.path) in above:
                    passed.add("link that leads back to a folder it lies in", path)
                else:
                    folders.append(path)
            elif not is_file(entry):
                passed.add("link that leads nowhere" if entry.is_symlink() else "no regular file", path)
            else:
                hidden = entry.name.startswith(".")
                passed.add("hidden file" if hidden else ending_of(entry.name) or "no ending", path)
        return Entries(sorted(images), sorted(folders), passed), links

    def _walk(self, folder: str, above: set[tuple[int, int]]) -> list[str]:
        """Image files below root/folder as paths relative to the root, sorted."""
        found: list[str] = []
        pending = [(folder, above)]
        while pending:
            images, folders = self._list(*(below := pending.pop()))
            found += images
            pending += [(inner, below[1] | {identity(self.path / inner)}) for inner in folders]
        return sorted(found)


def read_file(path: str) -> bytes:
    """A file's bytes; ``OSError`` where they cannot be read, or are too many for a sample."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if (size := os.fstat(handle).st_size) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than {MAX_BYTES:,}")
        return os.read(handle, size)
    finally:
        os.close(handle)
