"""Image files that vanish, change or may no longer be read while a run reads them: counted by cause and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from images import encoded, photo

NOBODY = 65534
RUN = """
import json, os, sys
from pathlib import Path
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.faults import FaultBudget
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.pipelines.verify import verify_dataset

folder = Path(sys.argv[1])
source = open_source(folder)
plan = train_plan(len(source), seed=0, recipe=named_recipe("official"), image_size=16, epochs=2)
engine = build_engine("native", source, plan, batch_size=4, workers=2, prefetch=1, budget=FaultBudget(100, 1.0))
list(engine.batches(Cursor(0, 0)))
before = engine.faults().counts
if os.getuid() == 0:  # who may read everything
    os.setuid(65534)
(folder / "01.jpg").unlink()
(folder / "02.jpg").chmod(0)
(folder / "03.jpg").write_bytes((folder / "03.jpg").read_bytes()[:-200])
(folder / "04.jpg").write_bytes(b"")
(folder / "05.jpg").unlink(); (folder / "05.jpg").mkdir()
(folder / "06.jpg").unlink(); (folder / "06.jpg").symlink_to("06.jpg")
os.truncate(folder / "07.jpg", 1 << 33)
list(engine.batches(Cursor(1, 0)))
report = engine.faults()
engine.close()
print(json.dumps([before, report.counts, report.named]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]))
"""


@pytest.mark.slow
def test_files_that_vanish_change_or_are_closed_during_a_run_are_counted_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(encoded(photo(number, 40, 30)))
    if os.getuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        for above in folder.parents[:3]:  # pytest's, closed to others
            above.chmod(above.stat().st_mode | 0o055)
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    before, counts, named = json.loads(lines[0])
    assert before == {}
    assert counts == {"unreadable": 5, "undecodable": 2}
    reasons = dict(sorted(line.split(": ", 1) for line in named))
    assert reasons["01.jpg"] == "No such file or directory"
    assert reasons["02.jpg"] == "Permission denied"
    assert "truncated" in reasons["03.jpg"]
    assert reasons["04.jpg"] == "an empty file"
    assert reasons["05.jpg"] == "Is a directory"
    assert "symbolic links" in reasons["06.jpg"]
    assert "8,589,934,592 bytes" in reasons["07.jpg"]
    assert int(lines[1]) < 1 << 20  # KiB
