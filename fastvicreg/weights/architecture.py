"""An encoder's settings from the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from fastvicreg.encoders import EncoderConfig
from fastvicreg.encoders.convnext.config import SIZES as CONVNEXTS
from fastvicreg.encoders.convnext.config import ConvNeXtConfig
from fastvicreg.encoders.resnet.config import STEMS, ResNetConfig, Stem
from fastvicreg.encoders.resnet.network import ARCHITECTURES, Bottleneck
from fastvicreg.encoders.vit.config import SIZES, ViTConfig
from fastvicreg.errors import UserError


def resnet_of(tensors: Mapping[str, Tensor], origin: str, *, stem: str = "") -> ResNetConfig:
    """The ResNet that has these weights; ``stem`` where the shape of its first convolution leaves a choice.

    ``UserError`` naming ``origin`` for one that is not among ours.
    """
    first = _shape(tensors, "conv1.weight", origin)
    width, channels, kernel = first[:3]
    if channels != 3:
        raise UserError(f"{origin} takes images of {channels} channels: encoders here take 3.")
    stems = [name for name, form in STEMS.items() if form.kernel == kernel]
    if stem and stem not in stems:
        raise UserError(f"{origin} has a first convolution of {kernel}x{kernel}, which is no --stem {stem}.")
    if not stems:
        raise UserError(
            f"{origin} has a first convolution of {kernel}x{kernel}: the stems here are {', '.join(STEMS)}."
        )
    chosen: Stem = stem or stems[0]  # type: ignore[assignment]
    depths = tuple(_count(tensors, rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in tensors
    alike = [
        (arch, multiple)
        for arch, (block, own, multiple) in ARCHITECTURES.items()
        if own == depths and (block is Bottleneck) == bottleneck
    ]
    if not alike:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"{origin} is a ResNet of {' '.join(map(str, depths))} {kind} blocks, which is none of "
            f"{', '.join(ARCHITECTURES)}."
        )
    planes = _shape(tensors, "layer1.0.conv1.weight", origin)[0]
    if planes != width:
        raise UserError(
            f"{origin} has {planes} channels inside its first blocks and {width} before them (a wide ResNet of "
            f"torchvision): those here have as many."
        )
    arch, multiple = next((found for found in alike if 64 * found[1] == width), alike[0])
    return ResNetConfig(arch=arch, width=width // multiple, stem=chosen)


def vit_of(tensors: Mapping[str, Tensor], origin: str) -> ViTConfig:
    """The vision transformer that has these weights. ``UserError`` naming ``origin`` for one that is not among ours."""
    width, channels, patch = _shape(tensors, "patch_embed.proj.weight", origin)[:3]
    if channels != 3:
        raise UserError(f"{origin} takes images of {channels} channels: encoders here take 3.")
    arch = next((name for name, (own, _) in SIZES.items() if own == width), None)
    if arch is None:
        widths = ", ".join(f"{name} {own}" for name, (own, _) in SIZES.items())
        raise UserError(f"{origin} is a vision transformer {width} wide; those here are {widths}.")
    positions = _shape(tensors, "pos_embed", origin)[1]
    grid = math.isqrt(max(positions - 1, 0))
    if "cls_token" not in tensors or grid * grid != positions - 1:
        raise UserError(
            f"{origin} has {positions} positions {'and a' if 'cls_token' in tensors else 'and no'} class token: "
            f"vision transformers here have one for the class token, and a square of patches."
        )
    return ViTConfig(arch=arch, patch=patch, grid=grid, depth=_count(tensors, r"blocks\.(\d+)\."))


def convnext_of(tensors: Mapping[str, Tensor], origin: str) -> ConvNeXtConfig:
    """The ConvNeXt that has these weights. ``UserError`` naming ``origin`` for one that is not among ours.

    One without layer scales is taken for VICRegL's, which norms positions: ConvNeXt's own and timm's have them.
    """
    width, channels, patch = _shape(tensors, "stem.0.weight", origin)[:3]
    if channels != 3:
        raise UserError(f"{origin} takes images of {channels} channels: encoders here take 3.")
    if (
        any(".grn." in name for name in tensors)
        or len(_shape(tensors, "stages.0.blocks.0.mlp.fc1.weight", origin)) != 2
    ):
        raise UserError(f"{origin} is a ConvNeXt of another kind (V2, or timm's below tiny): give --arch timm.")
    depths = tuple(_count(tensors, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
    alike = [name for name, (_, own) in CONVNEXTS.items() if own == depths]
    if not alike:
        known = ", ".join(CONVNEXTS)
        raise UserError(f"{origin} is a ConvNeXt of {' '.join(map(str, depths))} blocks, which is none of {known}.")
    arch = next((name for name in alike if CONVNEXTS[name][0] == width), alike[0])
    own_width = 0 if CONVNEXTS[arch][0] == width else width
    if "stages.0.blocks.0.gamma" in tensors:
        return ConvNeXtConfig(arch=arch, width=own_width, patch=patch)
    return ConvNeXtConfig(arch=arch, width=own_width, patch=patch, layer_scale=0.0, final_norm="positions")


def described(config: EncoderConfig) -> str:
    """An encoder's settings in a few words."""
    if isinstance(config, ResNetConfig):
        return f"{config.arch} of width {config.width} with a {config.stem} stem"
    if isinstance(config, ViTConfig):
        return f"{config.arch} of {config.depth} blocks on {config.grid} x {config.grid} patches of {config.patch} px"
    if isinstance(config, ConvNeXtConfig):
        width = config.width or CONVNEXTS[config.arch][0]
        normed = "" if config.final_norm == "pooled" else ", which norms positions"
        return f"{config.arch} of width {width} on patches of {config.patch} px{normed}"
    return config.arch


def native_size(config: EncoderConfig) -> int:
    """Side of the images that such an encoder is usually trained on, where nothing says it."""
    if isinstance(config, ViTConfig):
        return config.patch * config.grid
    if isinstance(config, ResNetConfig) and config.stem != "7x7":
        return 32
    return 224


def _shape(tensors: Mapping[str, Tensor], name: str, origin: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"{origin} has no {name}: it is not a whole encoder.")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers a name has at the pattern's group, counted from 0."""
    found = {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}
    return max(found, default=-1) + 1
