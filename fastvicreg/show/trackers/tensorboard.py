"""TensorBoard's files in the run's folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch.utils.tensorboard import SummaryWriter

from fastvicreg.show.trackers import Opened, Point


class TensorBoard:
    """Writes below ``tensorboard/``. Its thread writes; what a disk refuses comes up as ``OSError`` in a later call."""

    note = ""

    def __init__(self, opened: Opened) -> None:
        threading.excepthook = _quiet_writer
        purged = opened.resumed_at + 1 if opened.resumed_at else None
        self._writer = SummaryWriter(str(opened.folder / "tensorboard"), purge_step=purged)

    def log(self, points: Sequence[Point]) -> None:
        """Add every value under "group/name"."""
        for group, step, values in points:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _quiet_writer(failure: threading.ExceptHookArgs) -> None:
    """Leave a disk's refusal in TensorBoard's thread to the caller's next write, which gets the same error."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failure)
