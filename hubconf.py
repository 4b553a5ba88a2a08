"""Encoders through ``torch.hub.load``: fresh, or with the weights of a run, of an export or of anyone's checkpoint.

    torch.hub.load(".", "resnet50", source="local", weights="runs/mine")

An archive of the repository has text files where the package has symlinks to its three sibling folders; they are found
beside it then.
"""

from __future__ import annotations as _annotations

from pathlib import Path as _Path
from typing import Any as _Any

import fastvicreg

dependencies = ["torch", "numpy", "numba", "PIL", "safetensors", "tyro", "rich", "msgspec", "simplejpeg", "xxhash"]

_ROOT = _Path(__file__).resolve().parent
if not (_ROOT / "fastvicreg" / "pipelines").is_dir():
    fastvicreg.__path__.append(str(_ROOT))


def encoder(weights: str, **options: _Any) -> _Any:
    """Whatever encoder ``weights`` holds; see ``fastvicreg.load_encoder`` for ``options``."""
    from fastvicreg.pretrained import load_encoder

    return load_encoder(weights, **options)


def resnet18(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-18; ``settings`` (width, stem) of a fresh one, ``stem`` or ``checkpoint`` of one from ``weights``."""
    return _built("resnet18", weights, settings)


def resnet34(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-34; as ``resnet18``."""
    return _built("resnet34", weights, settings)


def resnet50(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-50; as ``resnet18``."""
    return _built("resnet50", weights, settings)


def resnet101(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-101; as ``resnet18``."""
    return _built("resnet101", weights, settings)


def resnet50x2(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-50 of twice the width in every layer; as ``resnet18``."""
    return _built("resnet50x2", weights, settings)


def vit_tiny(weights: str | None = None, **settings: _Any) -> _Any:
    """Vision transformer, 192 wide; ``settings`` (patch, grid, depth) of a fresh one."""
    return _built("vit_tiny", weights, settings)


def vit_small(weights: str | None = None, **settings: _Any) -> _Any:
    """Vision transformer, 384 wide; as ``vit_tiny``."""
    return _built("vit_small", weights, settings)


def vit_base(weights: str | None = None, **settings: _Any) -> _Any:
    """Vision transformer, 768 wide; as ``vit_tiny``."""
    return _built("vit_base", weights, settings)


def convnext_tiny(weights: str | None = None, **settings: _Any) -> _Any:
    """ConvNeXt-T, features 768 wide; ``settings`` (width, patch, layer_scale, final_norm) of a fresh one."""
    return _built("convnext_tiny", weights, settings)


def convnext_small(weights: str | None = None, **settings: _Any) -> _Any:
    """ConvNeXt-S, features 768 wide; as ``convnext_tiny``."""
    return _built("convnext_small", weights, settings)


def convnext_base(weights: str | None = None, **settings: _Any) -> _Any:
    """ConvNeXt-B, features 1024 wide; as ``convnext_tiny``."""
    return _built("convnext_base", weights, settings)


def convnext_large(weights: str | None = None, **settings: _Any) -> _Any:
    """ConvNeXt-L, features 1536 wide; as ``convnext_tiny``."""
    return _built("convnext_large", weights, settings)


def convnext_xlarge(weights: str | None = None, **settings: _Any) -> _Any:
    """ConvNeXt-XL, features 2048 wide; as ``convnext_tiny``."""
    return _built("convnext_xlarge", weights, settings)


def timm(weights: str | None = None, **settings: _Any) -> _Any:
    """A network of timm's; ``settings`` (model: timm's name, made_for) of a fresh one."""
    return _built("timm", weights, settings)


def resnet18_1d(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-18 over time, for waveforms (B, 1, T); ``settings`` (width) of a fresh one."""
    return _built("resnet18_1d", weights, settings)


def resnet34_1d(weights: str | None = None, **settings: _Any) -> _Any:
    """ResNet-34 over time; as ``resnet18_1d``."""
    return _built("resnet34_1d", weights, settings)


def gru(weights: str | None = None, **settings: _Any) -> _Any:
    """Words' numbers (B, L) to features; ``settings`` (width, embedding, vocabulary) of a fresh one."""
    return _built("gru", weights, settings)


def text_transformer(weights: str | None = None, **settings: _Any) -> _Any:
    """Words' numbers (B, L) to features; ``settings`` (width, depth, vocabulary) of a fresh one."""
    return _built("text_transformer", weights, settings)


def _built(arch: str, weights: str | None, settings: dict[str, _Any]) -> _Any:
    if weights is not None:
        return encoder(weights, arch=arch, **settings)
    from fastvicreg.encoders import build_encoder, config_class

    return build_encoder(config_class(arch)(arch=arch, **settings))
