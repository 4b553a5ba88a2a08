"""What a run records: every step's terms and rates, every evaluation; as JSON lines and for trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvicreg import config_file
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Cursor, Terms
from fastvicreg.errors import UserError
from fastvicreg.show.lines import Lines, read_lines
from fastvicreg.show.trackers import LOCAL, Opened, Point, Tracker, names_of, tracker_class
from fastvicreg.show.trackers.guarded import Guarded

FILE = "metrics.jsonl"
SPREAD_FILE = "spread.jsonl"
"""Rows of ``show.spread``."""


class _Pending(NamedTuple):
    """A step whose terms the device still holds."""

    head: dict[str, Any]
    rates: dict[str, float]
    names: tuple[str, ...]
    values: Tensor
    seconds: float
    data_wait: float | Callable[[], float]
    copied: torch.cuda.Event | None
    """Recorded behind the copy of ``values`` to the host, where a device has still to make it."""


class Recorder:
    """Takes a step's scalars without waiting for them: the device copies them to the host when it has them.

    A row holds epoch, step (1 is the first), total, the method's parts (unweighted), its schedules, images_per_s and
    data_wait (share of the step's wall time lost to waiting for crops; on CUDA only while the device was idle too).
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        resumed_at: int = 0,
        trackers: tuple[str, ...] = (),
        settings: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = print,
    ) -> None:
        """Continue after step ``resumed_at``: later rows of an earlier run are dropped, as they will be made again.

        Without a folder, in all processes but one, rows are read from the device and returned but not written.
        ``trackers`` get them too, beside TensorBoard, with the run's ``settings``; ``note`` shows once what they
        complain of. ``UserError`` where one's program is not installed.
        """
        self._pending: list[_Pending] = []
        self._clock = time.perf_counter()
        self._file: Lines | None = None
        self._spread: Lines | None = None
        self._board: Tracker | None = None
        self._others: list[Guarded] = []
        self._folder, self._note = folder, note
        if folder is None:
            return
        kinds = {name: tracker_class(name) for name in trackers}
        opened = Opened(folder, resumed_at, settings or {})
        with self._disk():
            self._file = Lines(folder / FILE, resumed_at=resumed_at)
            if (folder / SPREAD_FILE).exists():
                self._spread = Lines(folder / SPREAD_FILE, resumed_at=resumed_at)
            self._board = tracker_class(LOCAL)(opened)
        self._others = [Guarded(name, kind, opened) for name, kind in kinds.items()]

    def start_clock(self, *, owed: float = 0.0) -> None:
        """The next step begins now: of what came between steps, only the seconds ``owed`` are charged to it."""
        self._clock = time.perf_counter() - owed

    def step(
        self,
        step: int,
        cursor: Cursor,
        terms: Terms,
        scalars: Mapping[str, float],
        *,
        images: int,
        data_wait: float | Callable[[], float],
    ) -> None:
        """Take one step's terms without reading them; ``images`` is the total batch.

        ``data_wait`` in seconds; a function is asked for them by ``flush``, once the device has done the step.
        """
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        row = {"epoch": cursor.epoch, "step": step}
        rates = {**scalars, "images_per_s": images / seconds}
        names = ("total", *terms.parts)
        values = torch.stack([terms.total.float(), *(part.float() for part in terms.parts.values())])
        values, copied = to_host(values)
        self._pending.append(_Pending(row, rates, names, values, seconds, data_wait, copied))

    def flush(self, *, late: int = 0) -> list[dict[str, Any]]:
        """Read, write and return the rows since the last flush, but for the newest ``late`` of a device.

        Reading the newest would wait until the device has nothing more to do.
        """
        late = late if self._pending and self._pending[-1].copied is not None else 0
        count = max(0, len(self._pending) - late)
        # Parted before a read that a failed device makes raise.
        pending, self._pending = self._pending[:count], self._pending[count:]
        if not pending:
            return []
        if (copied := pending[-1].copied) is not None:
            copied.synchronize()
        columns = torch.stack([step.values for step in pending]).tolist()
        rows = []
        for step, values in zip(pending, columns, strict=True):
            waited = step.data_wait() if callable(step.data_wait) else step.data_wait
            share = {"data_wait": min(1.0, waited / step.seconds)}
            rows.append(step.head | dict(zip(step.names, values, strict=True)) | step.rates | share)
        with self._disk():
            for row in rows:
                _write(self._file, row)
            self._track("train", rows)
        return rows

    def forget(self) -> None:
        """Drop the steps whose terms a device that has failed no longer gives."""
        self._pending = []

    def evaluation(self, step: int, epoch: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Write one evaluation's row and return it."""
        row = {"epoch": epoch, "step": step, **values}
        with self._disk():
            _write(self._file, row)
            self._track("eval", [row])
            if self._board is not None:
                self._board.flush()
        return row

    def spread(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of how the embeddings spread, to a log of their own that begins with the first."""
        if self._folder is None or self._file is None or not rows:
            return
        with self._disk():
            self._spread = self._spread or Lines(self._folder / SPREAD_FILE)
            for row in rows:
                _write(self._spread, row)
            self._track("spread", rows)

    def processes(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Give the trackers what an epoch showed of the processes; the log is the run's, however many made it."""
        with self._disk():
            self._track("processes", [{"epoch": epoch, "step": step, **values}])

    def close(self) -> None:
        """Flush the log and all trackers."""
        try:
            self.flush()
            if self._file is not None and self._board is not None:
                with self._disk():
                    self._file.close()
                    if self._spread is not None:
                        self._spread.close()
                    self._board.close()
        finally:
            for tracker in self._others:
                tracker.close()
            self._listen()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """``UserError`` where the disk refuses; nothing more is written then, nor complained of."""
        try:
            yield
        except OSError as error:
            files = self._file, self._spread
            self._file = self._spread = self._board = None
            for file in files:
                if file is not None:
                    with suppress(OSError):  # it still holds the line that did not fit
                        file.close()
            raise UserError(
                f"cannot write the log in {self._folder}: {error.strerror or error}; with room there, --resume goes "
                f"on from the newest checkpoint."
            ) from error

    def _track(self, group: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Give rows to TensorBoard and the other trackers, and show what the latter complain of."""
        points = [
            Point(group, row["step"], {k: v for k, v in row.items() if k not in ("epoch", "step")}) for row in rows
        ]
        if self._board is not None:
            self._board.log(points)
        for tracker in self._others:
            tracker.log(points)
        self._listen()

    def _listen(self) -> None:
        for tracker in self._others:
            for line in tracker.complaints():
                self._note(line)


def recorder_of(
    config: TrainConfig, folder: Path, resumed_at: int, note: Callable[[str], None], *, writes: bool
) -> Recorder:
    """A run's recorder, with the trackers that its settings name; ``writes``: in one process of all."""
    settings, trackers = json.loads(config_file.to_json(config)), names_of(config.run.log)
    where = folder if writes else None
    return Recorder(where, resumed_at=resumed_at, trackers=trackers, settings=settings, note=note)


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """``values`` on the host, and the event behind which they are valid: nobody has waited for a device."""
    if not values.is_cuda:
        return values, None
    host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def data_wait_share(rows: Iterable[Mapping[str, Any]]) -> float:
    """The share of these steps' time that was lost to waiting for crops."""
    times = [(1 / row["images_per_s"], row["data_wait"]) for row in rows]  # in units of a batch, the same for all
    return sum(time * share for time, share in times) / sum(time for time, _ in times)


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run; a last line cut short by a kill is left out. ``UserError`` where there are none."""
    try:
        return read_lines(Path(folder) / FILE)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {FILE}: it is not the folder of a run.") from None


def read_spread(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of how a run's embeddings spread; none where it has no such log."""
    path = Path(folder) / SPREAD_FILE
    return read_lines(path) if path.exists() else []


def _write(log: Lines | None, row: Mapping[str, Any]) -> None:
    if log is not None:
        log.write(row)
