"""Images in tar shards with indices, ours or any WebDataset's: random access through mmap, no DALI needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.classes import unlabelled_in_words
from fastvicreg.pipelines.decode import DecodeError, image_size
from fastvicreg.pipelines.formats.dataset import Elsewhere, Finding
from fastvicreg.pipelines.formats.hints import PageHints
from fastvicreg.pipelines.formats.keys import ANY, Keys
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.check import check_shard
from fastvicreg.pipelines.formats.shards.keys import SHOWN
from fastvicreg.pipelines.formats.shards.labels import addresses, read_labels
from fastvicreg.pipelines.formats.shards.layout import ShardLayout, read_layout
from fastvicreg.pipelines.manifest import ChangedError, Manifest, digest, manifest_path, read_manifest
from fastvicreg.pipelines.mapped import require_whole
from fastvicreg.pipelines.passed import Passed
from fastvicreg.pipelines.to_rgb import RANGE, ToRGB
from fastvicreg.pipelines.unfinished import require_in_place


class ShardSource:
    """Random access to the images (.jpg, .png, .webp ...) and .cls.i32 (or .cls) of tar files: a folder's, those of
    the folders in it, a pattern's, or one, which may hold tar files itself.

    Samples come in the order of the shards' names, then of their indices, or of the members where there is none. With
    our manifest in the folder ``encoded`` checks each sample's hash; without one labels are read when the folder is
    opened, a page a sample, and ``encoded`` checks that the member's header is where the index says. ``passed`` counts
    the samples without an image, or without the label that was named, which are left out. Names in shards are shown to
    people only. The files must not shrink while they are open.
    """

    format: ClassVar[str] = "shards"
    kind: ClassVar[str] = "tar shards"

    def __init__(self, path: str | Path, to_rgb: ToRGB = RANGE, keys: Keys = ANY) -> None:
        """``keys``: the members that hold image and label, as ``keys.chosen`` reads them.

        ``UserError`` where ``path`` holds no shards, ``DamagedError`` where they contradict index or manifest.
        """
        self.path = Path(path)
        self.to_rgb = to_rgb
        require_in_place(self.path)
        layout = read_layout(path, keys)
        self.manifest: Manifest | None = _manifest(layout)
        if self.manifest is None:
            label_N, self.classes, unlabelled = read_labels(layout)
            layout = layout.without(unlabelled)
            self._label = np.delete(label_N, list(unlabelled)) if unlabelled else label_N
        elif keys.options():
            raise UserError(
                f"{path} was written by convert, and its manifest names the labels: leave {keys.options()} out."
            )
        else:
            self._label, self.classes = self.manifest.label_N, self.manifest.classes
        self.layout: ShardLayout = layout
        self.notes: tuple[str, ...] = (*layout.members.notes, *self._unlabelled(layout), *self._walked(layout))
        self.elsewhere: Elsewhere | None = None  # where the samples are, if not in the files
        self._mapped, self._shard = self.layout.mapped, self.layout.shard_N
        self._start, self._size = np.ascontiguousarray(self.layout.image_N2.T)
        self._hints = PageHints(addresses(self.layout, self._start), self._size)
        self.passed = Passed()
        for why, key in self.layout.left_out:
            self.passed.add(why, key)
        self._paths = self.layout.names if self.manifest is None else self.manifest.paths

    def _unlabelled(self, layout: ShardLayout) -> Iterator[str]:
        """A word on members that may hold the labels, where there are none."""
        if layout.members.others and not self.classes and not (self._label >= 0).any():
            there = ", ".join(f".{one}" for one in layout.members.others[:SHOWN])
            yield f"{self.path}: no labels among the members {there} (--label KEY or --label json:FIELD names some)"
        elif told := unlabelled_in_words(self._label, self.classes):
            yield f"{self.path}: {told}"

    def _walked(self, layout: ShardLayout) -> Iterator[str]:
        """A word on what it took to find the samples, where it took long."""
        if told := layout.effort.told():
            yield f"{self.path}: {told}"

    def __len__(self) -> int:
        return len(self._start)

    def encoded(self, index: int) -> memoryview:
        """The image's bytes, not copied.

        ``ChangedError`` (an ``OSError``) where they are not those that the manifest recorded, or without a manifest
        where no member of this size begins where the index says.
        """
        stored = self.stored(index)
        if self.manifest is None:
            if not tarfiles.meets_header(self._mapped[self._shard[index]], int(self._start[index]), len(stored)):
                raise ChangedError(
                    f"no member of {len(stored)} bytes begins at byte {self._start[index]} of its tar file"
                )
        elif digest(stored) != int(self.manifest.hash_N[index]):
            raise ChangedError(f"the bytes differ from the manifest's hash {self.expected_hash(index):016x}")
        return stored

    def stored(self, index: int) -> memoryview:
        """The same bytes, unchecked; ``OSError`` where the file has been cut since it was opened."""
        if self.elsewhere is not None:
            return self.elsewhere.read(index)
        start, shard = int(self._start[index]), int(self._shard[index])
        end = start + int(self._size[index])
        require_whole(self.layout.files[shard][0], end)
        return self._mapped[shard][start:end]

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) each: the number of the tar file, start and size of the image's bytes in it."""
        return self._shard, self._start, self._size

    def is_raw(self, index: int) -> bool:
        """False: shards hold encoded images alone."""
        return False

    def expected_hash(self, index: int) -> int | None:
        """XXH3-64 of the stored bytes as the manifest recorded it; None without a manifest."""
        return None if self.manifest is None else int(self.manifest.hash_N[index])

    def recorded_size(self, index: int) -> tuple[int, int] | None:
        """(width, height) from the manifest; None without one."""
        return None if self.manifest is None else self.size(index)

    def findings_from(self, index: int) -> Iterator[Finding]:
        """Where the sample is the first of a tar file: what is wrong between that file, its index and its classes."""
        shard = int(self._shard[index])
        if index == 0 or self._shard[index - 1] != shard:
            yield from check_shard(self, self.layout, shard, index)

    def label(self, index: int) -> int:
        """The class's number, -1 where there is none."""
        return int(self._label[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) from the manifest, else from the image's header; ``OSError`` where it has none."""
        if self.manifest is not None:
            return int(self.manifest.width_N[index]), int(self.manifest.height_N[index])
        try:
            return image_size(self.stored(index))
        except DecodeError as error:
            raise OSError(str(error)) from error

    def name(self, index: int) -> str:
        """The path that the manifest recorded, else "shard.tar/member"."""
        return self._paths[index]

    def read_ahead(self, index_B: Tensor) -> None:
        """Have these samples read while others are decoded."""
        hint = self._hints if self.elsewhere is None else self.elsewhere.ahead
        hint(index_B.numpy())


def _manifest(layout: ShardLayout) -> Manifest | None:
    where = manifest_path(layout.path)
    if not where.exists():
        return None
    manifest, names = read_manifest(where), {tar.name for tar, _ in layout.files}
    expected = [tarfiles.shard_names(number)[0] for number in range(len(names) + 1)]
    missing = [name for name in expected if name not in names]
    # The last of these is missing from a whole folder too: it would be the next shard.
    if surplus := sorted(names - set(expected)):
        raise DamagedError(
            f"{layout.path / surplus[0]} is none of the manifest's shards: move it away, or delete {where} to read "
            "all shards unchecked."
        )
    if len(missing) > 1 or len(layout) < len(manifest):
        raise DamagedError(
            f"{layout.path / missing[0]} is missing: the shards hold {len(layout):,} of the manifest's "
            f"{len(manifest):,} samples; copy it again."
        )
    if len(manifest) != len(layout) or manifest.index_hash != layout.index_hash:
        raise DamagedError(
            f"the indices in {layout.path} and its manifest do not belong together: one of them was changed or "
            f"replaced; convert again, or delete {where} to read the shards unchecked."
        )
    return manifest
