"""The conversion itself: samples prepared by threads, written in the format's order, journalled, then published."""

from __future__ import annotations

import errno
import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from xxhash import xxh3_64

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.journal import ENTRY, Journal
from fastvicreg.pipelines.convert.prepare import Sample, Stored, prepare
from fastvicreg.pipelines.convert.settings import FORMATS, Settings
from fastvicreg.pipelines.convert.workspace import Workspace, refuse_target
from fastvicreg.pipelines.convert.writer import Writer
from fastvicreg.pipelines.draws import permutation
from fastvicreg.pipelines.manifest import Manifest, Skipped, to_bytes
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.sources import one_dataset, open_source
from fastvicreg.pipelines.to_rgb import COLOUR
from fastvicreg.registry import resolve

ENCODERS = ("pillow", "simplejpeg")
"""Packages whose version may change re-encoded bytes."""


BEFORE_TRAINING = -1
"""The epoch whose permutation shuffles a dataset as it is written: the same seed's epochs shuffle it otherwise."""


class Progress(NamedTuple):
    """How far a conversion is; counted over all runs that it took."""

    done: int  # samples of the source
    total: int
    bytes: int  # stored
    skipped: int


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote; ``seconds`` and ``resumed`` tell this run's part."""

    path: Path
    images: int
    classes: int  # 0: no labels
    kept: int
    encoded: int
    raw: int
    bytes: int  # stored by the samples
    skipped: tuple[Skipped, ...]
    resumed: int  # samples that an earlier, interrupted run had done
    seconds: float
    images_per_s: float
    mb_per_s: float
    notes: tuple[str, ...]


def convert_dataset(
    source_path: str | Path,
    target: str | Path,
    settings: Settings | None = None,
    *,
    workers: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    commit_seconds: float = 5.0,
) -> Summary:
    """Write the dataset ``source_path`` to ``target``, with its manifest beside the file or in the folder.

    The bytes depend on source and settings alone. Interrupted, an identical call continues, having lost at most
    ``commit_seconds`` of work; ``target`` appears only when it is complete and on the disk. Memory: a few dozen
    encoded samples, of raw ones 4 a thread. ``UserError`` for a mistake or a full disk.
    """
    settings = settings or Settings()
    settings.check()
    source_path, target = Path(source_path), Path(target)
    build = cast("type[Writer]", resolve("format", settings.format, FORMATS))
    refuse_target(source_path, target, build.ending)
    source_path = one_dataset(source_path, "convert")
    source = open_source(source_path, to_rgb=settings.to_rgb, label=settings.label)
    order_N = _shuffled(settings.seed, len(source)) if build.shuffled else np.arange(len(source))
    try:
        with closing(Workspace(target, _command(source, source_path, settings))) as work:
            with closing(build(work.data, len(source), settings)) as writer, closing(Journal(work.journal)) as journal:
                conversion = _Conversion(source, order_N, settings, writer, journal, commit_seconds)
                conversion.run(workers, on_progress)
                index_hash = writer.finish(conversion.stored())
            work.publish(to_bytes(conversion.manifest(index_hash)))
    except OSError as error:
        raise _refused(error, target) from error
    return conversion.summary(target)


