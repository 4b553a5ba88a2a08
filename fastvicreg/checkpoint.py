"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError

FORMAT = 1
PREFIX = "step-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next batch, the steps done, and how many samples its data had."""

    cursor: Cursor
    step: int
    samples: int


class CheckpointError(Exception):
    """A checkpoint that is damaged or incomplete."""


def save(
    folder: Path,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    keep: int,
) -> Path:
    """Write ``folder``/step-N and remove all but the newest ``keep`` up to it, and what lies beyond it.

    Beyond it lie only checkpoints that were damaged, else the run would have gone on from them.

    ``module`` holds encoder and objective; optimizer state is kept under its parameters' names. Everything is written
    to a temporary name, fsynced and renamed, so that a kill at any moment leaves the earlier checkpoints whole.
    ``UserError`` where the disk refuses.
    """
    final = folder / f"{PREFIX}{progress.step:08d}"
    draft = folder / f".{final.name}.tmp"
    state = {
        "format": FORMAT,
        "epoch": progress.cursor.epoch,
        "batch": progress.cursor.batch,
        "step": progress.step,
        "samples": progress.samples,
        "scaler": scaler.state_dict(),
        "torch": torch.__version__,
    }
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, draft / "model.safetensors")
        save_file(_optimizer_tensors(module, optimizer), draft / "optimizer.safetensors")
        (draft / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        for path in (*draft.iterdir(), draft):
            _fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _fsync(folder)
        whole = [path for path in listed(folder) if path.name <= final.name]
        for other in set(listed(folder)) - set(whole[-keep:]):
            shutil.rmtree(other)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; earlier checkpoints are untouched.") from error
    return final


def listed(folder: Path) -> list[Path]:
    """Complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def restore(
    checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Progress:
    """Load what ``save`` wrote.

    ``CheckpointError`` where a file is missing or damaged; ``UserError`` where it belongs to another architecture.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        tensors = load_file(checkpoint / "model.safetensors")
        moments = load_file(checkpoint / "optimizer.safetensors")
        if state["format"] != FORMAT:
            raise UserError(f"{checkpoint} is of format {state['format']}, this version reads {FORMAT}: use the other.")
        cursor = Cursor(int(state["epoch"]), int(state["batch"]))
        progress = Progress(cursor, int(state["step"]), int(state["samples"]))
        scaler_state = state["scaler"]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}") from error
    load_weights(module, tensors, str(checkpoint))
    _load_optimizer(module, optimizer, moments)
    if scaler.is_enabled() and scaler_state:
        scaler.load_state_dict(scaler_state)
    return progress


def load_weights(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy ``tensors`` into ``module``; ``UserError`` naming the first that does not fit, with nothing copied."""
    own = module.state_dict()
    for name in (*own, *tensors):
        if name not in tensors or name not in own:
            there, missing = ("the model", "the checkpoint") if name not in tensors else ("the checkpoint", "the model")
            raise UserError(f"{origin} is of another architecture: {there} has {name}, {missing} has not.")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} there, {tuple(own[name].shape)} in the model"
            raise UserError(f"{origin} is of another architecture: {name} is {shapes}.")
    module.load_state_dict(tensors)


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("/")
        parameter = parameters[name]
        # A scalar step count stays where the optimizer keeps it; a moment takes its parameter's place and layout.
        if value.ndim:
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][key] = value


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
