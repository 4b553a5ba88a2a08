"""Random access to encoded images, whatever holds them."""

from __future__ import annotations

from pathlib import Path

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.decode import DecodeError, decode_sample
from fastvicreg.pipelines.fetch import is_remote
from fastvicreg.pipelines.fetch.mirror import attach
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.formats.absent import require_there
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.formats.keys import Keys
from fastvicreg.pipelines.formats.listing import (
    ARCHIVES,
    BETON_ENDINGS,
    TABLE_ENDINGS,
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

__all__ = ["classes_in_words", "find_splits", "has_keys", "one_dataset", "open_source", "require_readable", "splits_of"]


def open_source(
    path: str | Path, *, to_rgb: str = "range", image: str = "", label: str = "", sequential: bool = False
) -> DatasetSource:
    """Open the images at ``path``: a folder of images, of class folders or of tar shards, a ``.beton`` file, tar shards
    by a pattern such as ``hub/*-train-*.tar`` or ``train-{0000..0146}.tar``, arrow files, or the address of such files
    (s3://, gs://, https://, hf://), of which shards and ``.beton`` files are read by ranges as they are needed.

    ``to_rgb`` says how images of more than 8 bits become 8: range, LOW:HIGH or refuse, as ``pipelines.to_rgb`` tells.
    ``image`` and ``label`` name what holds them: members of tar shards by their extensions (``jpg``, ``input.png``;
    ``cls``, ``txt``, ``json:FIELD``), fields of a ``.beton``, or columns of a table. ``sequential`` opens parquet files
    too, whose images are read fast in their order alone.
    ``UserError`` where there is nothing to read, or the class folders are splits.
    """
    path = placed(str(path)).path if is_remote(path) else Path(path)
    source = _open(path, parse_rule(to_rgb), Keys(image, label))
    if not sequential and source.format == "tables" and not getattr(source, "random", True):
        raise UserError(
            f"{path} holds parquet files, which give no fast access to one image by itself: fastvicreg convert {path} "
            "images.beton first."
        )
    attach(source)
    return source


def _open(path: Path, rule: ToRGB, keys: Keys) -> DatasetSource:
    if is_pattern(path):
        return _open_pattern(path, rule, keys)
    require_there(path)
    if path.is_file():
        if path.suffix == ".idx" or (manifest_path(path.parent).is_file() and path.suffix == ".tar"):
            raise UserError(f"{path} is one shard: give the folder {path.parent}, which is read as a whole.")
        if ending_of(path.name) in ARCHIVES:
            how = ARCHIVES[ending_of(path.name)]
            raise UserError(
                f"{path} is compressed, which gives no access to one image by itself: {how} {path} first, or "
                "fastvicreg convert it."
            )
        if ending_of(path.name) in TABLE_ENDINGS:
            return _table(path, [path], rule, keys)
        return ShardSource(path, rule, keys) if path.suffix == ".tar" else BetonSource(path, keys)
    if _holds_shards(path):
        return ShardSource(path, rule, keys)
    if tables := _tables_in(path):
        return _table(path, tables, rule, keys)
    if keys.options():
        raise UserError(
            f"{keys.options()} names a member of tar shards, a field of a .beton or a column, and {path} is a "
            "folder of images: leave it out; its classes are its folders."
        )
    source = FolderSource(path, rule)
    refuse_split_classes(source.classes, path)
    return source


def has_keys(path: Path) -> bool:
    """Whether the data at ``path`` have members, fields or columns that ``--image`` and ``--label`` can name."""
    return is_pattern(path) or path.is_file() or _holds_shards(path) or bool(_tables_in(path))


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
    if all(ending_of(file.name) in TABLE_ENDINGS for file in files):
        return _table(pattern, files, rule, keys)
    for file in files:
        if file.suffix != ".tar":
            raise UserError(f"{pattern} names {file}: a pattern stands for tar shards or parquet files alone.")
    folder = files[0].parent
    if manifest_path(folder).is_file() and set(files) == set(folder.glob("*.tar")):
        return ShardSource(folder, rule, keys)  # a whole folder of ours, whose manifest knows names and hashes
    return ShardSource(pattern, rule, keys)


def _table(path: Path, files: list[Path], rule: ToRGB, keys: Keys) -> DatasetSource:
    try:
        from fastvicreg.pipelines.formats.tables.source import TableSource
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow, which does not import ({error}): pip install 'fastvicreg[parquet]'."
        ) from error
    return TableSource(path, files, rule, keys)


def _tables_in(folder: Path) -> list[Path]:
    """The parquet files of a folder that holds no images otherwise, else its arrow files; caches are none."""
    if not path_exists(folder) or not folder.is_dir():
        return []
    listing = list_folder(folder, to_first_image=True)
    if listing.images or listing.tars or any(holds_data(folder / name) for name in listing.folders):
        return []
    tables = [name for name in listing.tables if not name.startswith("cache-")]  # what datasets' map left
    parquet = [name for name in tables if ending_of(name) == ".parquet"]
    return [folder / name for name in parquet or tables]


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
