"""Commands that take a run as ``fastvicreg train`` does: their own options, and all of train's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from typing import Any, TypeVar

from fastvicreg.commandline import parse
from fastvicreg.commands.train import TrainOptions, options_of
from fastvicreg.errors import UserError

Options = TypeVar("Options")


def parse_as_train(kind: type[Options], arguments: Sequence[str], command: str) -> tuple[Options, TrainOptions]:
    """``command``'s own options as a ``kind``, and the rest as ``fastvicreg train`` reads them.

    Each field of ``kind`` is a flag or takes one value. ``UserError`` for what neither knows, and for what only a
    training run can do.
    """
    own, rest = _divide(kind, arguments)
    options = parse(kind, own, command)
    try:
        train = options_of(rest)
    except UserError as error:
        other = f"See fastvicreg {command} --help and fastvicreg train --help."
        raise UserError(str(error).replace("See fastvicreg train --help.", other)) from None
    for flag, given in (("--resume", train.resume), ("--print-config", train.print_config)):
        if given:
            raise UserError(f"{flag} belongs to fastvicreg train: fastvicreg {command} starts from fresh weights.")
    train.settings.check()
    return options, train


def _divide(kind: type[Any], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those that are ``kind``'s, the others), both in their order."""
    known = {"--" + field.name.replace("_", "-"): field.default is False for field in fields(kind)}
    switches = {name for name, switch in known.items() if switch}
    switches |= {"--no-" + name[2:] for name in switches} | {"--help", "-h"}
    own: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, has_value, _ = argument.partition("=")
        if name in switches:
            own.append(argument)
        elif name in known:
            own.append(argument)
            if not has_value:
                own += islice(rest, 1)
        else:
            others.append(argument)
    return own, others
