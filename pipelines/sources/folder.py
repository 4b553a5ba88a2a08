"""Images in a folder: one sub-folder a class, or flat without labels; read in sorted order, on every machine alike."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image

from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import image_size

NOT_IMAGES = frozenset({"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS", "PDF"})
"""Formats Pillow only identifies, or needs another program for."""


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file endings of all types that Pillow reads, such as ".jpeg"."""
    Image.init()
    readable = set(Image.OPEN) - NOT_IMAGES
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in readable)


class FolderSource:
    """Random access to the image files below ``root``.

    The sub-folders of ``root`` are the classes, in sorted order; a class's images may lie any number of folders deep.
    Where ``root`` itself holds the images there are no classes and every label is -1; both at once are refused.
    """

    def __init__(self, root: str | Path) -> None:
        """``UserError`` where ``root`` is missing, no folder, or holds no image."""
        self.root = Path(root)
        if not self.root.is_dir():
            what = "is a file, not a folder" if self.root.exists() else "does not exist"
            raise UserError(f"the image folder {root} {what}: give a folder of images, or of class folders.")
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list the image folder {root}: {error.strerror}.") from error
        folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        flat = [entry.name for entry in entries if entry.is_file() and _is_image(entry.name)]
        by_class = [_walk(self.root, folder) for folder in folders]
        if flat and any(by_class):
            raise UserError(
                f"{root} holds {len(flat)} images (such as {flat[0]}) beside folders of images (such as "
                f"{next(f for f in by_class if f)[0]}): move them into a class folder, or the folders elsewhere."
            )
        self.classes: tuple[str, ...] = () if flat else tuple(folders)
        self._files: list[str] = flat or [file for files in by_class for file in files]
        self._labels: list[int] = [-1] * len(flat) or [n for n, files in enumerate(by_class) for _ in files]
        if not self._files:
            endings = ".jpg .jpeg .png .webp"
            raise UserError(
                f"no image in {root}: it holds no file that ends in {endings} or another type Pillow reads."
            )

    def __len__(self) -> int:
        return len(self._files)

    def encoded(self, index: int) -> bytes:
        """The file's bytes; ``OSError`` where they cannot be read."""
        handle = os.open(f"{self.root}/{self._files[index]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(handle, os.fstat(handle).st_size)
        finally:
            os.close(handle)

    def label(self, index: int) -> int:
        """The class's number, -1 in a flat folder."""
        return self._labels[index]

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the file's header."""
        return image_size(self.encoded(index))

    def name(self, index: int) -> str:
        """The file's path relative to the folder."""
        return self._files[index]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in image_extensions()


def _walk(root: Path, folder: str) -> list[str]:
    """Image files below root/folder as paths relative to root, sorted."""
    found: list[str] = []
    pending = [folder]
    while pending:
        below = pending.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}"
                if entry.is_dir() and not entry.name.startswith("."):
                    pending.append(path)
                elif _is_image(entry.name) and entry.is_file():
                    found.append(path)
    return sorted(found)
