"""Checkpoints appear whole or not at all, hold every state, and load nothing that could run code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.checkpoint import CheckpointError, Progress
from fastvicreg.train.updater import Updater


def stepped(steps: int = 2) -> tuple[nn.Module, Updater]:
    """A module with buffers and the updater of an optimizer with state."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    return module, Updater(module, optimizer)


def test_everything_comes_back(tmp_path: Path) -> None:
    module, updater = stepped()
    path = checkpoints.save(tmp_path, Progress(Cursor(3, 7), 42, 100), module, updater, keep=2)
    other, restored = stepped(0)
    assert checkpoints.restore(path, other, restored) == Progress(Cursor(3, 7), 42, 100)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for left, right in zip(module.parameters(), other.parameters(), strict=True):
        for key, value in updater.optimizer.state[left].items():
            assert torch.equal(value, restored.optimizer.state[right][key])
            assert value.stride() == restored.optimizer.state[right][key].stride()


def test_only_the_newest_are_kept_and_no_draft_stays(tmp_path: Path) -> None:
    state = stepped()
    for step in range(1, 6):
        checkpoints.save(tmp_path, Progress(Cursor(0, step), step, 100), *state, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (3, 4, 5)]


def test_damaged_checkpoints_beyond_a_new_one_do_not_push_it_out(tmp_path: Path) -> None:
    state = stepped()
    for step in (4, 9, 10):
        checkpoints.save(tmp_path, Progress(Cursor(0, step), step, 100), *state, keep=3)
    # 9 and 10 turned out damaged, the run went on from 4.
    checkpoints.save(tmp_path, Progress(Cursor(0, 5), 5, 100), *state, keep=2)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["missing", "empty", "cut"])
def test_damage_is_told_apart_from_another_architecture(tmp_path: Path, file: str, harm: str) -> None:
    path = checkpoints.save(tmp_path, Progress(Cursor(0, 1), 1, 100), *stepped(), keep=2)
    target = path / file
    content = target.read_bytes()
    target.unlink()
    if harm != "missing":
        target.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.restore(path, *stepped(0))


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = stepped()
    kept = checkpoints.save(tmp_path, Progress(Cursor(0, 1), 1, 100), *state, keep=2)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "sync_to_disk", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(tmp_path, Progress(Cursor(0, 2), 2, 100), *state, keep=2)
    assert list(tmp_path.iterdir()) == [kept]
    assert checkpoints.restore(kept, *stepped(0)).step == 1


@pytest.mark.parametrize("spoilt", ["0.weight", "1.running_var", "exp_avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_not_written_over_the_good_one(
    tmp_path: Path, spoilt: str, value: float
) -> None:
    module, updater = stepped()
    kept = checkpoints.save(tmp_path, Progress(Cursor(0, 1), 1, 100), module, updater, keep=2)
    moments = next(iter(updater.optimizer.state.values()))
    with torch.no_grad():
        tensor = (module.state_dict() | moments)[spoilt]
        tensor[(0,) * tensor.ndim] = value
    with pytest.raises(UserError, match=f"step 2: .*{spoilt} of the .* is not finite.*{kept.name} is untouched"):
        checkpoints.save(tmp_path, Progress(Cursor(0, 2), 2, 100), module, updater, keep=2)
    assert list(tmp_path.iterdir()) == [kept]
    assert checkpoints.restore(kept, *stepped(0)).step == 1


def test_missing_and_foreign_tensors_are_named() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(UserError, match="the model has bias, the checkpoint has not"):
        checkpoints.load_weights(module, {"weight": torch.ones(2, 2)}, "there")
    whole = {"weight": torch.ones(2, 2), "bias": torch.ones(2), "extra": torch.ones(1)}
    with pytest.raises(UserError, match="the checkpoint has extra, the model has not"):
        checkpoints.load_weights(module, whole, "there")
    assert torch.equal(module.weight, before)
