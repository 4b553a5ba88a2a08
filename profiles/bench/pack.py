"""``bench pack``: an archive with which a GPU machine without a network, a compiler or much time runs ``bench all``.

It holds this program with its kernels' machine code, the packages that the machine lacks, Triton's kernels compiled
ahead, the tests that wait for a GPU, and ``run.sh``, which installs beside itself and runs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fastvicreg.errors import UserError
from fastvicreg.provenance import commit, require_place

GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64")
SOURCES = (
    *("fastvicreg", "pipelines", "kernels", "profiles"),
    *("pyproject.toml", "setup.py", "README.md", "LICENSE"),
)
"""What a wheel is built from."""
EXTRAS = ("cuda",)
BESIDE = ("pytest",)
"""What the tests that wait for a GPU need besides."""
TORCHS = ("torch", "numpy", "triton")
"""A GPU machine without a list of its packages is taken to have these, with what they require."""
CORES = 2
"""Processes that compile Triton's kernels at once, at most as many as there are cores."""

RUN = """\
#!/bin/sh
# sh run.sh OUT [SECONDS [SECONDS OF TESTS [DEVICE]]]: needs python3 with torch, and nothing from outside this folder.
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?sh run.sh OUT [SECONDS [SECONDS OF TESTS [DEVICE]]]}
python=${PYTHON:-python3}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \\
    --disable-pip-version-check --root-user-action ignore --target "$here/site" "$here"/wheels/*.whl || exit 2
export PYTHONPATH="$here/site"
if [ -d "$here/triton" ]; then
    export TRITON_CACHE_DIR="$here/triton"
    "$python" -m fastvicreg.profiles.bench.ahead --relocate "$here/triton" || exit 2
fi
cd "$here" || exit 2
"$python" -m fastvicreg bench all --device "${4:-cuda}" --out "$out" --budget "${2:-420}"
code=$?
if [ "${3:-120}" -gt 0 ]; then
    timeout "${3:-120}" "$python" -m pytest -q -p no:cacheprovider -m gpu tests >"$out/pytest.log" 2>&1
    tail -n 30 "$out/pytest.log"
fi
exit $code
"""


@dataclass(frozen=True)
class Target:
    """The machine: its Python as "3.12", and what it has, by canonical name (None: a version that is not known)."""

    python: str
    there: Mapping[str, str | None]


def read_packages(path: str | Path) -> dict[str, str | None]:
    """The packages in a file of ``pip freeze`` or ``pip list --format=freeze``; ``UserError`` where it holds none."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read --there {path}: {getattr(error, 'strerror', None) or 'it is no text'}."
        ) from error
    found: dict[str, str | None] = {}
    for line in lines:
        name, _, version = line.split("#")[0].partition("==")
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name.strip()):
            found[canonicalize_name(name.strip())] = version.strip() or None
    if not found:
        raise UserError(f"--there {path} names no package: give what `pip list --format=freeze` prints there.")
    return found


def assumed(python: str) -> Target:
    """A machine that has torch, numpy and Triton with what these require."""
    here = [name for name in TORCHS if find_spec(name)]  # Triton is not, where torch is a CPU's
    return Target(python, dict.fromkeys((*TORCHS, *_closure(here, python, {}))))


def needed(target: Target) -> dict[str, str]:
    """Packages that the machine lacks to run this program and its GPU tests, with the versions installed here."""
    wanted = [f"fastvicreg[{','.join(EXTRAS)}]", *BESIDE]
    return {name: version for name, version in _closure(wanted, target.python, target.there).items() if version}


def _closure(wanted: Sequence[str], python: str, there: Mapping[str, str | None]) -> dict[str, str]:
    """What ``wanted`` require of each other by the metadata of what is installed here, without what is ``there``."""
    environment: dict[str, str] = {key: str(value) for key, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, str] = {}
    waiting = [Requirement(one) for one in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in there or (name in found and not requirement.extras):
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"{requirement.name} is not installed here, which would tell its version: pip install -e '.[dev,cuda]'."
            ) from error
        # This program's own wheel is built, not fetched.
        found[name] = "" if name == "fastvicreg" else distribution.version
        for line in distribution.requires or ():
            try:
                one = Requirement(line)
            except InvalidRequirement:
                continue
            extras = ("", *requirement.extras)
            if one.marker is None or any(one.marker.evaluate(environment | {"extra": extra}) for extra in extras):
                waiting.append(one)
    return found


def pack(path: str | Path, target: Target, *, limit: int = 60_000_000) -> dict[str, int]:
    """Write the archive; returns the bytes of each of its parts.

    ``UserError`` outside a checkout, where a package cannot be fetched for that Python, and where the archive would be
    larger than ``limit`` bytes, with what is largest in it.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise UserError("bench pack builds this program's wheel: run it in a checkout.")
    require_place(path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "fastvicreg-gpu-check")
        (folder / "wheels").mkdir(parents=True)
        print("this program's wheel, with its kernels' machine code ...", flush=True)
        build_wheel(root, folder / "wheels")
        packages = needed(target)
        print(f"packages for Python {target.python}: {', '.join(packages) or 'none'} ...", flush=True)
        _fetch(packages, target.python, folder / "wheels")
        _compile_triton(target, Path(temporary), folder / "triton")
        _copy_tests(root, folder)
        (folder / "run.sh").write_text(RUN)
        return _write(Path(path), folder, limit)


