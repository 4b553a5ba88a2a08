"""The device that computes: which it is, how exactly it multiplies, and how what the host has made gets there."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from fastvicreg.errors import UserError

AUTOCAST = {"off": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type that each precision computes in, where it is not the weights' own."""

SLOW_FP16 = (
    "fp16 takes a CPU a hundred times as long as --precision off: torch has its convolutions' gradients for GPUs alone"
)


def resolve_device(asked: str) -> str:
    """ "auto" as cuda where there is one; ``UserError`` for a device that is not here.

    A numbered device becomes the current one: kernels that are not torch's are launched there.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"--device {asked!r} is no device: give auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked} is not supported: give auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch {torch.__version__} finds no CUDA device here; give --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    if device.index is not None:
        torch.cuda.set_device(device)
    return asked


def evaluation_device(asked: str) -> str:
    """The same for what evaluates: without TF32, which torch's convolutions have where nobody switches it off."""
    device = resolve_device(asked)
    exact_products("off")
    return device


def resolve_precision(asked: str, device: str) -> str:
    """ "auto" as bf16 on a GPU, where it pays, else off."""
    if asked == "auto":
        return "bf16" if device.startswith("cuda") else "off"
    return asked


def autocast(device: str, precision: str) -> torch.autocast | nullcontext[None]:
    """What a network's forward pass runs in; ``precision`` is a key of ``AUTOCAST``."""
    dtype = AUTOCAST[precision]
    return torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()


def exact_products(precision: str) -> None:
    """Whether a GPU may round an fp32 product's factors to TF32: only where it was asked for.

    Under autocast too the loss and the optimizer compute in fp32 and mean it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def search_convolutions(device: str) -> None:
    """Let cuDNN try its kernels for each convolution at its first call, on a GPU: shapes stay, and it pays.

    As main_vicreg.py has it. What is measured beside training must have it too, or is of other kernels.
    """
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True


def sent(host: Tensor, device: torch.device) -> Tensor:
    """``host`` on ``device``, for which a GPU's work under way is not waited for, as it is from pageable memory."""
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
