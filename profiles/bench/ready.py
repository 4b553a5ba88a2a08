"""A benchmark's process, ``python -m fastvicreg.profiles.bench.ready``: imports what it needs, then waits for a line.

Importing torch takes seconds, which ``bench all`` lets pass while the part before it still measures.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from fastvicreg.cli import main as command_line
from fastvicreg.errors import UserError
from fastvicreg.stalls import leave


def main(arguments: Sequence[str]) -> int:
    """Import, wait, and run ``fastvicreg ARGUMENTS``; ends at once where whoever started it has ended."""
    import torch

    _ = torch.__version__
    if len(arguments) > 1 and arguments[0] == "bench":
        from fastvicreg.profiles.bench.registry import benchmark

        with contextlib.suppress(UserError):  # the command's own to say, or a part that is no benchmark
            benchmark(arguments[1])
    if not sys.stdin.readline():
        return 2
    return command_line(arguments)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
