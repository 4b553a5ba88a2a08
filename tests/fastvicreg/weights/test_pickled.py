"""Nothing that a checkpoint names outside of torch is imported or called."""

from __future__ import annotations

import argparse
import builtins
import datetime
import importlib
import os
import pickle
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_checkpoints import exclude_bias_and_norm, optimizer, trained, write

from fastvicreg import load_encoder
from fastvicreg.cli import main
from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.weights import pickled

SMALL = ResNetConfig(arch="resnet18", width=16)


class Calling:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Foreign:
    """An object of a class that is not torch's."""

    def __init__(self) -> None:
        self.value = 3


def weights(**more: Any) -> dict[str, Any]:
    return {"model": {f"module.backbone.{n}": v for n, v in trained(SMALL).state_dict().items()}, **more}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "builtins.exec", "shutil.rmtree", "foreign"])
def test_a_checkpoint_that_calls_code_is_refused_by_its_name_and_runs_nothing(
    name: str, old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = tmp_path / "proof"
    (victim := tmp_path / "victim").mkdir()
    write_it = f"open({str(proof)!r}, 'w').write('ran')"
    calls = {
        "posix.system": Calling(os.system, f"touch {proof}"),
        "builtins.eval": Calling(builtins.eval, write_it),
        "builtins.exec": Calling(builtins.exec, write_it),
        "shutil.rmtree": Calling(importlib.import_module("shutil").rmtree, str(victim)),
        "foreign": Calling(touch, str(proof)),
    }
    path = write(weights(extra=calls[name]), tmp_path / "weights.pth", old=old)
    wanted = {"foreign": f"{touch.__module__}.touch", "posix.system": "posix.system"}.get(name, name)
    with pytest.raises(UserError, match=f"weights.pth would run code .* asks for {wanted}, .* save torch.save"):
        load_encoder(path)
    assert main(["export", str(path), str(tmp_path / "out.safetensors")]) == 2
    assert wanted in (told := capsys.readouterr().err)
    assert len(told.splitlines()) == 1
    assert not proof.exists()
    assert victim.exists()
    if name != "shutil.rmtree":
        torch.load(path, weights_only=False)  # the file is what it says: the usual reader runs it
        assert proof.exists()


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-1.6"])
def test_functions_beside_the_weights_are_never_looked_up(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(weights(optimizer=optimizer(), epoch=3), tmp_path / "weights.pth", old=old)
    module = exclude_bias_and_norm.__module__
    monkeypatch.setitem(sys.modules, module, None)  # an import of it would fail
    with pytest.raises(ImportError):
        importlib.import_module(module)
    loaded = pickled.load(path)
    assert loaded.foreign == (f"{module}.exclude_bias_and_norm",)
    held = loaded.content["optimizer"]["param_groups"][0]["weight_decay_filter"]
    assert held.__name__ == "Placeholder"
    assert load_encoder(path).features == 128


@pytest.mark.parametrize(
    "settings",
    [
        argparse.Namespace(lr=0.3, path=Path("x")),
        defaultdict(list, {"a": [1]}),
        {"score": np.float64(3.0), "all": np.arange(3), "when": datetime.timedelta(3)},
        [int, dict, print, torch.optim.SGD, torch.float32, exclude_bias_and_norm],
        partial(exclude_bias_and_norm, torch.ones(1)),
        Counter("abc"),
    ],
    ids=lambda settings: type(settings).__name__,
)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-1.6"])
def test_settings_of_many_kinds_are_no_hindrance(settings: Any, old: bool, tmp_path: Path) -> None:
    path = write(weights(hyper_parameters=settings), tmp_path / "weights.pth", old=old)
    assert load_encoder(path).features == 128


@pytest.mark.peers
def test_omegaconf_s_settings_are_no_hindrance(tmp_path: Path) -> None:
    """solo-learn's checkpoints hold them."""
    omegaconf = pytest.importorskip("omegaconf")
    settings = omegaconf.OmegaConf.create({"optimizer": {"lr": 0.3, "kwargs": {"eta": 0.02, "l": [1, 2]}}})
    assert load_encoder(write(weights(hyper_parameters=settings), tmp_path / "weights.pth")).features == 128


def test_a_function_of_torch_that_no_weights_need_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(weights(extra=Calling(torch.hub.load, "owner/name", "resnet18")), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"asks for torch\.hub\.load, and nothing of it was run"):
        load_encoder(path)


def test_an_object_of_a_foreign_class_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(weights(settings=Foreign()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"asks for {Foreign.__module__}.Foreign, and nothing of it was run"):
        load_encoder(path)


def test_a_whole_pickled_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(torch.nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"is a whole pickled network, .* torch.nn.modules.linear.Linear.*state_dict"):
        load_encoder(path)


def test_plain_pickles_torchscript_and_other_archives_are_refused(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "weights.pkl"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"a": Calling(touch, str(proof))}, protocol=protocol))
        with pytest.raises(UserError, match=f"is a plain pickle, .* it names {touch.__module__}.touch"):
            load_encoder(path)
    assert not proof.exists()
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(script))
    with pytest.raises(UserError, match="is a TorchScript program, no weights"):
        load_encoder(script)


@pytest.mark.parametrize("damage", [lambda whole: whole[:900], lambda _: b"", lambda _: b"\x80\x02nonsense"])
def test_damaged_files_are_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(weights(), tmp_path / "weights.pth")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged, or no checkpoint of torch") as refused:
        load_encoder(path)
    assert "\n" not in str(refused.value)


def test_a_damaged_byte_of_a_packed_archive_is_one_line(tmp_path: Path) -> None:
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(write(weights(), tmp_path / "weights.pth")) as plain:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in plain.namelist():
                archive.writestr(member, plain.read(member))
        (pickled,) = [member for member in plain.namelist() if member.endswith("/data.pkl")]
    with zipfile.ZipFile(packed) as archive:
        entry = archive.getinfo(pickled)
    whole = packed.read_bytes()
    start = entry.header_offset + 30 + len(entry.filename)
    for where in range(start, start + 20):
        packed.write_bytes(whole[:where] + bytes([whole[where] ^ 0xFF]) + whole[where + 1 :])
        with pytest.raises(UserError, match="is damaged, or no checkpoint of torch") as refused:
            load_encoder(packed)
        assert "\n" not in str(refused.value)
