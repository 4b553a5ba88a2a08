"""The errors of a user's mistake or damaged data; the command line prints their line and exits with code 2."""

import re

_HIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with its control characters escaped: none of a file's name or content reaches a terminal."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(ValueError):
    """A mistake its user can mend: one line that names the offending value and the way out.

    It stays one line, and drives no terminal, whatever a file's or a tar member's name in it holds.
    """

    def __init__(self, line: str) -> None:
        super().__init__(visible(line))


class DamagedError(UserError):
    """A dataset that is cut short or contradicts itself."""


class DivergedError(UserError):
    """A run whose loss or gradient is no longer finite."""


def at_least(bounds: dict[str, tuple[float, float]]) -> None:
    """``UserError`` for the first flag whose value is below its bound, given as (value, bound)."""
    for flag, (value, least) in bounds.items():
        if not value >= least:
            raise UserError(f"{flag} {value} is too small: give {least} or more.")
