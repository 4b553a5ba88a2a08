"""Options as typed dataclasses: tyro parses them, and its boxes become one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from fastvicreg.errors import UserError
from fastvicreg.provenance import require_figures
from fastvicreg.registry import unknown

Options = TypeVar("Options")

WhichEncoder = Annotated[
    Literal["a", "b", "target"],
    tyro.conf.arg(
        help="Of a run: a, the trained encoder; b, the second branch's of a run with --branch-b; target, the momentum "
        "network's of BYOL, MoCo and DINO."
    ),
]
"""An option of all commands that take a run's encoder."""


def parse(kind: type[Options], arguments: Sequence[str], command: str, *, default: Options | None = None) -> Options:
    """``arguments`` as a ``kind``, starting from ``default``; nested dataclasses add groups, not prefixes.

    ``UserError`` in one line for an unknown option (with the nearest), a value of the wrong type, or a --json that
    would replace what is no figures.
    """
    return _parse(kind, arguments, command, {} if default is None else {"default": default})


def parse_known(kind: type[Options], arguments: Sequence[str], command: str) -> tuple[Options, list[str]]:
    """``parse``, and in their order the arguments that ``kind`` has no option for."""
    return _parse(kind, arguments, command, {"return_unknown_args": True})


def _parse(kind: type[Any], arguments: Sequence[str], command: str, extra: Mapping[str, Any]) -> Any:
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            options = tyro.cli(
                kind,
                args=list(arguments),
                prog=f"fastvicreg {command}",
                config=(tyro.conf.OmitArgPrefixes,),
                **extra,
            )
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise UserError(_one_line(refused.getvalue(), kind, arguments, command)) from None
    if isinstance(figures := getattr(options, "json", None), str):
        require_figures(figures)  # before the work, and before a dataset or a trace of that name is lost
    return options


def with_parts(kind: type[Any], **parts: Any) -> type[Any]:
    """``kind`` with its fields named by ``parts`` narrowed to these dataclasses, which become their defaults.

    For options whose settings depend on which part is chosen: the help shows the chosen one's, and no others are taken.
    """
    fields = [(name, type(part), field(default=part)) for name, part in parts.items()]
    narrowed = make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)
    narrowed.__doc__ = kind.__doc__
    return narrowed


def part_named(
    arguments: Sequence[str], command: str, noun: str, usage: Callable[[], str], known: Iterable[str]
) -> tuple[str, list[str]] | None:
    """The part of ``command`` that the first word names, and the rest; None where there is none, with the usage shown.

    ``--help`` in its place shows the usage and ends. ``UserError`` where an option stands there, and for a name that
    is not in ``known``, with the nearest.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        if arguments:
            raise SystemExit(0)
        return None
    name, *rest = arguments
    names = tuple(known)
    if name.startswith("-"):
        raise UserError(f"{command} {name}: name the {noun} first, such as fastvicreg {command} {names[0]} {name} ...")
    if name not in names:
        raise UserError(unknown(noun, name, names))
    return name, rest


def flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``, before the options are parsed; None where it is not given.

    Of several the last, and with _ as with - in its name, which is what the parser takes.
    """
    found = None
    for position, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if has_value:
            found = value
        elif position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def flags_of(kind: type[Any]) -> dict[str, int | None]:
    """The options of a dataclass and of those nested in it, with the number of values each takes; None: several."""
    found: dict[str, int | None] = {}
    hints = get_type_hints(kind, include_extras=True)
    for part in fields(kind):
        hint = hints[part.name]
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        if is_dataclass(part.default) and not isinstance(part.default, type):
            found |= flags_of(type(part.default))
            continue
        flag, plain = part.name.replace("_", "-"), get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if plain is bool:
            found |= {f"--{flag}": 0, f"--no-{flag}": 0}
        else:
            found[f"--{flag}"] = None if get_origin(plain) is tuple else 1
    return found


def gathered(arguments: Sequence[str], flag: str) -> list[str]:
    """``--flag A ... --flag B`` as ``--flag A B``: a parser of several values keeps the last flag's alone."""
    rest: list[str] = []
    values: list[str] = []
    words = iter(arguments)
    taking = False
    for word in words:
        name, has_value, value = word.partition("=")
        if name == flag:
            taking = True
            values += [value] if has_value else []
        elif taking and not word.startswith("-"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest, flag, *values] if values else list(arguments)


def share(flag: str, given: str) -> float:
    """A percentage such as 5% as a share of 1; ``UserError`` for anything else."""
    try:
        value = float(given.strip().removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{flag} {given}: give a percentage, such as 5%.")
    return value


def _one_line(boxed: str, kind: type[Any], arguments: Sequence[str], command: str) -> str:
    """What ``boxed``, tyro's answer to ``arguments``, says is wrong."""
    hints = get_type_hints(kind, include_extras=True)
    places = [name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())]
    usage = " ".join(["fastvicreg", command, *map(str.upper, places)])
    for name in places:
        flag = "--" + name.replace("_", "-")
        if any(argument == flag or argument.startswith(flag + "=") for argument in arguments):
            return f"{flag} is no option: the {name} is given by its place, {usage}. See fastvicreg {command} --help."
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    text = " ".join(re.sub(r"[╭╮╰╯│─]+|-{4,}", "\n", text).split())  # dashes where the terminal has ASCII alone
    see = f"See fastvicreg {command} --help."
    if unknown := re.search(r"Unrecognized options: (\S+?),?(?: |$)", text):
        given = unknown.group(1)
        if not given.startswith("-"):
            return f"{given!r} belongs to no option. {see}"
        near = set(re.findall(r"(--[a-z][a-z0-9-]*)", boxed)) - {given, "--help"}
        matches = difflib.get_close_matches(given, sorted(near), n=1, cutoff=0.5)
        return f"unknown option {given}{f'; did you mean {matches[0]}?' if matches else '.'} {see}"
    if missing := re.search(r"Missing value for argument '(--[^']+)'", text):
        return f"{missing.group(1)} needs a value. {see}"
    if optional := re.search(r"(--\S+): no type matching \{None\}\|(?:FLOAT|INT) .*? from \['(.*?)'\]", text):
        return f"{optional.group(1)} cannot be {optional.group(2)!r}: give a number, or None. {see}"
    if places and "Missing " in text:
        return f"give {usage} [OPTIONS]. {see}"
    # Only the first of the box's paragraphs says what is wrong; the rest repeats the help.
    text = re.split(r" (?:Argument helptext:|For full helptext|Perhaps you meant:)", text)[0]
    text = re.sub(r"^(?:Value error|Parsing error|Required options|Invalid choice|Error parsing)s? ", "", text)
    return f"{text.rstrip('.')}. {see}"
