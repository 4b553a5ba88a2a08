"""``fastvicreg convert SRC DST``: any dataset into a ``.beton`` or tar shards, which are read fast."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.stalls import FIRST, LIMIT, NEVER, Watchdog, watching

if TYPE_CHECKING:
    from fastvicreg.pipelines.convert import Settings, Summary
    from fastvicreg.pipelines.convert.parts import Job

NAMED = 10
"""Skipped samples shown; the manifest names all."""


@dataclass(frozen=True)
class ConvertOptions:
    """Write SRC as a .beton that FFCV reads, or as tar shards that DALI reads, with a manifest.

    Interrupted, the same command continues."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder of images, of class folders, of tar shards or of parquet files, a .beton file, a pattern of tar or parquet
    files in quotes, also compressed (.tar.gz, .tar.zst), or the address of such files (https://, s3://, gs://, hf://)."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """File to write, ending in .beton, or for shards the folder; must not exist. Where SRC holds splits (train/, val/):
    the folder for DST/train.beton and DST/val.beton, or DST/train/ and DST/val/."""
    format: str = "beton"
    """Format to write: beton (one file in SRC's order, made for --pipeline ffcv) or shards (a folder of tar files and
    indices, shuffled, made for dali); the pipeline's name stands for it too."""
    max_size: int = 0
    """Shrink images whose longest side has more pixels; 0: no limit."""
    quality: int = 90
    """JPEG quality of what cannot keep its bytes (all but 8-bit baseline YCbCr or grey JPEGs within --max-size)."""
    reencode: bool = False
    """Encode every image again: photographs of high quality become smaller, and so faster to decode."""
    raw: bool = False
    """Store pixels instead of JPEGs (beton)."""
    proportion: float | None = None
    """Share of the images stored as JPEG, 0 to 1; the rest as pixels (beton)."""
    decode: bool = False
    """Decode every image fully, also one whose bytes are kept; re-encode what decodes with a warning."""
    to_rgb: str = "range"
    """Images of more than 8 bits (16-bit, integer, float): range scales each from its own smallest value to its
    largest, LOW:HIGH from these two (0:65535), refuse skips them."""
    image: str = ""
    """What holds the image where samples have several: a member of tar shards (jpg, input.png), a field of a .beton, a
    column of parquet files."""
    label: str = ""
    """What holds the class, where its name does not tell: a member of tar shards (cls, txt, json:FIELD), a field of a
    .beton, a column of parquet files. Names get numbers in sorted order."""
    val_labels: str | None = None
    """Labels of validation images that lie flat: ImageNet's ground truth, lines of "file label", CSV or JSON. Of SRC's
    validation split, or of all of a SRC without splits."""
    page_size: int = 8
    """MiB a page: a power of two, 2 to 2048 (beton)."""
    shard_size: int = 256
    """Most MiB a tar file has (shards)."""
    seed: int = 0
    """The order in shards; which images --proportion takes."""
    max_skipped: str = ""
    """Stop once more samples are skipped: a number, or a share such as 1%; any number is skipped by default."""
    append: bool = False
    """Add SRC's new files, by name, to a DST that the same options have written: shards get more shards; a .beton is
    written anew from what it holds, nothing encoded twice."""
    replaced: Literal["refuse", "take", "keep"] = "refuse"
    """--append where files of SRC were replaced under their old names since: refuse names them, take stores them anew
    (beton), keep leaves what is stored. Those later than DST's manifest are compared."""
    workers: int = 0
    """Threads; 0: one a core. The bytes do not depend on it."""
    stall_timeout: float = LIMIT
    """Seconds without a sample after which the command ends and says where it is stuck; 0: never."""
    json: str | None = None
    """Write the figures to this file."""


def main(arguments: Sequence[str]) -> int:
    """Convert and tell what was written; returns 0 also where samples were skipped."""
    options = parse(ConvertOptions, arguments, "convert")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: give a number of threads, or 0 for one a core.")

    from fastvicreg.pipelines.convert import Settings

    fields = {field.name for field in dataclasses.fields(Settings)} - {"page_size", "shard_size"}
    settings = Settings(
        **{name: getattr(options, name) for name in fields},
        page_size=options.page_size << 20,
        shard_size=options.shard_size << 20,
    )
    settings.check()
    if options.replaced != "refuse" and not options.append:
        raise UserError(f"--replaced {options.replaced} goes with --append: a whole conversion reads every file.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is done is committed, as at Ctrl-C
    from fastvicreg.pipelines.fetch import needs_copy

    with watching(options.stall_timeout) as watch:
        watch("opening the data", factor=FIRST)
        _refuse_early(options)
        copied = needs_copy(options.src)
    # What is brought here has limits of its own.
    with _local(options, copied=copied) as source, watching(options.stall_timeout) as watch:
        _convert_all(source, settings, options, watch)
    return 0


def _refuse_early(options: ConvertOptions) -> None:
    """``UserError`` for what would end the command after the source was brought here."""
    from fastvicreg.pipelines.convert.workspace import FILES, refuse_existing

    target = Path(options.dst)
    if not options.append and target.suffix in FILES:
        refuse_existing(target)
    if not target.parent.is_dir():
        raise UserError(f"the folder {target.parent} does not exist: make it first.")
    if options.append and not os.path.lexists(options.dst):
        raise UserError(f"--append: {options.dst} does not exist: leave --append out, which writes it.")


@contextlib.contextmanager
def _local(options: ConvertOptions, *, copied: bool) -> Iterator[str | Path]:
    """The source on this disk: as it is, or for as long as it takes in DST.source, fetched or unpacked."""
    from fastvicreg.pipelines.fetch import local_copy
    from fastvicreg.show.progress import WalkProgress

    if not copied:
        yield options.src
        return
    folder = Path(f"{options.dst.rstrip('/')}.source")
    print(f"{options.src} is brought to {folder} first, which is deleted at the end", flush=True)
    with WalkProgress("bringing", "", unit="files") as progress:
        source = local_copy(options.src, folder, lambda done, total, size: progress.update(done, total, size, 0))
    yield source
    shutil.rmtree(folder)


def _convert_all(source: str | Path, settings: Settings, options: ConvertOptions, watch: Watchdog) -> None:
    """Convert each split, and tell what was written."""
    from fastvicreg.pipelines.convert.parts import jobs_of

    watch("opening the data", factor=FIRST)
    label_file = Path(options.val_labels) if options.val_labels else None
    jobs, notes = jobs_of(source, options.dst, settings, append=options.append, label_file=label_file)
    for note in notes:
        print(note)
    summaries = []
    for job in jobs:
        own = bool(job.split) and not job.target.parent.exists()
        if own:
            job.target.parent.mkdir()
        try:
            summaries.append(_convert(job, settings, options, watch))
        except UserError:
            if own:
                with contextlib.suppress(OSError):  # it holds what the same command continues
                    job.target.parent.rmdir()
            raise
        print("\n".join(lines(summaries[-1])))
    data = jobs[-1].target.parent if jobs[-1].split else summaries[-1].path
    print(f"next: fastvicreg train --pipeline {settings.pipeline} --data {data}   or: fastvicreg verify {data}")
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document("convert", [row(summary) for summary in summaries], 1))


def _convert(job: Job, settings: Settings, options: ConvertOptions, watch: Watchdog) -> Summary:
    from fastvicreg.pipelines.convert import append_dataset, convert_dataset
    from fastvicreg.pipelines.convert.conversion import Progress
    from fastvicreg.show.progress import WalkProgress

    def told(state: Progress) -> None:
        # Behind the last sample everything is put on the disk, and a part of it into its place.
        watch(f"converting {job.source}", factor=FIRST if state.done == state.total else 1)
        progress.update(*state)

    watch(f"opening {job.source}", factor=FIRST)
    try:
        with WalkProgress(f"converting {job.split}".strip(), "skipped") as progress:
            append = options.append and job.target.exists()
            write = partial(append_dataset, replaced=options.replaced) if append else convert_dataset
            return write(
                job.source,
                job.target,
                settings,
                workers=options.workers,
                max_skipped=options.max_skipped,
                numbered_like=job.numbered_like,
                label_file=job.label_file,
                stall=options.stall_timeout or NEVER,
                on_progress=told,
            )
    except KeyboardInterrupt:
        print(f"fastvicreg: the same command continues; {job.target}.partial holds what is done", file=sys.stderr)
        raise


def lines(summary: Summary) -> list[str]:
    """What a person wants to know of a finished conversion."""
    from fastvicreg.pipelines.manifest import manifest_path
    from fastvicreg.pipelines.sources import classes_in_words

    mean = summary.bytes / summary.images / 1e3
    classes = classes_in_words(summary.classes)
    text = [
        f"{summary.path}: {summary.images:,} images, {classes}, {summary.bytes / 1e6:,.1f} MB (mean {mean:,.1f} kB): "
        f"{summary.kept:,} kept as they were, {summary.encoded:,} re-encoded, {summary.raw:,} as pixels"
    ]
    if summary.skipped:
        text.append(f"skipped {len(summary.skipped):,}, listed in {manifest_path(summary.path)}:")
        reasons = Counter(_kind(entry.reason) for entry in summary.skipped)
        first = {_kind(entry.reason): entry.path for entry in reversed(summary.skipped)}
        text += [f"  {n:,} x {reason} ({first[reason]})" for reason, n in reasons.most_common(NAMED)]
        if len(reasons) > NAMED:
            text.append(f"  and {len(reasons) - NAMED:,} other reasons")
    text += summary.notes
    if summary.resumed:
        text.append(f"continued after {summary.resumed:,} samples of an interrupted run")
    text.append(f"{summary.seconds:,.1f} s, {summary.images_per_s:,.0f} images/s, {summary.mb_per_s:,.0f} MB/s")
    return text


def _kind(reason: str) -> str:
    """A reason without the figures in its brackets, so that alike ones are counted together."""
    return re.sub(r" \([^)]*\)", "", reason)


def row(summary: Summary) -> dict[str, Any]:
    """The figures, for ``--json``."""
    figures = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}
    skipped = [entry.__dict__ for entry in summary.skipped]
    mean = summary.bytes / summary.images
    return {**figures, "path": str(summary.path), "mean_bytes": mean, "skipped": skipped, "notes": list(summary.notes)}
