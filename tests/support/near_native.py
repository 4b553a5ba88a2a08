"""How the dali engine is held against native: within which differences, and in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from stored import epoch_of

from fastvicreg.contracts import Crops, Cursor, Plan, Source
from fastvicreg.pipelines import build_engine

HERE = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
# Under CI it is installed, or the tests fail.
needs_dali = pytest.mark.skipif(
    not (HERE or os.environ.get("CI")), reason="DALI is not installed: pip install nvidia-dali-cuda130"
)

MEAN = 0.3
"""Of 255: mean difference from native's pixels where DALI decodes on the CPU; its cubic filter rounds otherwise."""
WORST = 2.0
"""The same of any one view: crops of a few pixels differ most; a wrong box or flip gives more than 10."""
GPU_MEAN = 1.0
"""The same where the GPU decodes, with jpeg_fancy_upsampling: its inverse DCT and upsampling round otherwise too."""


def assert_near(left: list[Crops], right: list[Crops], mean: float = MEAN) -> None:
    """All but the pixels equal; pixels within ``mean``, those of each view within ``WORST``."""
    assert len(left) == len(right) > 0
    differences = []
    for a, b in zip(left, right, strict=True):
        assert a.cursor == b.cursor
        assert [group.shape for group in a.groups] == [group.shape for group in b.groups]
        for field in ("slot_B", "index_B", "label_B", "fault_B"):
            assert torch.equal(getattr(a, field), getattr(b, field)), (a.cursor, field)
        views = zip(a.views, b.views, strict=True)
        differences.append(torch.stack([(x.cpu().float() - y.float()).abs().mean((1, 2, 3)) for x, y in views], 1))
    difference_NV = torch.cat(differences)
    assert difference_NV.mean() < mean, difference_NV.mean()
    assert difference_NV.max() < WORST, difference_NV.max()


def assert_as_native(source: Source, plan: Plan, start: Cursor, **options: Any) -> dict[str, int]:
    """Both engines deliver and report the same; returns the faults."""
    native, dali = (build_engine(name, source, plan, **options) for name in ("native", "dali"))
    assert_near(epoch_of(dali, start), epoch_of(native, start))
    assert dali.faults() == native.faults()
    return dali.faults().counts


def run_apart(script: str, *arguments: object, seconds: float = 300) -> str:
    """``script`` in a process of its own, which must end well and in time; returns what it prints."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


PRELUDE = """
import sys
import torch
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.engines import dali_samples
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

source = open_source(sys.argv[1])
plan = train_plan(len(source), seed=3, recipe=named_recipe("official"), image_size=32)
dali, native = (build_engine(name, source, plan, batch_size=5, workers=2) for name in ("dali", "native"))
"""
COMPARE = """
for epoch in (0, 1):
    ours, theirs = (list(engine.batches(Cursor(epoch, 0))) for engine in (dali, native))
    for a, b in zip(ours, theirs, strict=True):
        for field in ("slot_B", "index_B", "label_B", "fault_B"):
            assert torch.equal(getattr(a, field), getattr(b, field)), (a.cursor, field)
        difference_B = (a.crops_BVHWC.float() - b.crops_BVHWC.float()).abs().mean((1, 2, 3, 4))
        assert difference_B.max() < 2, (a.cursor, difference_B)
    assert dali.faults() == native.faults()
print(dali.faults().counts)
"""
