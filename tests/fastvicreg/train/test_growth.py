"""A long run holds no more memory, file handles and threads at its end than once it was warm.

``FASTVICREG_SOAK_STEPS=20000`` runs that many steps with every engine; `make soak` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import growing
import pytest
from growing import Held, growth
from images import encoded, photo

from fastvicreg.pipelines.convert import Settings, convert_dataset

STEPS = int(os.environ.get("FASTVICREG_SOAK_STEPS", "0"))
SHORT = 240
"""80 epochs' ends: a leak of 100 KiB a step shows."""
LIMIT = 0.02
ENGINES = {"native": True, "ffcv": find_spec("ffcv"), "dali": find_spec("nvidia") and find_spec("nvidia.dali")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES if STEPS else ["native"])
def test_a_long_run_holds_no_more_at_its_end(engine: str, tmp_path: Path) -> None:
    if not ENGINES[engine]:
        pytest.skip(f"{engine} is not installed")
    for number in range(24):
        path = tmp_path / "data" / f"class{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 30, 40)))
    convert_dataset(tmp_path / "data", tmp_path / "data.beton", Settings(page_size=1 << 21))
    data = tmp_path / ("data" if engine == "native" else "data.beton")
    steps = STEPS or SHORT
    here = os.pathsep.join(str(path) for path in (Path(growing.__file__).parent, Path(__file__).parents[3]))
    ran = subprocess.run(
        [sys.executable, growing.__file__, str(data), engine, str(steps), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120 + steps,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(told))
    assert (told["steps"], told["epochs"]) == (steps, steps // 3)
    assert told["evaluations"] >= told["epochs"] // 20
    assert max(told["growth"].values()) <= LIMIT, told


def test_growth_is_seen() -> None:
    steady = [Held(step, 600_000 + step % 7, 30, 9) for step in range(80)]
    leaking = [Held(step, 600_000 + 500 * step, 30 + step // 10, 9) for step in range(80)]
    assert [growth(steady, name) <= LIMIT for name in ("rss_kb", "handles", "threads")] == [True, True, True]
    assert [growth(leaking, name) <= LIMIT for name in ("rss_kb", "handles", "threads")] == [False, False, True]
