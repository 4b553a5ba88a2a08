"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all; nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from xxhash import xxh3_128_hexdigest

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.json_text import parse_json
from fastvicreg.train.updater import Updater, UpdaterState

FORMAT, WITHOUT_DIGESTS = 4, (1, 2)
"""1: the method's own parts were under "objective."; 1 and 2 recorded no digests. 3 was left out: a bit makes it 2."""
PREFIX = "step-"
PARTS = ("model", "optimizer")
"""Of a checkpoint; each is a file, whose XXH3-128 state.json records beside its own."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next batch, the steps done, and how many samples its data had."""

    cursor: Cursor
    step: int
    samples: int
    names: str = ""
    """Digest of the samples' names in their order; "" in checkpoints that have none."""


def compare_data(saved: Progress, now: Progress, folder: Path) -> str:
    """A word on the run in ``folder`` having had other images than ``now``, or these in another order; "" where not.

    ``UserError`` where they are more or fewer: what is left of its epochs is of the former number.
    """
    if saved.samples != now.samples:
        raise UserError(
            f"{folder} was trained on {saved.samples} images and its data now has {now.samples}: give --data as it "
            "was, or start a new run in another --out."
        )
    if saved.names in ("", now.names):
        return ""
    return (
        f"the {now.samples:,} images have other names, or another order, than those that {folder} was trained on: "
        "unless they are the same, it goes on otherwise than it would have."
    )


class CheckpointError(Exception):
    """A checkpoint that is damaged or incomplete."""


class NoRoomError(UserError):
    """A checkpoint for which the disk has no room; the earlier ones are whole."""


@dataclass(frozen=True)
class Snapshot:
    """A run's state on the host, as it was at one step, whatever training does meanwhile."""

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    scaler: dict[str, Any]
    copied: torch.cuda.Event | None
    """Recorded behind copies that the device has still to make."""


def snapshot(progress: Progress, module: nn.Module, updater: Updater) -> Snapshot:
    """Copy the state to the host. On CUDA only asks for the copies, which come before the next step's work there."""
    state = updater.state()
    held = [module.state_dict(), state.tensors]
    on_device = any(tensor.is_cuda for tensors in held for tensor in tensors.values())
    model, moments = ({name: _on_host(tensor) for name, tensor in tensors.items()} for tensors in held)
    copied = None
    if on_device:
        copied = torch.cuda.Event()
        copied.record()
    return Snapshot(progress, model, moments, state.scaler, copied)


def _on_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.detach().clone(memory_format=torch.preserve_format)
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor.detach(), non_blocking=True)


def save(folder: Path, progress: Progress, module: nn.Module, updater: Updater, *, keep: int) -> Path:
    """``write`` of a ``snapshot``, at once.

    ``module`` is the method; optimizer state is kept under its parameters' names.
    """
    return write(folder, snapshot(progress, module, updater), keep=keep)


def write(folder: Path, state: Snapshot, *, keep: int) -> Path:
    """Write ``folder``/step-N and remove all but the newest ``keep`` up to it, and what lies beyond it.

    Beyond it lie only checkpoints that were damaged, else the run would have gone on from them.

    Everything is written to a temporary name, fsynced and renamed, so that a kill at any moment leaves the earlier
    checkpoints whole. ``UserError`` where a value is not finite, or the disk refuses; ``NoRoomError`` where it is full.
    """
    if state.copied is not None:
        state.copied.synchronize()
    progress, tensors, moments = state.progress, state.model, state.optimizer
    for origin, held in (("model", tensors), ("optimizer", moments)):
        if spoilt := not_finite(held):
            raise UserError(
                f"no checkpoint at step {progress.step}: {spoilt} of the {origin} is not finite, and no later step "
                f"mends it; {_kept(folder)}. Start a new run with a lower --base-lr, or with --precision off."
            )
    final = folder / f"{PREFIX}{progress.step:08d}"
    draft = folder / f".{final.name}.tmp"
    content = {
        "format": FORMAT,
        "epoch": progress.cursor.epoch,
        "batch": progress.cursor.batch,
        "step": progress.step,
        "samples": progress.samples,
        "names": progress.names,
        "scaler": state.scaler,
        "torch": torch.__version__,
    }
    try:
        for cut_short in folder.glob(f".{PREFIX}*.tmp"):  # by a kill
            shutil.rmtree(cut_short, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, draft / "model.safetensors")
        save_file({k: v.contiguous() for k, v in moments.items()}, draft / "optimizer.safetensors")
        content["digests"] = {part: _digest(draft / f"{part}.safetensors") for part in PARTS}
        content["digest"] = _digest_of(content)
        (draft / "state.json").write_text(json.dumps(content, indent=1) + "\n")
        for path in (*draft.iterdir(), draft):
            sync_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync_to_disk(folder)
        whole = [path for path in listed(folder) if path.name <= final.name]
        for other in set(listed(folder)) - set(whole[-keep:]):
            shutil.rmtree(other)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        kind = NoRoomError if _no_room(error) else UserError
        raise kind(f"cannot write the checkpoint {final}: {error}; earlier checkpoints are untouched.") from error
    return final


