"""Coverage-guided fuzzing of one of ``parsers.PARSERS``: ``python tests/support/fuzzing.py NAME SECONDS``.

Begins with ``seeds.SEEDS``, tests/corpus/NAME and what earlier runs have left in build/fuzz/NAME. Ends with code 0 and
figures, or with the input at which the parser failed, in a file that is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # pyright: ignore

with atheris.instrument_imports(include=["fastvicreg", "tarfile"]):  # pyright: ignore
    from parsers import PARSERS
    from seeds import SEEDS

LONGEST = 16 << 10
"""Bytes of an input."""
MEMORY, SECONDS = 2048, 25
"""MB of the process, and of one input."""


def main(name: str, seconds: str) -> None:
    root = Path(__file__).parents[2]
    folder, known = root / "build" / "fuzz" / name, root / "tests" / "corpus" / name
    work, kept = folder / "work", folder / "corpus"
    work.mkdir(parents=True, exist_ok=True)
    kept.mkdir(exist_ok=True)
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

    corpora = [str(path) for path in (kept, known) if path.is_dir()]
    atheris.Setup([sys.argv[0], *options, *corpora], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