class _Conversion:
    """The entries of one dataset, journalled and pending, and the loop that makes them in the order ``order_N``."""

    def __init__(
        self,
        source: Source,
        order_N: np.ndarray,
        settings: Settings,
        writer: Writer,
        journal: Journal,
        commit_seconds: float,
    ) -> None:
        self._source, self._settings, self._writer, self._journal = source, settings, writer, journal
        self._order_N = order_N
        self._commit_seconds = commit_seconds
        self._frames = [journal.entries]
        self._reasons = list(journal.reasons)
        self._pending: list[tuple[int, ...]] = []
        self._pending_reasons: list[str] = []
        self._done = self._resumed = len(journal.entries)
        self._bytes = self._before = int(journal.entries["size"].sum())
        self._deep: Counter[str] = Counter()
        self._started = time.monotonic()
        writer.resume(self.stored())

    def run(self, workers: int, on_progress: Callable[[Progress], None]) -> None:
        """Prepare and write the samples still missing; what is written is journalled even when this is interrupted."""
        total, committed = len(self._source), time.monotonic()
        # Kept bytes take so little work that a thread is given many; of raw pixels few fit into memory.
        large = self._settings.raw or self._settings.proportion is not None
        samples = in_order(self._prepare, range(self._done, total), workers=workers, chunk=1 if large else 16)
        try:
            with closing(samples):
                for sample in samples:
                    self._take(sample)
                    on_progress(Progress(self._done, total, self._bytes, len(self._reasons)))
                    if time.monotonic() - committed > self._commit_seconds:
                        self._commit()
                        committed = time.monotonic()
        finally:
            self._commit()
        if not len(self.stored()):
            first = self._skipped()[0]
            raise UserError(f"none of the {total} samples can be read (first: {first.path}: {first.reason}).")

    def _prepare(self, place: int) -> Sample:
        return prepare(self._source, int(self._order_N[place]), self._settings)

    def stored(self) -> np.ndarray:
        """Journalled entries, without the skipped samples."""
        entries = np.concatenate(self._frames)
        return entries[entries["stored"] != Stored.SKIPPED]

    def manifest(self, index_hash: int) -> Manifest:
        entries, names = np.concatenate(self._frames), self._source.name
        kept = entries["stored"] != Stored.SKIPPED
        stored = entries[kept]
        return Manifest(
            hash_N=stored["hash"],
            size_N=stored["size"],
            label_N=stored["label"],
            width_N=stored["width"],
            height_N=stored["height"],
            paths=[names(index) for index in self._order_N[kept].tolist()],
            classes=self._source.classes,
            skipped=self._skipped(),
            settings={**asdict(self._settings), **versions()},
            index_hash=index_hash,
        )

    def summary(self, target: Path) -> Summary:
        counts = np.bincount(np.concatenate(self._frames)["stored"], minlength=len(Stored))
        seconds = time.monotonic() - self._started
        return Summary(
            path=target,
            images=int(counts[: Stored.SKIPPED].sum()),
            classes=len(self._source.classes),
            kept=int(counts[Stored.KEPT]),
            encoded=int(counts[Stored.ENCODED]),
            raw=int(counts[Stored.RAW]),
            bytes=self._bytes,
            skipped=self._skipped(),
            resumed=self._resumed,
            seconds=seconds,
            images_per_s=(self._done - self._resumed) / seconds,
            mb_per_s=(self._bytes - self._before) / seconds / 1e6,
            notes=(*notes_of(self._source), *self._writer.notes(), *self._deepened(), *left_out(self._source)),
        )

    def _deepened(self) -> Iterator[str]:
        """What became of images of more than 8 bits; those of an interrupted run's part are not known any more."""
        for kind, count in sorted(self._deep.items()):
            how = "" if kind == COLOUR else f", scaled by --to-rgb {self._settings.to_rgb}"
            yield f"{count:,} images of {kind}{how}"

    def _take(self, sample: Sample) -> None:
        if sample.stored == Stored.SKIPPED:
            self._reasons.append(sample.reason)
            self._pending_reasons.append(sample.reason)
        else:
            self._writer.add(sample)
            self._deep.update([sample.deep] if sample.deep else [])
        size = len(sample.payload)
        self._pending.append((sample.stored, sample.label, sample.width, sample.height, size, sample.hash))
        self._done += 1
        self._bytes += size

    def _commit(self) -> None:
        """Data first, then the journal that vouches for it."""
        if self._pending:
            self._writer.sync()
            frame = np.array(self._pending, ENTRY)
            self._journal.append(frame, self._pending_reasons)
            self._frames.append(frame)
            self._pending, self._pending_reasons = [], []

    def _skipped(self) -> tuple[Skipped, ...]:
        """In the source's order, whatever the format's."""
        skipped = np.concatenate(self._frames)["stored"] == Stored.SKIPPED
        indices = self._order_N[: len(skipped)][skipped].tolist()
        return tuple(
            Skipped(self._source.name(index), reason)
            for index, reason in sorted(zip(indices, self._reasons, strict=True))
        )


def _command(source: Source, path: Path, settings: Settings) -> dict[str, Any]:
    """All that decides the written bytes, the source's content excepted."""
    names = xxh3_64()
    for index in range(len(source)):
        names.update(f"{source.name(index)}\0{source.label(index)}\n".encode("utf-8", "surrogateescape"))
    return {
        "source": str(path.resolve()),
        "samples": len(source),
        "names": names.hexdigest(),
        **asdict(settings),
        **versions(),
    }


def _shuffled(seed: int, samples: int) -> np.ndarray:
    """index_N: an order of the source that depends on the seed alone."""
    same_bits = int(np.uint64(seed).astype(np.int64))
    return permutation(same_bits, BEFORE_TRAINING, samples)


def versions() -> dict[str, str]:
    """Of the packages that encode."""
    return {package: importlib.metadata.version(package) for package in ENCODERS}


def _refused(error: OSError, target: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"no room for {target} ({error.strerror}): make some, then run the same command again, which continues; "
            f"or delete {target.with_name(target.name + '.partial')}."
        )
    return UserError(f"cannot write {target}: {error.strerror or error}.")
