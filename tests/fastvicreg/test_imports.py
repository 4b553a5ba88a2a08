"""Every module can be the first that is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALONE = """
import importlib, pkgutil, sys
import torch, fastvicreg
names = [m.name for m in pkgutil.walk_packages(fastvicreg.__path__, "fastvicreg.")]
parts = ("commands", "datasets", "evaluate", "pipelines", "pretrained", "train")
for name in names:
    if name.split(".")[1] not in parts or name.count(".") > 3:
        continue
    for loaded in [one for one in sys.modules if one.startswith("fastvicreg.")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        if "fastvicreg" in str(error):
            print(name, error)
"""


@pytest.mark.slow
def test_no_module_depends_on_what_was_imported_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
