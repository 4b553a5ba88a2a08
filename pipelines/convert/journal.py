"""What a conversion has written so far, in a file that survives being cut anywhere."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np

from fastvicreg.pipelines.manifest import digest

ENTRY = np.dtype(
    [("stored", "u1"), ("label", "<i8"), ("width", "<u4"), ("height", "<u4"), ("size", "<u8"), ("hash", "<u8")]
)
"""One source sample, skipped ones included; ``stored`` is a ``Stored``, ``size`` in bytes."""
FRAME = struct.Struct("<QQQ")  # rows, bytes of text, XXH3-64 of both


class Journal:
    """Frames of entries, each with its checksum: a torn one at the end is dropped when the file is opened again."""

    def __init__(self, path: Path) -> None:
        """Read the frames that are whole; ``entries`` and ``reasons`` (of the skipped ones) hold them."""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        frames: list[np.ndarray] = []
        self.reasons: list[str] = []
        data = path.read_bytes()
        end = 0
        while (frame := _frame(data, end)) is not None:
            rows, reasons, end = frame
            frames.append(rows)
            self.reasons += reasons
        self.entries = np.concatenate(frames) if frames else np.empty(0, ENTRY)
        os.ftruncate(self._handle, end)
        os.lseek(self._handle, end, os.SEEK_SET)

    def append(self, entries: np.ndarray, reasons: list[str]) -> None:
        """Add a frame and wait until it is on the disk; ``OSError`` where that fails."""
        text = json.dumps(reasons).encode()
        body = entries.tobytes() + text
        write_all(self._handle, FRAME.pack(len(entries), len(text), digest(body)) + body)
        os.fsync(self._handle)

    def cut(self, rows: int, skipped: int) -> None:
        """Keep the first ``rows`` entries alone; ``skipped`` is what ``stored`` says of those that have a reason."""
        entries = self.entries[:rows]
        self.reasons = self.reasons[: int((entries["stored"] == skipped).sum())]
        self.entries = entries
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        if rows:
            self.append(entries, self.reasons)

    def close(self) -> None:
        os.close(self._handle)


def write_all(handle: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of ``data``, at ``offset`` or the file's position; ``OSError`` where it does not fit."""
    view = memoryview(data).cast("B")
    while view:
        written = os.write(handle, view) if offset is None else os.pwrite(handle, view, offset)
        view = view[written:]
        offset = None if offset is None else offset + written


def _frame(data: bytes, start: int) -> tuple[np.ndarray, list[str], int] | None:
    """(entries, reasons, offset after it) of the frame at ``start``; None where there is no whole one."""
    if start + FRAME.size > len(data):
        return None
    rows, text, checksum = FRAME.unpack_from(data, start)
    middle = start + FRAME.size + rows * ENTRY.itemsize
    end = middle + text
    if end > len(data) or digest(memoryview(data)[start + FRAME.size : end]) != checksum:
        return None
    return np.frombuffer(data, ENTRY, rows, start + FRAME.size), json.loads(data[middle:end]), end
