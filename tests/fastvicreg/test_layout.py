"""The house: one import name, arrows one way, nothing heavy at the start."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nvrtc import require_compiler

from fastvicreg.kernels.cuda import ARCHITECTURES
from fastvicreg.kernels.cuda.build import variants
from fastvicreg.kernels.cuda.compiler import missing_compiler
from fastvicreg.kernels.cuda.prebuilt import RUNS_ON
from fastvicreg.profiles.bench.pack import build_wheel
from fastvicreg.provenance import commit

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = "fastvicreg/kernels/cuda/cubins.zip"
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


@pytest.mark.slow
def test_no_source_imports_a_bare_folder_name() -> None:
    files = sources()
    assert len(files) > 40
    for path in files:
        bare = {name for name in imports(path) if name.split(".")[0] in ("pipelines", "kernels", "profiles")}
        assert not bare, f"{path} imports {bare}: write fastvicreg.{bare.pop()}"


def imported_at_once(path: Path) -> set[str]:
    """Modules that importing a file imports: not in functions, nor for type checkers alone."""
    found = set()
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += [*node.body, *node.orelse, *node.finalbody]
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {}
    for path in sources():
        if "tests" in path.parts[len(ROOT.parts) :]:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "fastvicreg" else ("fastvicreg", *parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def module_of(name: str) -> str | None:
        """The module that an import of ``name`` reads: itself, or the one that holds the attribute."""
        return name if name in modules else next((n for n in (name.rpartition(".")[0],) if n in modules), None)

    graph = {
        name: {found for imported in imported_at_once(path) if (found := module_of(imported)) and found != name}
        for name, path in modules.items()
    }
    assert len(graph) > 150
    assert "fastvicreg.contracts" in graph["fastvicreg.train.trainer"]
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize(
    "arguments", ["--help", "train --method byol --help", "eval linear --help", "study table4 --help"]
)
def test_help_imports_no_torch(arguments: str) -> None:
    code = (
        "import contextlib, sys\nfrom fastvicreg.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(sys.argv[1:])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stdout[-200:] + done.stderr


def test_arrows_run_one_way() -> None:
    ground = ("contracts", "registry", "errors", "json_text", "stages", "stalls", "caches")
    core = tuple(f"fastvicreg.{name}" for name in ground)
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built once for each process that tests: from a copy, since several build at once."""
    return zipfile.ZipFile(build_wheel(ROOT, tmp_path_factory.mktemp("dist")))


@pytest.mark.slow
def test_a_built_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fastvicreg"}
    packed = {name for name in names if name.endswith((".py", ".cu", ".cuh"))}
    kernels = [*(ROOT / "kernels").glob("*/*.cu"), *(ROOT / "kernels").glob("*/*.cuh")]
    expected = {str(path.relative_to(ROOT)) for path in (*sources(), *kernels) if "tests" not in path.parts}
    expected = {name if name.startswith("fastvicreg/") else f"fastvicreg/{name}" for name in expected}
    assert packed == expected


FIND_ALL = """
import sys
import fastvicreg
from fastvicreg.kernels.cuda import build, machine_code, prebuilt
assert fastvicreg.__file__.startswith(sys.argv[1]), fastvicreg.__file__
prebuilt.compile_cubin = None
devices = [device for devices in prebuilt.RUNS_ON.values() for device in devices]
for source, defines in build.variants():
    for device in devices:
        assert machine_code(source, device, defines=defines).origin == "prebuilt"
print(len(build.variants()), len(devices), prebuilt.architectures())
"""


@pytest.mark.slow
def test_a_built_wheel_names_its_commit(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    asked = "from fastvicreg.provenance import commit; print(commit())"
    found = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == commit(), found.stderr


@pytest.mark.slow
def test_a_built_wheel_carries_machine_code_where_there_is_a_compiler(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    if missing_compiler():
        assert ARCHIVE not in wheel.namelist()
    require_compiler()
    assert wheel.getinfo(ARCHIVE).file_size < 2 << 20
    wheel.extractall(tmp_path)
    command = [sys.executable, "-c", FIND_ALL, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    count = len(variants())
    expected = f"{count} {sum(map(len, RUNS_ON.values()))} {dict.fromkeys(ARCHITECTURES, count)}\n"
    assert (found.stdout, found.returncode) == (expected, 0), found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "reason"), [("cuda", "needs cuda-core and cuda-bindings"), ("torch", "torch is not installed")]
)
def test_a_build_without_compiler_says_so_and_carries_no_machine_code(tmp_path: Path, hidden: str, reason: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{hidden!r}] = None\n")
    (tmp_path / ARCHIVE).parent.mkdir(parents=True)
    (tmp_path / ARCHIVE).write_bytes(b"an earlier build's")
    moved = tmp_path / "fastvicreg" / "moved_since.py"
    moved.write_text("")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "no machine code in this build, kernels are compiled at first use" in built.stdout
    assert reason in built.stdout
    assert len(built.stdout.splitlines()) == 1
    assert (tmp_path / "fastvicreg/kernels/lars/lars.cu").is_file()
    assert not (tmp_path / ARCHIVE).exists()
    assert not moved.exists()


def test_an_editable_installation_carries_no_machine_code(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "editable_wheel", "--dist-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "machine code" not in built.stdout
    (path,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".zip")]


@pytest.mark.parametrize("module", ["fastvicreg.cli", "fastvicreg.config", "fastvicreg.commands.train"])
def test_the_command_line_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy', 'numba'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
