"""A dataset with splits as one conversion a split: ``DST/train.beton`` and ``DST/val.beton``, or folders of shards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.conversion import versions
from fastvicreg.pipelines.convert.labels import relabelled
from fastvicreg.pipelines.convert.run import convert_dataset
from fastvicreg.pipelines.convert.settings import FORMATS, Settings
from fastvicreg.pipelines.convert.workspace import FILES, sweep
from fastvicreg.pipelines.convert.writer import Writer
from fastvicreg.pipelines.manifest import manifest_path, read_manifest
from fastvicreg.pipelines.sources import open_source, splits_of
from fastvicreg.pipelines.sources.labelled import label_by_file
from fastvicreg.pipelines.sources.splits import TRAIN
from fastvicreg.registry import resolve

__all__ = ["Job", "convert_dataset", "jobs_of"]


class Job(NamedTuple):
    """One conversion of a command."""

    split: str  # "" where the source is one dataset
    source: Path
    target: Path
    numbered_like: Path | None = None  # the converted training split, whose class numbers the others take
    label_file: Path | None = None  # what labels its images, where their names do not


def jobs_of(
    source: str | Path,
    target: str | Path,
    settings: Settings,
    *,
    append: bool = False,
    label_file: Path | None = None,
) -> tuple[list[Job], list[str]]:
    """(what is still to be converted, what a person should know of it).

    ``label_file`` is for the validation split, or for all of a source without splits.

    Of several splits each is written into the folder ``target``, which is made; those that an interrupted call with
    the same settings has completed are left out, unless they are to ``append`` to. ``UserError`` where ``target`` does
    not suit.
    """
    settings.check()
    target = Path(target)
    splits = splits_of(source)
    notes = list(splits.notes)
    if label_file is not None and splits.parts and splits.validation is None:
        raise UserError(
            f"--val-labels {label_file}: {splits.root} has no validation split: it holds "
            f"{' and '.join(part.name for part in splits.parts)} alone."
        )
    if len(splits.parts) < 2:
        if splits.parts:
            notes.append(f"converting {splits.train}, the only split of {splits.root}")
        return [Job("", splits.train, target, label_file=label_file)], notes
    build = cast("type[Writer]", resolve("format", settings.format, FORMATS))
    names = [part.name for part in splits.parts]
    if target.suffix in FILES:
        raise UserError(
            f"{splits.root} holds {' and '.join(f'{name}/' for name in names[:2])}, and each split is written by "
            f"itself: name a folder for them, such as {target.with_suffix('')}-{settings.format}, or convert one, such "
            f"as {splits.parts[0].path}."
        )
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and the splits {', '.join(names)} need a folder: choose another name.")
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist: make it first.")
    if target.resolve().is_relative_to(splits.root.resolve()):
        raise UserError(f"{target} lies inside its own source {splits.root}: write it elsewhere.")
    training = target / f"{names[0]}{build.ending}" if names[0] in TRAIN else None
    jobs = [
        Job(
            part.name,
            part.path,
            target / f"{part.name}{build.ending}",
            training if at else None,
            label_file if part.path == splits.validation else None,
        )
        for at, part in enumerate(splits.parts)
    ]
    if label_file is not None and splits.validation is not None:
        # A mistake in it, before the training split is converted: only whether it names its classes is not known yet.
        flat = open_source(splits.validation, image=settings.image, label=settings.label, sequential=True)
        label_by_file(flat, label_file, ())
    missing = [job for job in jobs if append or not _complete(job, settings)]
    for job in jobs:
        if job not in missing:
            sweep(job.target)
    if not missing:
        raise UserError(f"{target} holds {', '.join(names)} already: delete it, or choose another name.")
    notes += [f"{job.target} is there already, complete" for job in jobs if job not in missing]
    return missing, [*notes, f"splits of {splits.root}: {', '.join(names)}"]


def _complete(job: Job, settings: Settings) -> bool:
    """Whether ``job`` has been done: its manifest names the same settings and as many samples as the source has.

    ``UserError`` for a split that was, under other labels than this command gives it.
    """
    where = manifest_path(job.target)
    if not job.target.exists() or not where.exists():
        return False
    manifest = read_manifest(where)
    same = dict(manifest.settings) == {**settings.recorded(), **versions()}
    if not same:
        return False
    source = open_source(job.source, image=settings.image, label=settings.label, sequential=True)
    if len(manifest) + len(manifest.skipped) != len(source):
        return False
    if job.label_file is not None:
        source = label_by_file(source, job.label_file, manifest.classes)
    if job.split not in TRAIN and (one := next(relabelled(source, manifest), None)):
        raise UserError(f"{job.target}: {one}: delete it and {where.name}, or choose another name.")
    return True
