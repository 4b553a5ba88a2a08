"""Commands that take a run as ``fastvicreg train`` does: their own options, and all of train's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from fastvicreg.commandline import parse_known
from fastvicreg.commands.train import TrainOptions, options_of
from fastvicreg.errors import UserError
from fastvicreg.unmeant import refuse_unmeant

Options = TypeVar("Options")


def parse_as_train(kind: type[Options], arguments: Sequence[str], command: str) -> tuple[Options, TrainOptions]:
    """``command``'s own options as a ``kind``, and the rest as ``fastvicreg train`` reads them.

    ``UserError`` for what neither knows, and for what only a training run can do.
    """
    options, rest = parse_known(kind, arguments, command)
    try:
        train = options_of(rest)
    except UserError as error:
        other = f"See fastvicreg {command} --help and fastvicreg train --help."
        refused = _with_nearest(str(error), kind).replace("See fastvicreg train --help.", other)
        raise UserError(refused) from None
    for flag, given in (("--resume", train.resume), ("--print-config", train.print_config)):
        if given:
            raise UserError(f"{flag} belongs to fastvicreg train: fastvicreg {command} starts from fresh weights.")
    train.settings.check()
    refuse_unmeant(train.settings)
    return options, train


def _with_nearest(refused: str, kind: type[Any]) -> str:
    """``refused`` with the nearest option of ``kind``, where train has none that is near."""
    if not (found := re.match(r"unknown option (--\S+)\. ", refused)):
        return refused
    own = ["--" + field.name.replace("_", "-") for field in fields(kind)]
    near = difflib.get_close_matches(found[1], own, n=1, cutoff=0.5)
    return refused.replace(f"{found[1]}.", f"{found[1]}; did you mean {near[0]}?", 1) if near else refused
