"""The CUDA implementation's host side: one row of numbers a view, one launch a batch, as an operator of torch's.

Recipes are a tensor, so that a captured graph takes the next batch's by a copy into it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvicreg.contracts import Photometric, UserError
from fastvicreg.kernels.augment.reference import JITTER, extended_boxes, hue_bytes, jitter_turns, normalize
from fastvicreg.kernels.cuda import Variant, kernel
from fastvicreg.kernels.cuda import obstacle as cuda_obstacle

SOURCE = "augment/augment.cu"
RECIPE = 15  # numbers of 32 bits: augment.cu's struct Recipe
LARGEST_RADIUS = 1
WIDEST_HALO = 3 * (LARGEST_RADIUS + 1)  # rows
RUN = 16  # pixels that a thread blurs along a row
FEWEST_THREADS, MOST_THREADS, PIXELS_PER_THREAD = 128, 1024, 64  # a block's
FIXED_BYTES = 328  # of shared memory, before the table of levels
TABLE = 6 * 256
CONTRAST, SATURATION, HUE = (JITTER.index(column) for column in JITTER[1:])


def obstacle(device: str, dtype: torch.dtype) -> str:
    """Why this cannot make views of that dtype from crops on that type of device, or ""."""
    return cuda_obstacle() if device == "cuda" else f"it takes crops on CUDA devices, not on {device}"


def augment(
    crops_BVHWC: Tensor, params_BVP: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """As ``fastvicreg.kernels.augment.augment``, which checks the arguments; ``params_BVP`` is on the host.

    Enqueued on the current stream without waiting for the device. Raises ``UserError`` for a blur wider than sigma
    2.4, for images whose rows do not fit shared memory, and where there is no compiler or too old a device.
    """
    device = crops_BVHWC.device
    recipes_BVR = recipes(params_BVP)
    if device.type == "cuda":
        recipes_BVR = recipes_BVR.pin_memory().to(device, non_blocking=True)
    out_VBHWC = augment_views(crops_BVHWC, recipes_BVR, levels(tuple(mean), tuple(std), dtype, device))
    return tuple(view_BHWC.permute(0, 3, 1, 2) for view_BHWC in out_VBHWC.unbind(0))


@torch.library.custom_op("fastvicreg::augment", mutates_args=())
def augment_views(crops_BVHWC: Tensor, recipes_BVR: Tensor, levels_CL: Tensor) -> Tensor:
    """Views (V, B, H, W, C) in the dtype of ``levels``, from uint8 crops and the results of ``recipes`` and ``levels``.

    All on one CUDA device. Can be captured in a CUDA graph once it ran there.
    """
    B, V, H, W, C = crops_BVHWC.shape
    out_VBHWC = crops_BVHWC.new_empty((V, B, H, W, C), dtype=levels_CL.dtype)
    limit = shared_limit(crops_BVHWC.device)
    launch = launch_of(crops_BVHWC.contiguous(), recipes_BVR.contiguous(), levels_CL, out_VBHWC, limit)
    run = kernel(SOURCE, "augment", defines=launch.defines, device=crops_BVHWC.device)
    run(launch.grid, launch.block, *launch.arguments, shared_bytes=launch.shared_bytes)
    return out_VBHWC


@augment_views.register_fake
def _(crops_BVHWC: Tensor, recipes_BVR: Tensor, levels_CL: Tensor) -> Tensor:
    B, V, H, W, C = crops_BVHWC.shape
    return crops_BVHWC.new_empty((V, B, H, W, C), dtype=levels_CL.dtype)


def shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block may take there."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


class Launch(NamedTuple):
    """What the kernel is started with; ``shared_bytes`` a block."""

    grid: tuple[int, int]
    block: int
    arguments: tuple[Tensor | np.number, ...]
    shared_bytes: int
    defines: dict[str, int]


def launch_of(
    crops_BVHWC: Tensor, recipes_BVR: Tensor, levels_CL: Tensor, out_VBHWC: Tensor, shared_limit: int
) -> Launch:
    """One block a view, or several where an image does not fit ``shared_limit`` bytes.

    Tensors are contiguous. ``UserError`` where a row is too long for any block, ``ValueError`` where the tensors do
    not fit each other.
    """
    B, V, H, W, _ = crops_BVHWC.shape
    if recipes_BVR.shape != (B, V, RECIPE) or recipes_BVR.dtype != torch.int32 or levels_CL.shape != (3, 256):
        shapes = f"{tuple(recipes_BVR.shape)} {recipes_BVR.dtype} and {tuple(levels_CL.shape)}"
        raise ValueError(f"{B} x {V} views take recipes ({B}, {V}, {RECIPE}) int32 and levels (3, 256), got {shapes}")
    pitch_bytes = 4 * (-(-W // 4) * 3 | 1)
    fixed_bytes = FIXED_BYTES + TABLE * levels_CL.element_size()
    fitting = (shared_limit - fixed_bytes) // pitch_bytes
    strip = H
    if fitting < H:
        inner = fitting - 2 * WIDEST_HALO
        if inner < 1:
            raise UserError(f"the augment kernel 'cuda' does not hold rows of {W} pixels; use 'reference'")
        strip = -(-H // -(-H // inner))  # parts of one height, as near as that goes
    runs = -(-W // RUN)
    if runs > MOST_THREADS:
        raise UserError(f"the augment kernel 'cuda' does not blur rows of {W} pixels; use 'reference'")
    # So many threads that each has work of its own; small images then share a multiprocessor block by block.
    wanted = max(runs, (strip + 2 * WIDEST_HALO) * W // PIXELS_PER_THREAD)
    block = min(MOST_THREADS, max(FEWEST_THREADS, 1 << (wanted - 1).bit_length()))
    aligned = W % 4 == 0 and crops_BVHWC.data_ptr() % 4 == 0
    numbers = (np.int32(number) for number in (B, V, H, W, strip, aligned))
    return Launch(
        grid=(B * V, -(-H // strip)),
        block=block,
        arguments=(crops_BVHWC, recipes_BVR, levels_CL, out_VBHWC, *numbers),
        shared_bytes=fixed_bytes + min(strip + 2 * WIDEST_HALO, H) * pitch_bytes,
        defines={"LEVEL_BYTES": levels_CL.element_size()},
    )


def recipes(params_BVP: Tensor) -> Tensor:
    """What the kernel does to each view, from parameters on the host: (B, V, R) int32, floats by their bits.

    Operations that change nothing are left out. ``UserError`` for a blur wider than the kernel has registers for.
    """
    params_NP = params_BVP.reshape(-1, len(Photometric))
    values_N4 = params_NP[:, list(JITTER)]
    values_N4[:, HUE] = hue_bytes(params_NP[:, Photometric.HUE])
    turns_N4 = jitter_turns(params_NP[:, Photometric.ORDER])
    factors_N4 = values_N4.gather(1, turns_N4.clamp(min=0))
    turns_N4[(factors_N4 == 1) & (turns_N4 != HUE)] = -1
    gray_N1 = torch.where(params_NP[:, Photometric.GRAYSCALE, None] > 0, SATURATION, -1)  # with factor 0
    is_contrast_N4 = turns_N4 == CONTRAST
    contrast_N1 = torch.where(is_contrast_N4.any(1, keepdim=True), is_contrast_N4.int().argmax(1, keepdim=True), -1)
    sigma_N1 = params_NP[:, Photometric.BLUR_SIGMA, None]
    radius_N1, inner_N1, outer_N1 = extended_boxes(sigma_N1)
    if (radius_N1 > LARGEST_RADIUS).any():
        sigma = sigma_N1.max().item()
        raise UserError(f"the augment kernel 'cuda' blurs up to sigma 2.4, not {sigma:g}; use 'reference'")
    radius_N1 = torch.where(sigma_N1 > 0, radius_N1, -1)
    threshold_N1 = params_NP[:, Photometric.SOLARIZE, None]
    columns = (
        *(turns_N4, gray_N1, factors_N4, torch.zeros_like(sigma_N1), contrast_N1),
        *(radius_N1, inner_N1, outer_N1, threshold_N1),
    )
    recipes_NR = torch.cat([_words(column) for column in columns], 1)
    return recipes_NR.view(*params_BVP.shape[:2], RECIPE)


@functools.lru_cache(64)
def levels(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """What each byte of each channel becomes in a view: (C, 256), kept on the device."""
    bytes_1CL = torch.arange(256, dtype=torch.float32).expand(1, len(mean), 256)
    return normalize(bytes_1CL, mean, std)[0].to(dtype).to(device)


def _words(column: Tensor) -> Tensor:
    return column.view(torch.int32) if column.is_floating_point() else column.to(torch.int32)


def variants() -> list[Variant]:
    """What ``augment`` compiles: views of half types and of float32."""
    return [Variant(SOURCE, {"LEVEL_BYTES": level_bytes}) for level_bytes in (2, 4)]
