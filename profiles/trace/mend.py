"""Mends what is almost JSON: raw backslashes, bare words for numbers, quotes inside names; entry by entry at worst."""

from __future__ import annotations

import json
import re
from typing import Any

_WORDS = re.compile(r"(?<=[:\[,\s])(?:N/A|n/a|None|undefined|-?nan(?:\([^)]*\))?|-?inf|-nan|\.\.\.)(?=\s*[,}\]])")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BAD_ESCAPE = re.compile(r'\\(?:[^"\\/bfnrtu]|u(?![0-9a-fA-F]{4}))')
_BACKSLASH = re.compile(r'\\(?!["\\])')
_ENTRY = re.compile(r'(?<=\})\s*,\s*(?=\{\s*")')
_KEY = r"(?:ph|cat|name|pid|tid|ts|dur|args|id|s|bp)"
_NAME = re.compile(rf'("(?:name|cat)"\s*:\s*")(.*?)(?="\s*(?:,\s*"{_KEY}"\s*:|\}}))', re.DOTALL)
_BARE_QUOTE = re.compile(r'(?<!\\)"')


def parse(text: str) -> tuple[Any, set[str]]:
    """The value of a JSON text with such faults, and which were mended; ``ValueError`` where it is something else."""
    try:
        return json.loads(text, strict=False), set()
    except ValueError:
        pass
    mended: set[str] = set()
    plain = _WORDS.sub("null", text)
    if plain != text:
        mended.add("words in place of numbers")
    # A path's backslashes are doubled together: the \t of C:\Users\train is none that JSON means.
    whole = _STRING.sub(lambda found: _doubled(found[0]), plain)
    if whole != plain:
        mended.add("unescaped backslashes")
    return json.loads(whole, strict=False), mended


def parse_entries(text: str) -> tuple[list[Any], int, set[str]]:
    """The entries of a list that is damaged somewhere: each is read by itself.

    Returns the entries, how many could not be read, and what was mended.
    """
    found: list[Any] = []
    failed = 0
    mended: set[str] = set()
    for entry in _ENTRY.split(text.strip().removeprefix("[").removesuffix("]")):
        if not entry.strip(" ,\r\n\t"):
            continue
        try:
            value, kinds = _entry(entry)
        except (ValueError, RecursionError):
            failed += 1
            continue
        found.append(value)
        mended |= kinds
    return found, failed, mended


def _entry(text: str) -> tuple[Any, set[str]]:
    try:
        return parse(text)
    except ValueError:
        quoted = _NAME.sub(lambda found: found[1] + _BARE_QUOTE.sub(r'\\"', found[2]), text)
        value, kinds = parse(quoted)
        return value, kinds | {"unescaped quotes"}


def _doubled(string: str) -> str:
    return _BACKSLASH.sub(r"\\\\", string) if _BAD_ESCAPE.search(string) else string
