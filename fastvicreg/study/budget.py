"""A study's time: read from the command line, and shared among its runs in equal steps."""

from __future__ import annotations

import re

from fastvicreg.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LEAST = 4
"""Steps below which a run shows nothing."""


def seconds_of(budget: str) -> float:
    """``90s``, ``20m`` or ``1.5h`` in seconds; ``UserError`` for anything else, and for 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UserError(f"--budget {budget}: give a time above 0 with its unit, such as 90s, 20m or 1.5h.")
    return seconds


def equal_steps(budget: str, left: float, *, per_step: float, fixed: float, runs: int) -> int:
    """Steps of each of ``runs`` runs, so that all take the ``left`` seconds of ``budget``.

    ``per_step``: seconds of one step of every run together; ``fixed``: what all runs take besides their steps.
    ``UserError`` where too few steps remain, with the least budget.
    """
    steps = int((left - fixed) / per_step)
    if steps < LEAST:
        needed = seconds_of(budget) - left + fixed + LEAST * per_step
        raise UserError(
            f"--budget {budget} is too short for {runs} runs here: give {needed * 1.1:.0f}s or more, or fewer --seeds."
        )
    return steps
