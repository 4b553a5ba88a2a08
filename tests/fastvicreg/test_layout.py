"""The house: one import name, arrows one way, nothing heavy at the start."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fastvicreg", "pipelines", "kernels", "profiles", "tests")


def sources() -> list[Path]:
    """Every Python file once: the three symlinks below fastvicreg/ show files a second time."""
    linked = tuple(ROOT / "fastvicreg" / name for name in ("pipelines", "kernels", "profiles"))
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if not any(path.is_relative_to(link) for link in linked)]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "fastvicreg"
                else {node.module or ""}
            )
    return found


def test_no_source_imports_a_bare_folder_name() -> None:
    files = sources()
    assert len(files) > 40
    for path in files:
        bare = {name for name in imports(path) if name.split(".")[0] in ("pipelines", "kernels", "profiles")}
        assert not bare, f"{path} imports {bare}: write fastvicreg.{bare.pop()}"


def test_arrows_run_one_way() -> None:
    core = ("fastvicreg.contracts", "fastvicreg.registry", "fastvicreg.errors", "fastvicreg.stages")
    allowed = {
        "kernels": ("fastvicreg.kernels", *core),
        "pipelines": ("fastvicreg.pipelines", "fastvicreg.kernels", *core),
    }
    for folder, targets in allowed.items():
        for path in (ROOT / folder).rglob("*.py"):
            for name in imports(path):
                if name.split(".")[0] == "fastvicreg":
                    assert name.startswith(targets), f"{path} imports {name}"


def test_backends_are_imported_by_no_core_file() -> None:
    own = {"ffcv_loader.py", "peers_ffcv.py", "dali_graph.py", "peers_dali.py"}
    for path in sources():
        if "tests" not in path.parts and path.name not in own:
            backends = {name for name in imports(path) if name.split(".")[0] in ("ffcv", "nvidia", "apex", "amp_C")}
            assert not backends, f"{path} imports {backends}"


def test_a_built_wheel_has_one_top_level_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fastvicreg"}
    packed = {name for name in names if name.endswith((".py", ".cu", ".cuh"))}
    kernels = [*(ROOT / "kernels").glob("*/*.cu"), *(ROOT / "kernels").glob("*/*.cuh")]
    expected = {str(path.relative_to(ROOT)) for path in (*sources(), *kernels) if "tests" not in path.parts}
    expected = {name if name.startswith("fastvicreg/") else f"fastvicreg/{name}" for name in expected}
    assert packed == expected


@pytest.mark.parametrize("module", ["fastvicreg.cli", "fastvicreg.config", "fastvicreg.commands.train"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy', 'numba'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
