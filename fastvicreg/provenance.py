"""Provenance of figures: the JSON that every measuring command writes names command, commit, versions and hardware.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fastvicreg.errors import UserError

PACKAGES = (
    *("fastvicreg", "torch", "numpy", "numba", "pillow", "simplejpeg", "ffcv", "nvidia-dali-cuda130"),
    *("triton", "cuda-core", "nvidia-cuda-nvrtc", "msgspec"),
)

OWN = b'{\n "'
"""What every file that ``write_json`` has written begins with; torch.profiler's JSON has another indentation."""


def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpus": _gpus(), "system": platform.system()}


def _gpus() -> list[str]:
    """By torch where it is loaded; a command that only reads files need not load it to name them."""
    if torch := sys.modules.get("torch"):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        found += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return found


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with "-dirty" where it has changes outside results/.

    Outside a checkout the one that the wheel was built from, or "installed" where that is not known.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root:
            return _built_from()  # in an environment that some other checkout holds
        head = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain", "--", ".", ":(exclude)profiles/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return _built_from()
    return f"{head}-dirty" if changed else head


def _built_from() -> str:
    try:
        return Path(__file__).with_name("commit.txt").read_text().strip()
    except OSError:
        return "installed"


def document(command: str, rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """The form in which every measuring command writes its figures."""
    return {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "n": n,
        "rows": list(rows),
    }


def require_place(path: str | Path) -> None:
    """``UserError`` where no file can be written at ``path``: to be told before minutes of work. Nothing is made."""
    path = Path(path)
    there = next(folder for folder in path.absolute().parents if folder.exists())
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    elif not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(path if path.exists() else there, os.W_OK):
        reason = "there is no right to"
    if reason:
        raise UserError(f"cannot write to {path}: {reason}; give another place.")


def require_figures(path: str | Path) -> None:
    """``require_place``, and ``UserError`` where a file that holds other things than figures would be replaced.

    So that ``verify x.beton --json x.beton`` costs no dataset.
    """
    require_place(path)
    path = Path(path)
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begin = file.read(len(OWN))
    except OSError as error:
        raise UserError(f"cannot read --json {path}: {error.strerror}; give another name.") from error
    if begin not in (b"", OWN):
        raise UserError(f"--json {path} exists and holds no figures of fastvicreg's: delete it, or give another name.")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content``, whole or not at all; ``UserError`` where the place cannot be written."""
    path, text = Path(path), json.dumps(content, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a terminal, a pipe
            path.write_text(text)
            return
        place = path.resolve()  # a link stays one
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            draft.write_text(text)
            draft.replace(place)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write the figures to {path}: {error.strerror}") from error
