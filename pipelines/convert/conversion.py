"""One dataset's conversion: the entries journalled and pending, and the loop that makes them."""

from __future__ import annotations

import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.changes import PACKAGES
from fastvicreg.pipelines.convert.journal import ENTRY, Journal
from fastvicreg.pipelines.convert.prepare import Sample, Stored, prepare
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.convert.writer import Writer
from fastvicreg.pipelines.manifest import Manifest, Skipped
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.to_rgb import COLOUR
from fastvicreg.stalls import LIMIT


@runtime_checkable
class Prepared(Protocol):
    """A source that has some of its samples in their stored form."""

    def prepared(self, index: int) -> Sample | None: ...


class NothingReadError(UserError):
    """No sample of the source can be read."""


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


@dataclass(frozen=True)
class MostSkipped:
    """How many samples a conversion may skip; ``text`` is a number, a share such as "1%", or "" for any."""

    text: str = ""

    def __post_init__(self) -> None:
        """``UserError`` where the text is neither."""
        try:
            good = not self.text or (self._number() >= 0 and (self._number() <= 100 or not self.text.endswith("%")))
        except ValueError:
            good = False
        if not good:
            raise UserError(f"--max-skipped {self.text}: give a number of samples, or a share such as 1%.")

    def _number(self) -> float:
        return float(self.text[:-1]) if self.text.endswith("%") else int(self.text)

    def check(self, reasons: list[str], done: int, total: int) -> None:
        """``UserError`` once more are skipped than may be, of ``total`` samples."""
        if not self.text:
            return
        allowed = self._number() / 100 * total if self.text.endswith("%") else self._number()
        if len(reasons) > allowed:
            raise UserError(
                f"{len(reasons):,} of the first {done:,} samples were skipped, more than --max-skipped {self.text} "
                f"(the last: {reasons[-1]}): mend them, or allow more; the same command continues."
            )


class Conversion:
    """The entries of one dataset, journalled and pending, and the loop that makes them in the order ``order_N``."""

    def __init__(
        self,
        source: Source,
        order_N: np.ndarray,
        settings: Settings,
        writer: Writer,
        journal: Journal,
        commit_seconds: float,
        most_skipped: MostSkipped,
    ) -> None:
        self._source, self._settings, self._writer, self._journal = source, settings, writer, journal
        self._order_N = order_N
        self._commit_seconds = commit_seconds
        self._most_skipped = most_skipped
        self._tried_again = self._try_skipped_again()
        self._frames = [journal.entries]
        self._reasons = list(journal.reasons)
        self._pending: list[tuple[int, ...]] = []
        self._pending_reasons: list[str] = []
        self._done = self._resumed = len(journal.entries)
        self._bytes = self._before = int(journal.entries["size"].sum())
        self._deep: Counter[str] = Counter()
        self._started = time.monotonic()
        writer.resume(self.stored())

    def run(self, workers: int, on_progress: Callable[[Progress], None], stall: float = LIMIT) -> None:
        """Prepare and write the samples still missing; what is written is journalled even when this is interrupted.

        ``StalledError`` where samples give nothing for ``stall`` seconds.
        """
        total, committed = len(self._source), time.monotonic()
        # Kept bytes take so little work that a thread is given many; of raw pixels few fit into memory.
        large = self._settings.raw or self._settings.proportion is not None
        chunk = 1 if large else 16
        left = range(self._done, total)
        samples = in_order(self._prepare, left, workers=workers, chunk=chunk, name="fastvicreg-convert", stall=stall)
        try:
            with closing(samples):
                for sample in samples:
                    self._take(sample)
                    self._most_skipped.check(self._reasons, self._done, total)
                    on_progress(Progress(self._done, total, self._bytes, len(self._reasons)))
                    if time.monotonic() - committed > self._commit_seconds:
                        self._commit()
                        committed = time.monotonic()
        finally:
            self._commit()
        if not len(self.stored()):
            first = self._skipped()[0]
            raise NothingReadError(f"none of the {total} samples can be read (first: {first.path}: {first.reason}).")

    def _try_skipped_again(self) -> str:
        """Forget all from the first skipped sample on that can be read by now; which one that is, or "".

        What a sample's bytes are decides where those after it lie, so that they are written again.
        """
        for place in np.flatnonzero(self._journal.entries["stored"] == Stored.SKIPPED).tolist():
            if self._prepare(place).stored != Stored.SKIPPED:
                self._journal.cut(place, Stored.SKIPPED)
                return self._source.name(int(self._order_N[place]))
        return ""

    def _prepare(self, place: int) -> Sample:
        index = int(self._order_N[place])
        stored = self._source.prepared(index) if isinstance(self._source, Prepared) else None
        return prepare(self._source, index, self._settings) if stored is None else stored

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
            settings={**self._settings.recorded(), **versions()},
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
            notes=(*notes_of(self._source), *self._notes(), *left_out(self._source)),
        )

    def _notes(self) -> Iterator[str]:
        """What a person should know; the depths of an interrupted run's part are not known any more."""
        if self._tried_again:
            yield f"{self._tried_again} was skipped before and can be read now: written again from there on"
        yield from self._writer.notes()
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


def versions() -> dict[str, str]:
    """Of the packages that encode."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}
