"""Conversions killed at random moments, and continued to the same bytes; ``FASTVICREG_SOAK`` times as often."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from random import Random

import pytest
from images import encoded, photo

from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert import Progress, Settings, convert_dataset

KILLS = 5 * int(os.environ.get("FASTVICREG_SOAK", "1"))
SECONDS = 60
SAMPLES = 120
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fastvicreg.pipelines.convert.run", "fastvicreg.kernels.resample.numba_impl"])
SETTINGS = {
    "beton": Settings(page_size=1 << 21, reencode=True),
    "shards": Settings(format="shards", shard_size=64 << 10, reencode=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("format", SETTINGS)
def test_killed_at_random_moments_it_continues_to_the_same_bytes(format: str, tmp_path: Path) -> None:
    source = tmp_path / "images"
    for number in range(SAMPLES):
        path = source / "ab"[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 120, 90))[: None if number % 10 else -500])
    ending = ".beton" if format == "beton" else ""
    _convert(source, tmp_path / f"whole{ending}", format)
    whole = _files(tmp_path / f"whole{ending}")
    chance, kills, kept, number = Random(7), 0, 0, 0
    while kills < KILLS:
        target = tmp_path / f"{number}{ending}"
        number += 1
        while not target.exists() and kills < KILLS:
            # By the work done and a little later, so that it is met on a busy machine too, its last moments included.
            if _convert(source, target, format, chance.randint(1, SAMPLES), chance.uniform(0, 0.03)) == -signal.SIGKILL:
                kills += 1
                kept += _journalled(target)
        if not target.exists():
            _convert(source, target, format)
        with pytest.raises(UserError, match="exists: delete it"):  # which tidies up after a kill at the very end
            convert_dataset(source, target, SETTINGS[format])
        assert _files(target) == whole
        assert not list(tmp_path.glob("*.partial"))
    print(f"{format}: {kills} kills of {number} conversions, {kept} of them with work done")
    assert kept


def _convert(source: Path, target: Path, format: str, after: int = SAMPLES + 1, delay: float = 0.0) -> int | None:
    """In a process of its own, which kills itself ``delay`` seconds after that many samples; its exit code."""
    process = CONTEXT.Process(target=_work, args=(source, target, format, after, delay))
    process.start()
    process.join(SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode


def _work(source: Path, target: Path, format: str, after: int, delay: float) -> None:
    waiting = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
    waiting.daemon = True
    begun = False

    def watch(progress: Progress) -> None:
        nonlocal begun
        if progress.done >= after and not begun:
            begun = True
            waiting.start()

    convert_dataset(source, target, SETTINGS[format], workers=1, on_progress=watch, commit_seconds=0)


def _journalled(target: Path) -> bool:
    journal = target.with_name(f"{target.name}.partial") / "journal"
    return journal.exists() and journal.stat().st_size > 0


def _files(target: Path) -> dict[str, bytes]:
    """What a conversion leaves, by the ending of its name."""
    paths = target.iterdir() if target.is_dir() else target.parent.glob(f"{target.name}*")
    return {path.name if target.is_dir() else path.suffix: path.read_bytes() for path in paths}