def _no_room(error: OSError | SafetensorError) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # safetensors tells an error of the system in words alone.
    return error.errno in full if isinstance(error, OSError) else any(f"os error {n})" in str(error) for n in full)


def listed(folder: Path) -> list[Path]:
    """Complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that holds NaN or infinity, and how many more do; "" where all are finite."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return ""
    device = next(iter(floating.values())).device
    flags = torch.stack([tensor.isfinite().all().to(device) for tensor in floating.values()]).tolist()
    names = [name for name, finite in zip(floating, flags, strict=True) if not finite]
    return "" if not names else names[0] + (f" (and {len(names) - 1} more tensors)" if len(names) > 1 else "")


def _kept(folder: Path) -> str:
    found = listed(folder)
    return f"{found[-1]} is untouched" if found else "there is none from before"


def restore(checkpoint: Path, module: nn.Module, updater: Updater) -> Progress:
    """Load what ``save`` wrote.

    ``CheckpointError`` where a file is missing or damaged; ``UserError`` where it belongs to another architecture.
    """
    try:
        state = _read_state(checkpoint)
        tensors, moments = (read_tensors(checkpoint, part) for part in PARTS)
        cursor = Cursor(int(state["epoch"]), int(state["batch"]))
        progress = Progress(cursor, int(state["step"]), int(state["samples"]), str(state.get("names", "")))
        if min(*cursor, progress.step, progress.samples) < 0:
            raise ValueError(f"it names {progress}")
        scaler_state = state["scaler"]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}") from error
    if state["format"] == 1:
        tensors, moments = ({k.removeprefix("objective."): v for k, v in held.items()} for held in (tensors, moments))
    load_weights(module, tensors, str(checkpoint))
    updater.load(UpdaterState(moments, scaler_state))
    return progress


def read_tensors(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one of ``PARTS``; ``CheckpointError`` where they are not those that were written."""
    path = checkpoint / f"{part}.safetensors"
    try:
        state = _read_state(checkpoint)
        if "digests" in state and _digest(path) != state["digests"][part]:
            raise ValueError(f"{path.name} is not as it was written")
        return load_file(path)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}") from error


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """``UserError`` for a newer version's; ``ValueError``, ``KeyError`` or ``TypeError`` where it is damaged."""
    state: dict[str, Any] = parse_json((checkpoint / "state.json").read_bytes())
    recorded = state.pop("digest", None)
    if recorded is not None and recorded != _digest_of(state):  # first: what else it says is not to be relied on
        raise ValueError("state.json is not as it was written")
    if state["format"] not in (*WITHOUT_DIGESTS, FORMAT):
        raise UserError(f"{checkpoint} is of format {state['format']}, this version reads {FORMAT}: use the other.")
    if recorded is None and state["format"] == FORMAT:
        raise KeyError("digest")
    return state


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path.name} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return xxh3_128_hexdigest(content)


def _digest_of(state: Mapping[str, Any]) -> str:
    return xxh3_128_hexdigest(json.dumps(state, sort_keys=True).encode())


def load_weights(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy ``tensors`` into ``module``; ``UserError`` naming the first that does not fit, with nothing copied."""
    require_fits(module, tensors, origin)
    module.load_state_dict(tensors)


def require_fits(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> None:
    """``UserError`` naming the first of ``tensors`` that ``module``, which may be on the meta device, has not so."""
    own = module.state_dict()
    for name in (*own, *tensors):
        if name not in tensors or name not in own:
            there, missing = ("the model", "the checkpoint") if name not in tensors else ("the checkpoint", "the model")
            raise UserError(f"{origin} is of another architecture: {there} has {name}, {missing} has not.")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} there, {tuple(own[name].shape)} in the model"
            raise UserError(f"{origin} is of another architecture: {name} is {shapes}.")


def sync_to_disk(path: Path) -> None:
    """Return once a file, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
