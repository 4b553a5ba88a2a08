"""New files of a source added to what was converted before: shards get more shards, a ``.beton`` is written anew.

What is stored already is never decoded or encoded again. A ``.beton`` whose samples are all in the source still becomes
byte for byte what a conversion of the whole source would give; shards do not, since the new samples are shuffled among
themselves alone. What was replaced under its old name is told by ``replaced``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from xxhash import xxh3_64_hexdigest

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.changes import names_of, options_changed
from fastvicreg.pipelines.convert.conversion import Conversion, MostSkipped, NothingReadError, Progress, Summary
from fastvicreg.pipelines.convert.extended import ExtendedSource
from fastvicreg.pipelines.convert.journal import Journal
from fastvicreg.pipelines.convert.labels import require_labels
from fastvicreg.pipelines.convert.replaced import Replaced, replaced_in, require_unreplaced
from fastvicreg.pipelines.convert.run import command_of, labelled_by, opened, refused, shuffled
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.convert.workspace import Workspace, discard, finish_interrupted
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.beton.writer import BetonWriter
from fastvicreg.pipelines.formats.dataset import StoredSource
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.formats.shards.writer import ShardWriter
from fastvicreg.pipelines.manifest import Manifest, index_digest, manifest_path, read_manifest, to_bytes
from fastvicreg.pipelines.reading import unread
from fastvicreg.pipelines.sources import one_dataset, open_source
from fastvicreg.stalls import LIMIT


def append_dataset(
    source_path: str | Path,
    target: str | Path,
    settings: Settings | None = None,
    *,
    workers: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    commit_seconds: float = 5.0,
    max_skipped: str = "",
    numbered_like: Path | None = None,
    label_file: Path | None = None,
    stall: float = LIMIT,
    replaced: Replaced = "refuse",
) -> Summary:
    """Add the samples of ``source_path`` that ``target`` does not have by name, and those that it skipped.

    The source may hold the earlier files or new ones alone. Classes keep their numbers where the earlier files are not
    all there, and in shards; new ones follow in sorted order. Interrupted, an identical call continues; ``target`` is
    whole at any time but for the moment in which files are put into their places, which an identical call completes.
    ``replaced`` is what is done with files that were replaced since under their old names; shards cannot take them.
    The other arguments are ``convert_dataset``'s.
    ``UserError`` for a mistake, a full disk, a process that reads ``target``, such files where ``replaced`` refuses
    them, or labels of before that the source has not.
    """
    settings, most = settings or Settings(), MostSkipped(max_skipped)
    settings.check()
    target = Path(target)
    with unread(target):  # before all that takes long; held again once something is written
        pass
    finish_interrupted(target)
    stamp = _stamp(target)
    before = _converted(target, settings)
    source_path = one_dataset(source_path, "convert")
    source, spool = opened(source_path, settings, numbered_like, label_file)
    stored = open_source(target)
    assert isinstance(stored, BetonSource | ShardSource)
    whole = isinstance(stored, BetonSource)
    others = replaced_in(source, source_path, before, manifest_path(target), settings, workers)
    names = [before.paths[at] for at in sorted(others)]
    require_unreplaced(names, source_path, target, shards=not whole, how=replaced)
    taken = others if replaced == "take" else {}
    extended = ExtendedSource(source, stored, before, whole=whole, replaced=taken)
    require_labels(source, before, target, renumbers=whole and not extended.absent)
    if extended.same:
        return _nothing_new(target, before, stored)
    order_N = np.arange(len(extended)) if extended.whole else shuffled(settings.seed, len(extended))
    names = names_of(extended)
    command = command_of(names, len(extended), source_path, settings, labelled_by(source, label_file))
    if taken:
        command["replaced"] = f"{len(taken)} files, {xxh3_64_hexdigest(repr(sorted(taken)).encode())}"
    command["appended_to"] = f"{before.index_hash:016x}"
    try:
        with closing(Workspace(target, command, names, replaces=True)) as work:
            if _stamp(target) != stamp:  # only now does nobody else add to it
                discard(target)
                raise UserError(f"{target} was added to by another command meanwhile: run the same again.")
            if spool is not None and not extended.whole:
                for size in spool(work.folder / "spool"):
                    on_progress(Progress(0, len(extended), size, 0))
            if extended.whole:
                writer: BetonWriter | ShardWriter = BetonWriter(work.data, len(extended), settings)
            else:
                writer = ShardWriter(work.data, len(extended), settings, shards=_shards(stored), samples=len(before))
            with closing(writer), closing(Journal(work.journal)) as journal:
                conversion = Conversion(extended, order_N, settings, writer, journal, commit_seconds, most)
                conversion.run(workers, on_progress, stall)
                index_hash = writer.finish(conversion.stored())
            manifest = conversion.manifest(index_hash)
            if not extended.whole:
                manifest = _joined(before, manifest, [*_indices(target), *_indices(work.data)])
            work.publish(to_bytes(manifest))
    except NothingReadError:  # what was skipped before still is, and there is nothing else
        if not set(map(extended.name, range(len(extended)))) <= {entry.path for entry in before.skipped}:
            raise
        discard(target)
        return _nothing_new(target, before, stored)
    except OSError as error:
        raise refused(error, target) from error
    summary = conversion.summary(target)
    return replace(summary, notes=(*summary.notes, *extended.notes_on(target)))


def _converted(target: Path, settings: Settings) -> Manifest:
    """The manifest of ``target``; ``UserError`` where it was not written by convert with these settings."""
    where = manifest_path(target)
    if not target.exists() or not where.exists():
        why = "does not exist" if not target.exists() else "has no manifest, so that its samples have no names"
        raise UserError(f"--append: {target} {why}: leave --append out, which writes it.")
    manifest = read_manifest(where)
    if changed := options_changed(dict(manifest.settings), settings.recorded()):
        raise UserError(f"--append: {target} was converted otherwise ({changed}): give the same options again.")
    return manifest


def _stamp(target: Path) -> tuple[int, int] | None:
    """Another one when ``target`` has been added to; None where it has no manifest."""
    try:
        status = manifest_path(target).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _nothing_new(target: Path, before: Manifest, stored: StoredSource) -> Summary:
    size = int(before.size_N.sum())
    note = f"nothing new: {target} is as it was"
    return Summary(target, len(before), len(stored.classes), len(before), 0, 0, size, before.skipped, 0, 0.0, 0.0, 0.0,
                   (note,))  # fmt: skip


def _shards(stored: StoredSource) -> int:
    return len(cast(ShardSource, stored).layout.files)


def _indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.idx"), key=lambda path: (len(path.name), path.name))


def _joined(before: Manifest, new: Manifest, indices: list[Path]) -> Manifest:
    """The manifest of the shards of before with the new ones behind them."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(before, name), getattr(new, name)])
        for name in ("hash_N", "size_N", "label_N", "width_N", "height_N")
    }
    tried = {*new.paths, *(entry.path for entry in new.skipped)}
    skipped = (*(entry for entry in before.skipped if entry.path not in tried), *new.skipped)
    index_hash = index_digest(*(path.read_bytes() for path in indices))
    return replace(new, **arrays, paths=[*before.paths, *new.paths], skipped=skipped, index_hash=index_hash)
