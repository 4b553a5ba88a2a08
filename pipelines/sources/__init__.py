"""Random access to encoded images, whatever holds them."""

from __future__ import annotations

from pathlib import Path

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError, decode_sample
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.formats.keys import Keys
from fastvicreg.pipelines.formats.listing import (
    ARCHIVES,
    BETON_ENDINGS,
    ending_of,
    holds_data,
    list_folder,
    path_exists,
)
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import manifest_path
from fastvicreg.pipelines.patterns import expand, is_pattern
from fastvicreg.pipelines.sources.splits import find_splits, one_dataset, refuse_split_classes, splits_of
from fastvicreg.pipelines.to_rgb import ToRGB, parse_rule

__all__ = ["classes_in_words", "find_splits", "one_dataset", "open_source", "require_readable", "splits_of"]


def open_source(path: str | Path, *, to_rgb: str = "range", image: str = "", label: str = "") -> DatasetSource:
    """Open the images at ``path``: a folder of images, of class folders or of tar shards, a ``.beton`` file, or tar
    shards by a pattern such as ``hub/*-train-*.tar`` or ``train-{0000..0146}.tar``.

    ``to_rgb`` says how images of more than 8 bits become 8: range, LOW:HIGH or refuse, as ``pipelines.to_rgb`` tells.
    ``image`` and ``label`` name what holds them: members of tar shards by their extensions (``jpg``, ``input.png``;
    ``cls``, ``txt``, ``json:FIELD``), or fields of a ``.beton``.
    ``UserError`` where there is nothing to read, or the class folders are splits.
    """
    return _open(Path(path), parse_rule(to_rgb), Keys(image, label))


def _open(path: Path, rule: ToRGB, keys: Keys) -> DatasetSource:
    if is_pattern(path):
        return _open_pattern(path, rule, keys)
    if path_exists(path) and path.is_file():
        if path.suffix == ".idx" or (manifest_path(path.parent).is_file() and path.suffix == ".tar"):
            raise UserError(f"{path} is one shard: give the folder {path.parent}, which is read as a whole.")
        if ending_of(path.name) in ARCHIVES:
            how = ARCHIVES[ending_of(path.name)]
            raise UserError(f"{path} is compressed, which gives no access to one image by itself: {how} {path} first.")
        return ShardSource(path, rule, keys) if path.suffix == ".tar" else BetonSource(path, keys)
    if _holds_shards(path):
        return ShardSource(path, rule, keys)
    if keys.options():
        raise UserError(
            f"{keys.options()} names a member of tar shards or a field of a .beton, and {path} is neither: leave it "
            "out; a folder's classes are its folders."
        )
    source = FolderSource(path, rule)
    refuse_split_classes(source.classes, path)
    return source


def classes_in_words(count: int) -> str:
    """ "1,000 classes", "1 class" or "no labels"."""
    return "no labels" if not count else "1 class" if count == 1 else f"{count:,} classes"


def require_readable(source: Source, where: str, tries: int = 100) -> None:
    """``UserError`` where none of the first ``tries`` samples is a readable image."""
    first = ""
    for index in range(min(tries, len(source))):
        try:
            decode_sample(source, index)
            return
        except (DecodeError, OSError) as error:
            first = first or f"{source.name(index)}: {error}"
    raise UserError(f"no readable image among the first {min(tries, len(source))} in {where} (first: {first}).")


def _open_pattern(pattern: Path, rule: ToRGB, keys: Keys) -> DatasetSource:
    files = expand(pattern)
    if len(files) == 1 and files[0].suffix in BETON_ENDINGS:
        return BetonSource(files[0], keys)
    for file in files:
        if file.suffix != ".tar":
            raise UserError(f"{pattern} names {file}: a pattern stands for tar shards alone.")
    folder = files[0].parent
    if manifest_path(folder).is_file() and set(files) == set(folder.glob("*.tar")):
        return ShardSource(folder, rule, keys)  # a whole folder of ours, whose manifest knows names and hashes
    return ShardSource(pattern, rule, keys)


def _holds_shards(folder: Path) -> bool:
    """Whether the folder is one of shards: tar files with indices or our manifest, or tar files alone."""
    if not path_exists(folder) or not folder.is_dir():
        return False
    listing = list_folder(folder)
    if path_exists(manifest_path(folder)):
        return True
    if listing.tars:
        return listing.indices or not (listing.images or any(holds_data(folder / name) for name in listing.folders))
    if listing.images or not listing.folders:
        return False
    below = (list_folder(folder / name, to_first_image=True) for name in listing.folders)
    filled = [one for one in below if one.data or one.folders]
    return bool(filled) and all(one.tars and not one.images for one in filled)