def build_wheel(root: Path, folder: Path) -> Path:
    """This program's wheel into ``folder``, built from a copy: building leaves files, and others may build now."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "source")
        copy.mkdir()
        for name in SOURCES:
            source = root / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "results", "cubins.zip")
                shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
        (copy / "fastvicreg" / "commit.txt").write_text(f"{commit()}\n")
        _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy))
    return next(folder.glob("fastvicreg-*.whl"))


def _fetch(packages: Mapping[str, str], python: str, folder: Path) -> None:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    only = ("--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms)
    if packages:
        _pip("download", *only, "-d", str(folder), *(f"{name}=={version}" for name, version in packages.items()))


def _compile_triton(target: Target, temporary: Path, folder: Path) -> None:
    """Triton's kernels as that machine's Triton looks for them; left out where its version is not known."""
    version = target.there.get("triton")
    if not version:
        print("Triton's kernels are left out: --there does not tell its version of triton.", flush=True)
        return
    print(f"kernels of Triton {version} ...", flush=True)
    wheels, site = temporary / "triton-there", temporary / "triton-here"
    _fetch({"triton": version}, target.python, wheels)
    here = "{}.{}".format(*sys.version_info)
    _fetch({"triton": version}, here, temporary / "triton-wheel")
    own = next((temporary / "triton-wheel").glob("*.whl"))
    _pip("install", "--no-deps", "--no-index", "--target", str(site), str(own))
    command = [sys.executable, "-m", "fastvicreg.profiles.bench.ahead", str(folder)]
    paths = f"{site}:{Path(__file__).resolve().parents[2]}"
    shares = [[*command, str(next(wheels.glob("*.whl"))), str(share), str(CORES)] for share in range(CORES)]
    with ThreadPoolExecutor(CORES) as threads:
        print("\n".join(threads.map(lambda share: _run(share, {"PYTHONPATH": paths}), shares)), flush=True)
    _run([*command[:-1], "--strip", str(folder)], {"PYTHONPATH": paths})


def _copy_tests(root: Path, folder: Path) -> None:
    """The tests marked ``gpu``, with what they import, and the settings that pytest reads."""
    marked = [path for path in (root / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    beside = [*(root / "tests").rglob("conftest.py"), *(root / "tests" / "support").rglob("*.py")]
    for path in (*marked, *beside, root / "pyproject.toml"):
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def _write(path: Path, folder: Path, limit: int) -> dict[str, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        with tarfile.open(draft, "w:gz", compresslevel=6) as archive:
            archive.add(folder, folder.name)
        sizes = {part.name: sum(one.stat().st_size for one in _files(part)) for part in folder.iterdir()}
        size = draft.stat().st_size
        if size > limit:
            wheels = sorted(_files(folder / "wheels"), key=lambda one: -one.stat().st_size)[:3]
            largest = ", ".join(f"{one.name} ({one.stat().st_size / 1e6:.1f} MB)" for one in wheels)
            raise UserError(
                f"the archive would take {size / 1e6:.0f} MB, over --limit-mb {limit / 1e6:g}; largest: {largest}. "
                "Name what the machine has by --there."
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return sizes | {"archive": size}


def _files(part: Path) -> list[Path]:
    return [part] if part.is_file() else [one for one in part.rglob("*") if one.is_file()]


def _pip(*arguments: str) -> str:
    return _run([sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]])


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What the command printed; ``UserError`` with its last line where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise UserError(f"{' '.join(command[1:5])} ... failed: {errors[0]}")
    return done.stdout.strip()
