"""``torch.hub`` builds encoders from the repository, and from an archive of it, in which symlinks are text."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peer_checkpoints import trained, write

from fastvicreg.encoders import ENCODERS
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, **options: object) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), name, source="local", **options)  # type: ignore[return-value]


def test_every_architecture_has_an_entry() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # What torch.hub.list shows: everything that can be called and has no underscore before it.
    shown = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert shown == {*ENCODERS, "encoder"}


def test_fresh_and_loaded_encoders(tmp_path: Path) -> None:
    made = trained(ResNetConfig("resnet18", 16))
    file = str(write(dict(made.state_dict()), tmp_path / "weights.pth"))
    x_BCHW = torch.randn(2, 3, 32, 32)
    for found in (load("resnet18", weights=file), load("encoder", weights=file)):
        assert torch.equal(found(x_BCHW), made(x_BCHW))
    assert load("vit_tiny", grid=2, depth=1).features == 192
    assert load("resnet18", width=16, stem="3x3").features == 128
    with pytest.raises(UserError, match=r"--arch resnet34: .* holds resnet18"):
        load("resnet34", weights=file)


def test_an_archive_without_symlinks_works(tmp_path: Path) -> None:
    for name in ("fastvicreg", "pipelines", "kernels", "profiles"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so")
        )
    for name in ("pipelines", "kernels", "profiles"):
        link = tmp_path / "fastvicreg" / name
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    code = (
        f"import torch; made = torch.hub.load({str(tmp_path)!r}, 'resnet18', source='local', width=16); "
        "import fastvicreg, fastvicreg.kernels; print(fastvicreg.__file__, fastvicreg.kernels.__file__, made.features)"
    )
    command = [sys.executable, "-P", "-c", code]
    told = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [
        str(tmp_path / "fastvicreg" / "__init__.py"),
        str(tmp_path / "kernels" / "__init__.py"),
        "128",
    ]
