"""A checkpoint that a fault, a kill or a flipped bit met is passed over by name, and the one before it is whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.checkpoint import CheckpointError, Progress
from fastvicreg.train.updater import Updater

FLIPS = 250 * max(1, int(os.environ.get("FASTVICREG_SOAK", "0")))
CALLS = ("mkdir", "save_file", "write_text", "open", "fsync", "rename", "rmtree")
"""What a save asks of the system, by the function that asks."""


class Killed(BaseException):
    """The process ends here: nothing more is done, and nothing cleaned up."""


def parts(value: float) -> tuple[nn.Module, Updater]:
    """A module whose every parameter and moment is ``value``."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    updater = Updater(module, torch.optim.AdamW(module.parameters(), lr=0.0))
    for parameter in module.parameters():
        parameter.data.fill_(value)
        parameter.grad = torch.full_like(parameter, value)
    updater.optimizer.step()
    return module, updater


def save(folder: Path, step: int) -> Path:
    return checkpoints.save(folder, Progress(Cursor(0, step), step, 100), *parts(float(step)), keep=2)


def newest_whole(folder: Path) -> tuple[int, list[str]]:
    """(step of the checkpoint that a resumed run would take, what it says of those it passes over)."""
    told = []
    for path in reversed(checkpoints.listed(folder)):
        module, updater = parts(0.0)
        try:
            progress = checkpoints.restore(path, module, updater)
        except CheckpointError as error:
            told.append(str(error))
            continue
        held: list[Tensor] = [*module.parameters()]
        assert all((value == progress.step).all() for value in held), "a mixture"
        assert all((state["exp_avg"] != 0).all() for state in updater.optimizer.state.values()) == (progress.step > 0)
        return progress.step, told
    return 0, told


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, count: int, make: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Inside, the ``count``-th call of ``CALLS`` raises, a write after half of its bytes; yields the calls made."""
    made: list[str] = []
    dead: list[bool] = []

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if dead and make is Killed:
                raise Killed  # a dead process does not tidy up
            made.append(name)
            if len(made) - 1 != count:
                return real(*args, **options)
            dead.append(True)
            if name in ("save_file", "write_text"):
                real(*args, **options)
                path = Path(args[1] if name == "save_file" else args[0])
                os.truncate(path, path.stat().st_size // 2)
            raise make()

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", wrapped("mkdir", Path.mkdir))
        patched.setattr(Path, "write_text", wrapped("write_text", Path.write_text))
        patched.setattr(Path, "rename", wrapped("rename", Path.rename))
        patched.setattr(checkpoints, "save_file", wrapped("save_file", checkpoints.save_file))
        patched.setattr(os, "fsync", wrapped("fsync", os.fsync))
        patched.setattr(shutil, "rmtree", wrapped("rmtree", shutil.rmtree))
        yield made


def calls_of_a_save(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    for step in (1, 2):
        save(folder, step)
    with failing(monkeypatch, -1, Killed) as made:
        save(folder, 3)
    return made


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT, None])
def test_a_fault_or_a_kill_at_any_call_of_a_save_leaves_the_old_or_the_new_one_whole(
    fault: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calls_of_a_save(monkeypatch, tmp_path / "model")
    assert {"mkdir", "save_file", "write_text", "fsync", "rename", "rmtree"} <= set(made)
    make: Callable[[], BaseException] = Killed if fault is None else lambda: OSError(fault, os.strerror(fault))
    ended: set[int] = set()
    for count, name in enumerate(made):
        folder = tmp_path / f"{count}-{name}"
        for step in (1, 2):
            save(folder, step)
        with failing(monkeypatch, count, make), suppress(UserError, Killed):
            save(folder, 3)
        step, told = newest_whole(folder)
        assert step in (2, 3), (name, told)
        assert not told, (name, told)
        ended.add(step)
        debris = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert fault is None or not debris, (name, debris)
        save(folder, 4)
        assert newest_whole(folder) == (4, []), name
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert ended == {2, 3}


def test_every_flipped_bit_is_found_and_the_one_before_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    files = sorted(newest.iterdir())
    chance = random.Random(0)
    harmless = 0
    for _ in range(FLIPS):
        path = chance.choice(files)
        content = path.read_bytes()
        at, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        path.write_bytes(flipped)
        step, told = newest_whole(tmp_path)
        if step == 2:  # white space between JSON's values, for other white space
            assert path.name == "state.json"
            assert content[at : at + 1].isspace()
            harmless += 1
        else:
            assert step == 1
            assert "step-00000002 is damaged" in told[0], told
        path.write_bytes(content)
    assert harmless <= FLIPS // 50
    assert newest_whole(tmp_path) == (2, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_file_cut_at_any_boundary_is_found(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little") if name.endswith("safetensors") else 1
    ends = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) // 2, len(content) - 2, len(content) - 1}
    for end in sorted(end for end in ends if 0 <= end < len(content)):
        if name == "state.json" and end == len(content) - 1:
            continue  # the line's end
        path.write_bytes(content[:end])
        step, told = newest_whole(tmp_path)
        assert step == 1, end
        assert "step-00000002 is damaged" in told[0]
    path.write_bytes(content + b"\0")
    assert newest_whole(tmp_path)[0] == 1


def test_a_file_of_another_checkpoint_is_found(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copy(older / "optimizer.safetensors", newer / "optimizer.safetensors")
    step, told = newest_whole(tmp_path)
    assert step == 1
    assert "optimizer.safetensors is not as it was written" in told[0]
