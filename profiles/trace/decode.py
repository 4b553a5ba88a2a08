"""Streams a profiler's JSON: bounded memory, gzip or not, whatever stands before and after the list of events."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.profiles.trace.blocks import Ending, blocks
from fastvicreg.profiles.trace.entries import Event, OddError, decode_plain, event_of
from fastvicreg.profiles.trace.mend import parse, parse_entries

HEADER_LIMIT = 64 << 20
"""Bytes before the list of events, at most."""

_EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")
_TAIL = re.compile(rb'\}\s*(\])\s*(?:\}|,\s*"\w|\Z)')
_TOKENS = re.compile(rb'"(?:[^"\\]+|\\.)*(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_NEAR_END = 1 << 16
_STRAY = 4 << 20
PIECE = 4 << 20
"""Bytes of text that are decoded at once by another process."""


class Stream:
    """The events of one file, chunk by chunk; ``header`` is complete once they are all read.

    ``malformed`` counts entries that are no events and were left out, ``mended`` names the faults that were mended,
    ``ending`` tells whether the list of events ends too early, and what is wrong with a compressed file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.malformed = 0
        self.mended: set[str] = set()
        self.ending = Ending()
        self._read = 0
        self._plain = False

    def chunks(self) -> Generator[list[Event], None, None]:
        """Lists of events in the file's order.

        ``UserError`` where the file cannot be read, is no trace, or ends before its first event does.
        """
        text = blocks(self.path, self.ending)
        try:
            buffer, bare = self._open(text)
            for block in text:
                cut = _last_cut(buffer)
                events = self._decode(buffer[:cut] + b"]") if cut else None
                if events is None:
                    cut, closed = _scan(buffer)
                    if closed is not None:
                        buffer += block
                        break
                    if cut == 1 and len(buffer) > _STRAY:  # a stray quote swallows all that follows it
                        cut = max(_last_cut(buffer), 1)
                    if cut == 1 and len(buffer) > HEADER_LIMIT:
                        raise UserError(f"{self.path}: one event of more than {len(buffer):,} bytes; this is no trace.")
                    events = self._decode(buffer[:cut] + b"]", final=True) or []
                yield events
                self._read += len(events)
                # What was cut off begins with the comma between two events.
                buffer = b"[" + (buffer[cut:] + block).lstrip(b", \r\n\t")
            yield self._finish(b"".join([buffer, *text]), bare)
        finally:
            text.close()

    def pieces(self) -> Generator[bytes | list[Event], None, None]:
        """JSON lists of events, which ``decode_plain`` reads, in the file's order, and the last events themselves.

        Errors as of ``chunks``; ``OddError`` where the file's end is no plain JSON, or no cut is found.
        """
        self._plain = True
        text = blocks(self.path, self.ending)
        try:
            buffer, bare = self._open(text)
            parts, size = [buffer], len(buffer)
            for block in text:
                if size >= PIECE:
                    buffer = b"".join(parts)
                    if cut := _last_cut(buffer):
                        yield buffer[:cut] + b"]"
                        self._read += 1
                        buffer = b"[" + buffer[cut:].lstrip(b", \r\n\t")
                    elif size > _STRAY + PIECE:
                        raise OddError
                    parts, size = [buffer], len(buffer)
                parts.append(block)
                size += len(block)
            buffer = b"".join(parts)
            # As little as can be is left for this process, which must look for the list's end token by token.
            end = next((found.start() for found in _TAIL.finditer(buffer, max(0, len(buffer) - _NEAR_END))), None)
            if cut := _last_cut(buffer[:end]):
                yield buffer[:cut] + b"]"
                self._read += 1
                buffer = b"[" + buffer[cut:].lstrip(b", \r\n\t")
            yield self._finish(buffer, bare)
        finally:
            text.close()

    def _open(self, text: Generator[bytes, None, None]) -> tuple[bytes, bool]:
        """The buffer from the events' "[" on, and whether the file is a bare list."""
        buffer = next(text, b"").removeprefix(b"\xef\xbb\xbf").lstrip()
        if buffer[:1] == b"[":
            return buffer, True
        if not buffer and not self.ending.damage:
            if self.ending.cut:
                raise UserError(f"{self.path} is cut off before its first event ends; export it again.")
            raise UserError(f"{self.path} is empty: give the JSON that torch.profiler exports (.json or .json.gz).")
        if buffer[:1] != b"{":
            self._require_sound()
            raise UserError(f"{self.path} is no trace: give the JSON that torch.profiler exports (.json or .json.gz).")
        while not (found := _EVENTS.search(buffer)):
            block = next(text, b"")
            if not block or len(buffer) > HEADER_LIMIT:
                self._require_sound()
                raise UserError(
                    f'{self.path} is no trace: it has no list "traceEvents"; give what torch.profiler exports.'
                )
            buffer += block
        self._add_header(buffer[: found.start()].rstrip().rstrip(b",") + b"}")
        return buffer[found.end() - 1 :], False

    def _require_sound(self) -> None:
        if damage := self.ending.damage:
            where = "before its first event ends"
            raise UserError(f"{self.path} is a gzip file that is damaged {where} ({damage}); copy or export it again.")

    def _finish(self, rest: bytes, bare: bool) -> list[Event]:
        end, closed = _scan(rest)
        if closed is None and len(_BETWEEN.findall(rest, end)) > 1:  # a stray quote hides the list's end
            tails = list(_TAIL.finditer(rest, end))
            closed = tails[-1].end(1) if tails else None
        if closed is None:
            complete = rest[end:].strip(b", \r\n\t") == b"" and end > 1
            events = self._decode(rest[:end] + b"]", final=True) or []
            if not (bare and complete):  # the format lets a bare list end without its "]"
                self.ending.cut = True
                if not events and not self._read:
                    self._require_sound()
                    raise UserError(f"{self.path} is cut off before its first event ends; export it again.")
            return events
        if not bare:
            self._add_header(b"{" + rest[closed:].lstrip(b", \r\n\t"))
        return self._decode(rest[:closed], final=True) or []

    def _add_header(self, text: bytes) -> None:
        try:
            content = parse_json(text.decode("utf-8", "replace"), strict=False)
        except ValueError:
            return  # the events are what counts
        self.header.update({k: v for k, v in content.items() if k != "traceEvents"})

    def _decode(self, text: bytes, *, final: bool = False) -> list[Event] | None:
        """The events of a JSON list; None where it is cut wrongly and ``final`` is not set."""
        try:
            return decode_plain(text)
        except OddError:
            if self._plain:
                raise
            return self._decode_leniently(text, final)

    def _decode_leniently(self, text: bytes, final: bool) -> list[Event] | None:
        """As above, with what JSON does not allow mended, and fields of odd types; ``final``: entry by entry."""
        plain = text.decode("utf-8", "replace")
        failed = 0
        try:
            values, mended = parse(plain)
        except (ValueError, RecursionError):
            if not final:
                return None
            values, failed, mended = parse_entries(plain)
            if not values and not self._read:
                self._require_sound()
                raise UserError(f"{self.path} is damaged: its events are no JSON; export it again.") from None
        self.malformed += failed
        self.mended |= mended
        events = []
        for value in values:
            if event := event_of(value):
                events.append(event)
            else:
                self.malformed += 1
        return events


def require_trace(path: Path) -> None:
    """Read a file's first events; ``UserError`` where it cannot be read or has none."""
    chunks = Stream(path).chunks()
    try:
        next(chunks)
    finally:
        chunks.close()


def _last_cut(buffer: bytes) -> int:
    """Where the last event that another follows ends, by its look: what is cut there must still decode; 0 if none."""
    offset = max(0, len(buffer) - _NEAR_END)
    cut = 0
    for found in _BETWEEN.finditer(buffer, offset):
        cut = found.start() + 1
    return cut


def _scan(buffer: bytes) -> tuple[int, int | None]:
    """Of a buffer that begins with "[": where its last whole event ends, and just after its closing "]" if there."""
    depth, end = 0, 1
    for token in _TOKENS.finditer(buffer):
        kind = buffer[token.start()]
        if kind in b"{[":
            depth += 1
        elif kind in b"}]":
            depth -= 1
            if depth == 1:
                end = token.end()
            elif depth == 0:
                return end, token.end()
    return end, None
