"""The examples run as their first lines say."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from runs import log

from fastvicreg.config_file import to_json
from fastvicreg.methods import METHODS
from fastvicreg.pretrained import load_trained

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module that others may import."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    tested = {"own_training_loop", "fabric_training_loop", "own_method", "features_from_a_run"}
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_own_training_loop(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = example("own_training_loop", monkeypatch).main([str(make_folder(train=32, val=0))])
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == 4


@pytest.fixture
def _fabric() -> None:
    pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install lightning-fabric")


@pytest.mark.usefixtures("_fabric")
def test_fabric_training_loop_stopped_anywhere_resumes_bit_for_bit(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loop = str(make_folder(train=32, val=0)), example("fabric_training_loop", monkeypatch).main
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    whole = loop([folder, str(tmp_path / "whole.ckpt")])
    assert len(whole) == 4
    assert len(set(whole)) == 4
    assert all(map(math.isfinite, whole))
    for steps in (1, 2, 3):
        arguments = [folder, str(tmp_path / f"{steps}.ckpt")]
        assert loop(arguments, steps=steps) + loop(arguments) == whole


@pytest.mark.usefixtures("_fabric")
def test_fabric_training_loop_in_two_processes_is_the_one_of_one(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = str(make_folder(train=32, val=0)), example("fabric_training_loop", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = module.main([folder, str(tmp_path / "one.ckpt")])
    command = [sys.executable, str(module.__file__), folder, str(tmp_path / "two.ckpt"), "2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = [float(line.split()[-1]) for line in output.splitlines() if line.startswith("step ")]
    assert found == pytest.approx(wanted[1::2], rel=1e-3)  # printed at each epoch's end
    assert (tmp_path / "two.ckpt").is_file()


def test_features_from_a_run(uninterrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = uninterrupted
    images = sorted(map(str, (data / "val").rglob("*.jpg")))[:3]
    features_NF = example("features_from_a_run", monkeypatch).main([str(run), *images])
    assert features_NF.shape == (3, 128)
    assert features_NF.isfinite().all()


def test_own_method(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "alignment", "")  # taken back after the test
    module = example("own_method", monkeypatch)
    run = module.main([str(make_folder()), str(tmp_path / "run")])
    rows = [row for row in log(run) if "total" in row]
    assert len(rows) == 6
    assert all(math.isfinite(row["alignment"]) and row["embedding_std"] > 0 for row in rows)
    trained = load_trained(run)
    assert '"name": "alignment"' in to_json(trained.config)
