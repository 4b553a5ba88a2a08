"""Coverage-guided fuzzing of one of ``parsers.PARSERS``: ``python fuzzing.py NAME SECONDS [CORPUS]``.

Begins with ``seeds.SEEDS`` and the files in CORPUS; what it finds new there is kept while it runs, not afterwards. Ends
with code 0 and a line of figures, or with the input at which the parser failed, in a file that is named.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # pyright: ignore

with atheris.instrument_imports(include=["fastvicreg", "tarfile"]):  # pyright: ignore
    from parsers import PARSERS
    from seeds import SEEDS

LONGEST = 16 << 10
"""Bytes of an input."""
MEMORY, SECONDS = 2048, 25
"""MB of the process, and of one input."""


def main(name: str, seconds: str, *corpora: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    work, kept = folder / "work", folder / "corpus"
    work.mkdir()
    kept.mkdir()
    for number, seed in enumerate(SEEDS[name](work)):
        (kept / f"seed-{number}").write_bytes(seed)
    parse = PARSERS[name]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={SECONDS}",
        f"-artifact_prefix={folder}/",
        "-verbosity=1",
        "-print_final_stats=1",
    ]

    def once(data: bytes) -> None:
        parse(data, work)

    atheris.Setup([sys.argv[0], *options, str(kept), *corpora], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
