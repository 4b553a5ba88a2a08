"""What has changed since a conversion was interrupted, in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from fastvicreg.contracts import Source

PACKAGES = ("pillow", "simplejpeg")
"""Whose versions may change re-encoded bytes."""
FILES = ("names", "samples")
"""What a command says of the source's files; the rest are its options."""
KIT = "what meta.mat says"
"""What a command calls the digest of it; none where no label needed it."""


def names_of(source: Source) -> bytes:
    """The samples' names and labels, a line each, in the source's order."""
    lines = (f"{source.name(index)}\0{source.label(index)}\n" for index in range(len(source)))
    return "".join(lines).encode("utf-8", "surrogateescape")


def pack(names: bytes) -> bytes:
    """``names`` as an unfinished conversion keeps them."""
    return zlib.compress(names, 1)


def difference(before: dict[str, Any], now: dict[str, Any], kept: Path, names: bytes) -> str:
    """What differs between two commands; "" where nothing does. ``kept`` holds the names of the one before."""
    changed = _changed(before, now)
    said = [text] if (text := options_changed(before, now)) else []
    if set(FILES) & set(changed) and "source" not in changed:
        said.append(_files(kept, names))
    return "; ".join(said)


def options_changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which options of two commands differ; versions count only where both tell them."""
    known = {key: before[key] for key in before if key in now or key not in PACKAGES}
    changed = [key for key in _changed(known, now) if key not in FILES]
    return "; ".join(f"{_option(key)} was {before.get(key)} and is {now.get(key)}" for key in changed)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _option(key: str) -> str:
    return key if key in ("source", KIT) else f"--{key.replace('_', '-')}"


def _files(kept: Path, names: bytes) -> str:
    try:
        before = zlib.decompress(kept.read_bytes()).split(b"\n")[:-1]
    except (OSError, zlib.error):
        return "the source has other files or classes"
    now = names.split(b"\n")[:-1]
    old, new = set(before), set(now)
    parts = []
    for there, elsewhere, verb in ((new, old, "added"), (old, new, "removed")):
        paths = {line.partition(b"\0")[0] for line in elsewhere}
        only = sorted(line.partition(b"\0")[0] for line in there - elsewhere)
        own = [path for path in only if path not in paths]
        if own:
            first = own[0].decode("utf-8", "replace")
            parts.append(f"{len(own):,} {'file' if len(own) == 1 else 'files'} {verb} (such as {first})")
    labels = len(old - new) and not parts
    return "in the source " + (", ".join(parts) or ("labels changed" if labels else "the order of the files changed"))
