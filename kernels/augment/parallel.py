"""The CPU implementation's host side: parameters and memory for the compiled code, which has all of the work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fastvicreg.contracts import Photometric
from fastvicreg.kernels.augment.compiled_views import augment_views
from fastvicreg.kernels.augment.reference import JITTER, extended_boxes, hue_bytes, jitter_turns, normalize


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why this cannot make views of that dtype from crops on that type of device, or ""."""
    return "" if device == "cpu" else f"it runs on the CPU, the crops are on {device}"


def augment(
    crops_BVHWC: Tensor, params_BVP: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """As ``fastvicreg.kernels.augment.augment``, which checks the arguments; both tensors are on the host.

    Runs on ``torch.get_num_threads()`` threads.
    """
    B, V, H, W, C = crops_BVHWC.shape
    out_VBHWC = _empty((V, B, H, W, C), dtype)
    params_NP = params_BVP.reshape(B * V, -1)
    values_N4 = params_NP[:, list(JITTER)]
    values_N4[:, JITTER.index(Photometric.HUE)] = hue_bytes(params_NP[:, Photometric.HUE])
    radius_N, inner_N, outer_N = extended_boxes(params_NP[:, Photometric.BLUR_SIGMA])
    levels_1C256 = torch.arange(256, dtype=torch.float32).expand(1, C, 256)
    arguments = (
        crops_BVHWC.reshape(B * V, H, W * C).contiguous(),
        jitter_turns(params_NP[:, Photometric.ORDER]),
        values_N4,
        params_NP[:, Photometric.GRAYSCALE].contiguous(),
        radius_N,
        inner_N.to(torch.uint32),
        outer_N.to(torch.uint32),
        params_NP[:, Photometric.SOLARIZE].contiguous(),
        _bits(normalize(levels_1C256, mean, std)[0].to(dtype)),
        _bits(out_VBHWC).view(V, B, H, W * C),
    )
    _in_parts(B * V, torch.get_num_threads(), *(argument.numpy() for argument in arguments))
    return tuple(view_BHWC.permute(0, 3, 1, 2) for view_BHWC in out_VBHWC.unbind(0))


def _in_parts(crops: int, threads: int, *arguments: np.ndarray) -> None:
    """Python threads, which sleep when they wait: a second OpenMP pool would spin against torch's for the cores."""
    if threads == 1:
        augment_views(0, crops, *arguments)
        return
    size = max(1, -(-crops // (4 * threads)))  # blurred views take longer: small parts let the threads end together
    parts = range(0, crops, size)
    work = [_pool(threads).submit(augment_views, at, min(at + size, crops), *arguments) for at in parts]
    for part in work:
        part.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fastvicreg-augment")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory by numpy, which asks for huge pages: torch's page faults would take a quarter of the kernel's time."""
    element = np.float32 if dtype == torch.float32 else np.uint16
    return torch.from_numpy(np.empty(shape, element)).view(dtype)


def _bits(x: Tensor) -> Tensor:
    """The same memory, 16-bit formats as uint16: numpy has no bfloat16, and values are only looked up and copied."""
    return x if x.dtype == torch.float32 else x.view(torch.uint16)
