"""Which implementation of the loss runs: by name, or the best that can run on the device at hand."""

from __future__ import annotations

import functools
import logging
from importlib import import_module

import torch

from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    "auto": "",
    "reference": "fastvicreg.kernels.loss.reference",
    "gram": "fastvicreg.kernels.loss.gram",
    "cuda": "fastvicreg.kernels.loss.cuda",
    "triton": "fastvicreg.kernels.loss.triton_impl",
}
"""Modules by name; those that need more than torch have ``obstacle(device, dtype)``: why they cannot run, or ""."""

AUTO = {
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.bfloat16, torch.float16),  # its fp32 products are no match for cuBLAS's, which "gram" takes
}
"""What "auto" tries on a GPU before "gram", the best first, and for which embeddings."""


def known(impl: str) -> None:
    """``UserError`` for a name that is no implementation."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(unknown("loss implementation", impl, IMPLEMENTATIONS))


@functools.cache
def choose(impl: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The module of the implementation for that type of device and of embeddings, logged once.

    Raises ``UserError`` for an unknown name, or for one that cannot run here, which is never replaced by another.
    """
    known(impl)
    name = impl
    if impl == "auto":
        name = "gram" if device == "cpu" else _best(device, dtype)
    elif obstacle := _obstacle(impl, device, dtype):
        raise UserError(f"the loss implementation {impl!r} cannot run here: {obstacle}; choose auto or gram.")
    log.info("loss implementation: %s (%s)", impl, IMPLEMENTATIONS[name])
    return IMPLEMENTATIONS[name]


def _best(device: str, dtype: torch.dtype) -> str:
    for name, dtypes in AUTO.items():
        if dtype in dtypes:
            obstacle = _obstacle(name, device, dtype)
            if not obstacle:
                return name
            log.info("loss implementation: not %s: %s", name, obstacle)
    return "gram"


def _obstacle(name: str, device: str, dtype: torch.dtype) -> str:
    if name not in AUTO:
        return ""
    try:
        module = import_module(IMPLEMENTATIONS[name])
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return module.obstacle(device, dtype)
