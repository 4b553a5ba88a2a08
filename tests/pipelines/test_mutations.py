"""Data damaged at random: refused in a line, or skipped and counted, or what its bytes decode to; never anything else.

``FASTVICREG_SOAK=10`` tries ten times as many. What is held to what, and the mutations: tests/support/surviving.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import surviving
from bytes_on_disk import flip
from images import encoded, photo
from mutating import WAYS, bombs, mutated

from fastvicreg.contracts import Fault
from fastvicreg.errors import DamagedError
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.decode import DecodeError, decode_rgb
from fastvicreg.pipelines.manifest import manifest_path, read_manifest

TIMES = int(os.environ.get("FASTVICREG_SOAK", "1"))
ROUNDS = {
    "files": 2,  # eight mutations each: JPEG, PNG and WebP files, and four bombs beside them
    "members": 2,  # eight: the same as members of a tar file
    "stored": 2,  # eight: samples of a .beton
    "beton": 14,
    "tar": 12,
    "idx": 10,
    "beton.manifest": 8,
    "shards.manifest": 8,
}
SECONDS = 240
"""For one process's rounds, on a busy machine."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TIMES))
def test_damaged_data_is_refused_or_counted_by_every_reader(seed: int, tmp_path: Path) -> None:
    rounds = [kind for kind, count in ROUNDS.items() for _ in range(count)]
    command = [sys.executable, surviving.__file__, str(tmp_path), str(seed), *rounds]
    here = os.pathsep.join(str(path) for path in (Path(surviving.__file__).parent, Path(__file__).parents[2]))
    ran = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, (ran.returncode, ran.stdout[-300:], ran.stderr[-3000:])
    told = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(told))
    assert not told["wrong"], told["wrong"]
    assert sum(told["tried"].values()) == 100
    assert told["told"]["refused"] > 15  # most of what is no image's bytes
    assert told["told"]["replaced"] > 25  # most of the images, and all the bombs


def test_every_way_of_damaging_changes_the_bytes_and_is_the_seed_s() -> None:
    data, donor = (encoded(photo(seed, 40, 30)) for seed in (1, 2))
    ways = set()
    for seed in range(60):
        changed, way = mutated(data, Random(seed), donor)
        assert changed != data
        assert (changed, way) == mutated(data, Random(seed), donor)
        ways.add(way)
    assert ways == {way.__name__ for way in WAYS}


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_rgb(bombs()[name])
    assert refused.value.fault == Fault.TOO_LARGE


def test_one_flipped_bit_of_a_manifest_is_found_wherever_it_is(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ab"[number % 2] / f"{number}.jpg").write_bytes(encoded(photo(number, 20, 20)))
    convert_dataset(tmp_path / "data", tmp_path / "shards", Settings(format="shards"))
    where = manifest_path(tmp_path / "shards")
    whole = where.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in range(header, len(whole)):
        flip(where, at)
        with pytest.raises(DamagedError, match="differ from its digest"):
            read_manifest(where)
        where.write_bytes(whole)
