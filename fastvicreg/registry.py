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


def resolve_class(kind: str, name: str, table: Mapping[str, str]) -> type[Any]:
    """``resolve`` of a table that names classes."""
    found = resolve(kind, name, table)
    assert isinstance(found, type)
    return found


def owner_of(field: str, kind: str, table: Mapping[str, str]) -> str | None:
    """The first name in a table of dataclasses whose class has a field called so."""
    return next((name for name in table if field in resolve_class(kind, name, table).__dataclass_fields__), None)


def unknown(kind: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """One line: what was not known, the nearest name, and all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Choose from: {', '.join(known)}."
