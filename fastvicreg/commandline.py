"""Options as typed dataclasses: tyro parses them, and its boxes become one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from fastvicreg.errors import UserError

Options = TypeVar("Options")


def parse(kind: type[Options], arguments: Sequence[str], command: str, *, default: Options | None = None) -> Options:
    """``arguments`` as a ``kind``, starting from ``default``; nested dataclasses add groups, not prefixes.

    ``UserError`` in one line for an unknown option (with the nearest) or a value of the wrong type.
    """
    extra: dict[str, Any] = {} if default is None else {"default": default}
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=f"fastvicreg {command}",
                config=(tyro.conf.OmitArgPrefixes,),
                **extra,
            )
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise UserError(_one_line(refused.getvalue(), command)) from None


def flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``, before the options are parsed; None where it is not given."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def share(flag: str, given: str) -> float:
    """A percentage such as 5% as a share of 1; ``UserError`` for anything else."""
    try:
        value = float(given.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{flag} {given}: give a percentage, such as 5%.")
    return value


def _one_line(boxed: str, command: str) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", "\n", text).split())
    # Only the first of the box's paragraphs says what is wrong; the rest repeats the help.
    text = re.split(r" (?:Argument helptext:|For full helptext|Perhaps you meant:)", text)[0]
    text = re.sub(
        r"^(?:Unrecognized options|Value error|Parsing error|Required options|[A-Z][a-z]+ error)s? ", "", text
    )
    near = re.findall(r"(--[a-z][a-z0-9-]*)", boxed)
    asked = re.search(r"Unrecognized options: (--[^\s,]+)", text)
    hint = ""
    if asked:
        text = f"unknown option {asked.group(1)}"
        matches = difflib.get_close_matches(asked.group(1), [n for n in near if n != asked.group(1)], n=1, cutoff=0.5)
        hint = f"; did you mean {matches[0]}?" if matches else "."
    return f"{text}{hint} See fastvicreg {command} --help."
