"""Entries of a trace's list of events: the fields that are read of each, and what is made of odd ones."""

from __future__ import annotations

import msgspec

_LARGEST = (1 << 63) - 1

NOTHING = msgspec.Raw(b"")
"""A field that is not there."""


class OddError(Exception):
    """A text that is no plain list of events: it takes the mending of ``Stream.chunks``."""


class Args(msgspec.Struct, gc=False):
    """What is kept of an event's ``args``; shapes stay as text, which repeats and is read once each."""

    external: int = msgspec.field(default=-1, name="External id")
    old_external: int = msgspec.field(default=-1, name="external id")
    dims: msgspec.Raw = msgspec.field(default=NOTHING, name="Input Dims")
    types: msgspec.Raw = msgspec.field(default=NOTHING, name="Input type")
    concrete: msgspec.Raw = msgspec.field(default=NOTHING, name="Concrete Inputs")
    stream: int | str = -1
    device: int | str = -1
    correlation: int = -1
    bytes: int = 0
    device_type: int = msgspec.field(default=0, name="Device Type")
    device_id: int = msgspec.field(default=-1, name="Device Id")
    size: int = msgspec.field(default=0, name="Bytes")
    allocated: int = msgspec.field(default=-1, name="Total Allocated")
    reserved: int = msgspec.field(default=-1, name="Total Reserved")
    name: str | int | None = None
    collective: str | None = msgspec.field(default=None, name="Collective name")
    sent: int = msgspec.field(default=0, name="In msg nelems")
    received: int = msgspec.field(default=0, name="Out msg nelems")
    group: int = msgspec.field(default=0, name="Group size")
    dtype: str | None = None


class Event(msgspec.Struct, gc=False):
    """One entry of ``traceEvents``; ``ts`` and ``dur`` are microseconds, whatever ``displayTimeUnit`` says."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    pid: int | str = -1
    tid: int | str = -1
    ts: float | None = None
    dur: float = 0.0
    args: Args | None = None


_decoder = msgspec.json.Decoder(list[Event])
_lenient_decoder = msgspec.json.Decoder(Event, strict=False)
_lenient_args = msgspec.json.Decoder(Args, strict=False)


def decode_plain(text: bytes) -> list[Event]:
    """The events of a JSON list; ``OddError`` where it is none, or its fields have odd types."""
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise OddError from None


def event_of(value: object) -> Event | None:
    """An entry as an event, without the fields of its args that have impossible types; None where it is none."""
    if not isinstance(value, dict):
        return None
    value = {key: field for key, field in value.items() if key in Event.__struct_fields__}
    value |= {key: str(value[key]) for key in ("name", "ph") if value.get(key) is not None}
    args = value.pop("args", None)
    kept = {k: _id(v) for k, v in args.items() if v is not None and v == v} if isinstance(args, dict) else {}
    for content in ({**value, "args": kept}, {**value, "args": {k: v for k, v in kept.items() if _fits(k, v)}}):
        try:
            return _lenient_decoder.decode(msgspec.json.encode(content))
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, RecursionError):
            continue  # half a surrogate pair, a number beyond 64 bits
    return None


def _fits(key: str, value: object) -> bool:
    try:
        _lenient_args.decode(msgspec.json.encode({key: value}))
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, RecursionError, TypeError):
        return False
    return True


def _id(value: object) -> object:
    return within_64_bits(value) if isinstance(value, int) else value


def within_64_bits(number: int) -> int:
    """The number itself, or where 64 bits do not hold it another one that stands for it."""
    return number if -_LARGEST <= number <= _LARGEST else number % (1 << 61) + (1 << 62)
