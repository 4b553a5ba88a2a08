"""Names of swappable parts to where they are built; a backend is imported only when it is chosen."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fastvicreg.errors import UserError


def resolve(kind: str, name: str, table: Mapping[str, str]) -> Callable[..., Any]:
    """The callable that ``table[name]`` ("package.module:attribute") names.

    ``UserError`` where ``name`` is not in ``table``, with the nearest name.
    """
    if name not in table:
        raise UserError(unknown(kind, name, table))
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def unknown(kind: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """One line: what was not known, the nearest name, and all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Choose from: {', '.join(known)}."
