"""Caches where nothing but the temporary folder can be written: it is used, safely, and it is said once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import logging
from fastvicreg.caches import njit
for name in ("one", "two"):
    @njit(nogil=True)
    def twice(x):
        return 2 * x
print(twice(21))
from fastvicreg.pipelines.draws import permutation
print(len(permutation(0, 0, 10)))
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a process whose temporary folder is ``folder`` and where numba finds no place for its cache."""
    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    only = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | only | {"TMPDIR": str(folder)} | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_compiled_code_goes_to_the_temporary_folder_and_it_is_said_once(tmp_path: Path) -> None:
    script = tmp_path / "compile.py"  # numba caches functions of files alone
    script.write_text(COMPILE)
    ran = run(f"import runpy; runpy.run_path({str(script)!r})", tmp_path / "tmp")
    assert (ran.returncode, ran.stdout) == (0, "42\n10\n"), ran.stderr
    (line,) = ran.stderr.splitlines()
    folder = tmp_path / "tmp" / f"fastvicreg-{os.getuid()}"
    assert f"using {folder}; NUMBA_CACHE_DIR names another" in line
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list((folder / "numba").rglob("*.nbi"))


def test_a_folder_that_another_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    taken = tmp_path / "tmp" / f"fastvicreg-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)  # whatever umask has left
    ran = run("from fastvicreg.caches import cache_folder; print(cache_folder())", tmp_path / "tmp", HOME="/proc")
    assert ran.returncode == 0, ran.stderr
    folder = Path(ran.stdout.strip())
    assert folder.parent == tmp_path / "tmp"
    assert folder != taken
    assert not list(taken.iterdir())


@pytest.mark.parametrize("home", ["/proc", "/dev/null", ""])
def test_a_home_that_cannot_be_written_leaves_the_temporary_folder(tmp_path: Path, home: str) -> None:
    code = "from fastvicreg.caches import cache_folder; print(cache_folder(), cache_folder())"
    if not home:  # no home at all: platformdirs' own answer then begins with "~"
        none = "import fastvicreg.caches as c; from pathlib import Path; c.user_cache_path = lambda name: Path('~/x')"
        code = f"{none}\n{code}"
    ran = run(code, tmp_path / "tmp", HOME=home)
    folder = tmp_path / "tmp" / f"fastvicreg-{os.getuid()}"
    assert (ran.returncode, ran.stdout) == (0, f"{folder} {folder}\n"), ran.stderr
    assert ran.stderr.count("cannot be written: using") == 1
    assert "XDG_CACHE_HOME names another" in ran.stderr


@pytest.mark.slow
def test_compiled_kernels_and_the_doctor_follow(tmp_path: Path) -> None:
    code = """
import os
from fastvicreg.doctor import cache_finding
from fastvicreg.kernels.cuda import cache
cache.write("kept", b"code")
finding = cache_finding()
print(cache.directory(), finding.works, "temporary" in finding.seen, "XDG_CACHE_HOME" in finding.remedy)
"""
    folder = tmp_path / "tmp" / f"fastvicreg-{os.getuid()}"
    ran = run(code, tmp_path / "tmp", HOME="/proc")
    assert (ran.returncode, ran.stdout) == (0, f"{folder / 'cubins'} False True True\n"), ran.stderr
    assert (folder / "cubins" / "kept").read_bytes() == b"code"
    ran = run(code, tmp_path / "tmp", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "kept"))
    assert ran.stdout == f"{tmp_path / 'kept' / 'fastvicreg' / 'cubins'} True False True\n", ran.stderr


def test_the_doctor_counts_what_is_kept_not_holes(tmp_path: Path) -> None:
    """The structure of remote shards is kept as files as long as theirs, nearly all of it holes."""
    code = """
from fastvicreg.caches import cache_folder
from fastvicreg.doctor import cache_finding
(cache_folder() / "kept").write_bytes(bytes(range(256)) * 2**14)
with (cache_folder() / "shard.tar").open("wb") as file:
    file.truncate(2**34)
print(cache_finding().seen)
"""
    ran = run(code, tmp_path / "tmp", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "kept"))
    assert ran.stdout.endswith(", 4 MiB\n"), (ran.stdout, ran.stderr)
