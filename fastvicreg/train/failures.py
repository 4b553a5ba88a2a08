"""What ended a run, in its user's words: its batch, its numbers, the device, or another process."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fastvicreg.config import TrainConfig
from fastvicreg.errors import DivergedError, UserError
from fastvicreg.stalls import StalledError
from fastvicreg.train.assemble import patience_of
from fastvicreg.train.distributed import OtherProcessError
from fastvicreg.train.updater import NON_FINITE

PEER_GONE = re.compile("gloo|NCCL|Connection (reset|closed|refused)|Broken pipe", re.IGNORECASE)
"""In the words of a collective whose other side has ended."""
PEER_SILENT = re.compile("timed? ?out", re.IGNORECASE)
"""In those of one whose other side has not answered in time."""

HOST_FULL = "can't allocate memory"
"""In the words of torch's allocator on the CPU."""


def device_failure(device: str) -> str:
    """What a CUDA device has failed with, "" where it works.

    A failed assertion on the device comes up in whichever call is the next, in that library's words; this asks torch.
    """
    if not device.startswith("cuda"):
        return ""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error)
    return ""


def explained(
    error: RuntimeError | MemoryError, failure: str, config: TrainConfig, *, processes: int, diverged: str
) -> UserError | None:
    """``error`` of a step, and the device's ``failure``, as a user's error; None for one that is nobody's mistake.

    ``diverged`` is the line for a loss that is no longer finite.
    """
    if isinstance(error, torch.OutOfMemoryError):
        size = config.run.batch_size
        return UserError(f"the device's memory does not hold this run: give less than --batch-size {size}.")
    if isinstance(error, MemoryError) or HOST_FULL in str(error):
        return UserError(
            f"this machine's memory does not hold the run (it says: {str(error).splitlines()[0]}): give less than "
            f"--batch-size {config.run.batch_size}, a smaller --image-size than {config.data.image_size}, or a smaller "
            f"--prefetch than {config.data.prefetch}."
        )
    if processes > 1 and PEER_GONE.search(str(error)):
        if PEER_SILENT.search(str(error)):
            return StalledError("another process, which this one waits for,", patience_of(config))
        return OtherProcessError("another process has ended, which tells why; this one cannot go on.")
    if any(sign in f"{error} {failure}" for sign in (NON_FINITE, "device-side assert")):
        return DivergedError(diverged)
    return None


def diverged(config: TrainConfig, precision: str, folder: Path, step: int) -> str:
    """The line for a run in ``folder`` whose loss or gradient was last finite at ``step``."""
    return (
        f"loss or gradient are no longer finite after step {step} of {folder}: "
        f"start a new run with a lower --base-lr than {config.optim.base_lr:g}"
        + (", or with --precision off." if precision != "off" else ".")
    )
