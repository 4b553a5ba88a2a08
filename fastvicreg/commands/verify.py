"""``fastvicreg verify DATA``: whether a dataset is whole; 1 where it is not, 2 where the path is no dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastvicreg.commandline import parse
from fastvicreg.errors import UserError
from fastvicreg.stalls import FIRST, LIMIT, NEVER, Watchdog, watching

if TYPE_CHECKING:
    from fastvicreg.pipelines.pairs.config import PairConfig
    from fastvicreg.pipelines.verify import Report

SHOWN = 20
"""Faults printed; ``--json`` has all."""


@dataclass(frozen=True)
class VerifyOptions:
    """Check a dataset: structure, checksums where there is a manifest, and each image's markers."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder of images or of tar shards, a .beton file, or a folder with train/ and val/ of these: each is checked.
    Also the address of shards or a .beton (https://, s3://, gs://, hf://)."""
    image: str = ""
    """What holds the image where samples have several: a member of tar shards (jpg, input.png), a field of a .beton, a
    column of parquet files."""
    label: str = ""
    """What holds the class, where its name does not tell: a member of tar shards (cls, txt, json:FIELD), a field of a
    .beton, a column of parquet files. Names get numbers in sorted order."""
    pair: tuple[str, ...] = ()
    """Two modalities of each sample, as train's --pair: both members are read and decoded, and partners that are
    missing are counted."""
    unpaired: Literal["refuse", "skip"] = "refuse"
    """With --pair: samples that lack one of the two are faults, or with skip only counted, as train leaves them out."""
    decode: bool = False
    """Decode every image fully."""
    workers: int = 0
    """Threads; 0: one a core."""
    stall_timeout: float = LIMIT
    """Seconds without a sample after which the command ends and says where it is stuck; 0: never."""
    json: str | None = None
    """Write the figures and all faults to this file."""


def main(arguments: Sequence[str]) -> int:
    """Check and tell; returns 1 where faults were found."""
    options = parse(VerifyOptions, arguments, "verify")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: give a number of threads, or 0 for one a core.")

    from fastvicreg.pipelines.pairs.config import PairConfig

    pairs = PairConfig(pair=options.pair, unpaired=options.unpaired) if options.pair else None
    if pairs is None and options.unpaired != "refuse":
        raise UserError(f"--unpaired {options.unpaired} goes with --pair: give the two modalities, or leave it out.")
    if pairs is not None:
        pairs.check()
        if options.image:
            raise UserError(
                f"--image {options.image}: --pair {' '.join(options.pair)} names the members; leave it out."
            )

    with watching(options.stall_timeout) as watch:
        watch("opening the data", factor=FIRST)
        here = _here(options.data, options.stall_timeout)
        paths = _splits(here) if pairs is None else _paired_splits(here)
        reports = [_verify(path, options, pairs, watch) for path in paths]
    if options.json:
        from fastvicreg.provenance import document, write_json

        write_json(options.json, document("verify", [row(report) for report in reports], 1))
    return 1 if any(report.findings for report in reports) else 0


def _splits(data: str | Path) -> list[Path]:
    from fastvicreg.pipelines.sources import splits_of

    splits = splits_of(data)
    for note in splits.notes:
        print(note)
    return [part.path for part in splits.parts] or [splits.root]


def _paired_splits(data: str | Path) -> list[Path]:
    from fastvicreg.pipelines.pairs.source import pair_splits

    return [part for part in pair_splits(data) if part is not None]


def _here(path: str, stall: float) -> str | Path:
    """``path``, or what to open of the remote files that it names."""
    from fastvicreg.pipelines.fetch import is_remote
    from fastvicreg.pipelines.fetch.placed import placed
    from fastvicreg.show.progress import WalkProgress

    if not is_remote(path):
        return path
    with WalkProgress(f"looking at {path}:", "", unit="files") as progress:
        found = placed(
            path,
            cache_gb=0,  # each sample is read once
            all_headers=True,
            patience=0.8 * stall,  # it names what does not come before the wait for a sample ends
            told=lambda done, total, size: progress.update(done, total, size, 0),
        )
    print(found.note)
    return found.path


def _verify(path: Path, options: VerifyOptions, pairs: PairConfig | None, watch: Watchdog) -> Report:
    from fastvicreg.pipelines.pairs.check import verify_pairs
    from fastvicreg.pipelines.verify import verify_dataset
    from fastvicreg.show.progress import WalkProgress

    def told(done: int, total: int, size: int, faults: int) -> None:
        watch(f"verifying {path}")
        progress.update(done, total, size, faults)

    watch(f"opening {path}", factor=FIRST)
    with WalkProgress("verifying", "faults") as progress:
        check = partial(verify_dataset, image=options.image) if pairs is None else partial(verify_pairs, config=pairs)
        report = check(
            path,
            label=options.label,
            decode=options.decode,
            workers=options.workers,
            stall=options.stall_timeout or NEVER,
            on_progress=told,
        )
    print("\n".join(lines(report)))
    return report


def lines(report: Report) -> list[str]:
    """The first faults by sample and path, then the count and what was checked, and images of more than 8 bits."""
    from fastvicreg.pipelines.sources import classes_in_words
    from fastvicreg.pipelines.to_rgb import COLOUR

    text = [
        f"sample {finding.sample}, {finding.path}: {finding.fault}" if finding.sample >= 0 else finding.fault
        for finding in report.findings[:SHOWN]
    ]
    if len(report.findings) > SHOWN:
        text.append(f"and {len(report.findings) - SHOWN:,} more")
    if not report.samples:
        return [*text, f"{report.path}: damaged as a whole, so no sample was checked; {report.seconds:,.1f} s"]
    classes = classes_in_words(report.classes)
    hashed = "hashes checked" if report.hashed else "no manifest, so no hashes"
    how = "decoded" if report.decoded else "not decoded (--decode does)"
    text.append(
        f"{report.path}: {len(report.findings):,} faults in {report.samples:,} samples, {classes}, "
        f"{report.bytes / 1e6:,.1f} MB, {hashed}, {how}; {report.seconds:,.1f} s"
    )
    text += report.notes
    text += [
        f"{count:,} images of {kind} bits (such as {first})"
        if kind == COLOUR
        else f"{count:,} images of {kind} (such as {first}): each is scaled by its own range; --to-rgb of train and "
        "convert takes another rule"
        for kind, count, first in report.deep
    ]
    return text


def row(report: Report) -> dict[str, Any]:
    """The figures and all faults, for ``--json``."""
    findings = [finding._asdict() for finding in report.findings]
    return {**vars(report), "path": str(report.path), "findings": findings, "faults": len(findings)}
