"""JSON that may come from anybody: all that is wrong with it is a ``ValueError``."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, *, strict: bool = True) -> Any:
    """``json.loads``; ``ValueError`` also where the text is nested deeper than the interpreter's stack.

    ``strict``: no control characters in strings.
    """
    try:
        return json.loads(text, strict=strict)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
