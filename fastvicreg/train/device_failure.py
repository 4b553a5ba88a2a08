"""What an error of a step comes from, where the message alone does not say: another process, or the device."""

from __future__ import annotations

import re

import torch

PEER_GONE = re.compile("gloo|NCCL|Connection (reset|closed|refused)|Broken pipe", re.IGNORECASE)
"""In the words of a collective whose other side has ended."""


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
