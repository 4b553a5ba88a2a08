"""``bench pack``: what a GPU machine lacks, in an archive that works where nothing else of this project is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.kernels.dispatch import KERNELS
from fastvicreg.profiles.bench import ahead, pack

HERE = "{}.{}".format(*sys.version_info)


def test_what_the_machine_lacks_is_what_this_program_requires_without_what_is_there() -> None:
    names = ("torch", "numpy", "numba", "matplotlib", "scikit-image", "tensorboard", "pillow", "pytest")
    there: dict[str, str | None] = dict.fromkeys(names)
    needed = pack.needed(pack.Target("3.12", there))
    assert {"simplejpeg", "tyro", "msgspec", "platformdirs", "cuda-core"} <= needed.keys()
    assert not needed.keys() & {*there, "fastvicreg", "sympy", "llvmlite", "ruff", "hypothesis"}
    assert needed["simplejpeg"] == metadata.version("simplejpeg")
    assert not pack.needed(pack.Target("3.12", there | dict.fromkeys(needed)))


def test_a_machine_without_a_list_is_taken_to_have_torch_and_what_it_requires() -> None:
    there = pack.assumed("3.12").there
    assert {"torch", "numpy", "sympy", "filelock"} <= there.keys()
    assert "numba" not in there


def test_packages_are_read_as_pip_prints_them(tmp_path: Path) -> None:
    printed = tmp_path / "there.txt"
    printed.write_text("Torch==2.11.0+cu130\n# a comment\nTyping_Extensions==4.1\nours @ file:///x\n-e git+y\nnumba\n")
    assert pack.read_packages(printed) == {"torch": "2.11.0+cu130", "typing-extensions": "4.1", "numba": None}
    printed.write_text("\n")
    with pytest.raises(UserError, match=r"names no package: give what `pip list --format=freeze` prints"):
        pack.read_packages(printed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give its name, such as"),
        (["x.tar.gz", "--python", "4"], "--python 4: give a version such as 3.12"),
        (["x.tar.gz", "--limit-mb", "0"], "--limit-mb 0: give 1 or more"),
        (["x.tar.gz", "--there", "nowhere.txt"], "cannot read --there nowhere.txt: No such file"),
        (["."], "cannot write to .: it is a folder"),
    ],
)
def test_what_cannot_be_packed_is_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "pack", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_too_large_an_archive_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "large.whl").write_bytes(os.urandom(3_000_000))
    with pytest.raises(UserError, match=r"3 MB, over --limit-mb 2; largest: large.whl \(3.0 MB\). Name what the machi"):
        pack._write(tmp_path / "x.tar.gz", folder, 2_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_folder_of_an_archive_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "wheels").mkdir(parents=True)
    sizes = pack._write(tmp_path / "new" / "x.tar.gz", folder, 1_000_000)
    assert (tmp_path / "new" / "x.tar.gz").stat().st_size == sizes["archive"]


COMPILE = """
import sys
from pathlib import Path
import torch
from fastvicreg.profiles.bench import ahead
ahead.obstacles_away()
few = [lambda: ahead.norm((32, 64, 8, 8), torch.bfloat16, 2, added=True)]
print(ahead.fill(Path(sys.argv[1]), few, key_of=Path(sys.argv[2]) if len(sys.argv) > 2 else None))
"""


def _compiled(folder: Path, *more: str) -> int:
    unfused = os.environ | {"TRITON_DEFAULT_FP_FUSION": "0"}  # as from Triton 3.10 on
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder), *more], env=unfused, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_kernels_that_were_compiled_ahead_are_found_where_they_were_taken(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    made, moved = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    count = _compiled(made)
    assert count >= 5
    ahead.strip(made)
    assert {path.suffix for path in made.rglob("*") if path.is_file()} == {".cubin", ".json"}
    assert not any(str(tmp_path) in path.read_text() for path in made.rglob("*.json"))
    made.rename(moved)
    ahead.relocate(moved)
    described = [json.loads(path.read_text()) for path in moved.rglob("*.json") if not path.name.startswith("__grp__")]
    assert described
    assert all(kernel["enable_fp_fusion"] for kernel in described)
    there = {path for path in moved.rglob("*") if path.suffix in (".cubin", ".ptx", ".ttir", ".llir")}
    assert _compiled(moved) == count
    assert {path for path in moved.rglob("*") if path.suffix in (".cubin", ".ptx", ".ttir", ".llir")} == there


@pytest.mark.slow
def test_a_cache_can_be_made_for_the_triton_of_another_python(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    from triton.runtime.cache import triton_key

    folder = Path(triton.__file__).parent
    wheel = tmp_path / f"triton-{triton.__version__}-any.whl"

    def write(library: bytes) -> Path:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"triton-{triton.__version__}.dist-info/METADATA", "")
            archive.writestr("triton/_C/libtriton.so", library)
            for part in ("runtime", "compiler", "backends", "language"):
                for path in (folder / part).rglob("*.py"):
                    archive.write(path, f"triton/{path.relative_to(folder)}")
        return wheel

    own = (folder / "_C" / "libtriton.so").read_bytes()
    assert ahead.key_of_wheel(write(own), triton.__version__) == triton_key()
    assert ahead.key_of_wheel(write(b"built for another Python"), triton.__version__) != triton_key()
    with pytest.raises(UserError, match=r"is not of Triton 1\.0\.0, which is installed here"):
        ahead.key_of_wheel(wheel, "1.0.0")


@pytest.mark.slow
def test_an_unpacked_archive_checks_its_machine_with_what_it_brought(tmp_path: Path) -> None:
    """A fresh environment that has all the packages but this project: nothing of the checkout is imported."""
    there = tmp_path / "there.txt"
    installed = {one.metadata["Name"] for one in metadata.distributions()} - {"fastvicreg", "triton"}
    there.write_text("\n".join(sorted(installed)))
    archive = tmp_path / "check.tar.gz"
    assert main(["bench", "pack", str(archive), "--python", HERE, "--there", str(there)]) == 0
    subprocess.run(["tar", "xzf", str(archive), "-C", str(tmp_path)], check=True)  # as docs/hardware.md says

    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True, symlinks=True)
    site = fresh / "lib" / f"python{HERE}" / "site-packages"
    # A line of a .pth file: of that folder no .pth file is read, such as the one that makes a checkout importable.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    out, check = tmp_path / "out", tmp_path / "fastvicreg-gpu-check"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PYTHON": str(fresh / "bin" / "python")}
    command = ["sh", str(check / "run.sh"), str(out), "40", "60", "cpu"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode in (0, 1), ran.stderr  # 1: the budget leaves parts out
    written = json.loads((out / "all.json").read_text())
    assert written["rows"][0]["outcome"] == "ok", ran.stdout
    assert "skipped" in (out / "pytest.log").read_text().splitlines()[-1], ran.stdout
    where = "import fastvicreg, fastvicreg.kernels.cuda.prebuilt as p; print(fastvicreg.__file__, p.architectures())"
    environment |= {"PYTHONPATH": str(check / "site")}
    asked = subprocess.run(
        [environment["PYTHON"], "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert asked.stdout.startswith(str(check / "site")), asked.stderr
    assert "sm_90" in asked.stdout


def test_every_launch_of_a_resnet_50_s_norms_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the step that ``bench all`` measures: the norms on a block's shortcut, without ReLU, were not."""
    pytest.importorskip("triton")
    from fastvicreg.kernels.norm import triton_impl

    launched: set[Any] = set()

    def launch(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        launched.add((kernel.fn.__name__, *map(kind, arguments), *sorted(options.items())))

    def kind(value: Any) -> Any:
        """What Triton makes machine code of its own for."""
        if isinstance(value, torch.Tensor):
            return value.dtype, value.data_ptr() % 16
        return (value == 1, value % 16 == 0) if isinstance(value, int) else type(value)

    monkeypatch.setattr(triton_impl, "_launch", launch)
    monkeypatch.setattr(ahead, "HALF", (torch.bfloat16,))
    monkeypatch.setattr(ahead, "obstacles_away", lambda: None)
    monkeypatch.setattr(triton_impl, "obstacle", lambda device, dtype: "")
    monkeypatch.setattr(ahead, "_loss", lambda *size: None)
    choose = KERNELS["norm"].choose
    choose.cache_clear()
    for call in ahead.calls():
        call()
    compiled, launched = launched, set()
    for at, channels in enumerate((64, 128, 256, 512)):
        inner, outer = (512, channels, 56 >> at, 56 >> at), (512, 4 * channels, 56 >> at, 56 >> at)
        ahead.norm(inner, torch.bfloat16, 2, added=False)
        ahead.norm(outer, torch.bfloat16, 2, added=True)
        ahead.norm(outer, torch.bfloat16, 2, added=False, relu=False)
    choose.cache_clear()
    assert launched
    assert launched <= compiled
