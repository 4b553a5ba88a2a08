"""What every export target does: write whole or not at all, read back, compare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastvicreg.errors import UserError
from fastvicreg.export.card import card_of, markdown
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pretrained import TrainedEncoder

TOLERANCE = 1e-6
"""Largest difference of a feature, as a share of the largest feature."""


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, file or folder, which becomes ``path`` once the block is through.

    ``UserError`` where the disk refuses; nothing is left behind then.
    """
    aside = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if aside.is_file():
            aside.chmod(0o666 & ~_umask())  # safetensors writes for its owner alone
        aside.rename(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}.") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


@contextmanager
def draft_with_card(trained: TrainedEncoder, path: Path, load: str) -> Iterator[Path]:
    """``draft`` of a file that has no place for a card: it is written beside, as ``path``.md."""
    beside = path.with_name(path.name + ".md")
    if beside.exists():
        raise UserError(f"{beside} exists already, where the card belongs: give another FILE, or remove it first.")
    with draft(beside) as text, draft(path) as aside:
        yield aside
        text.write_text(markdown(card_of(trained), title=path.name, load=load))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def tensors_of(trained: TrainedEncoder) -> dict[str, Tensor]:
    """The encoder's weights and buffers on the host, under its own names."""
    return {name: value.detach().contiguous().cpu() for name, value in trained.encoder.state_dict().items()}


def noise_input(trained: TrainedEncoder, batch: int = 2, *, side: int = 0) -> Tensor:
    """Noise as the encoder takes it, the same every time: images (B, 3, H, W) of ``side``, or of the size that it was
    trained on; of a run of pairs sounds, or numbers of words."""
    generator = torch.Generator().manual_seed(0)
    if trained.modality is not None:
        shape = trained.config.pair.shape(trained.modality.name)
        if isinstance(trained.modality, Text):
            return torch.randint(0, 8, (batch, *shape), generator=generator)
        return torch.randn(batch, *shape, generator=generator)
    side = side or trained.config.data.image_size
    return torch.randn(batch, 3, side, side, generator=generator)


@torch.no_grad()
def features(module: Any, x_BCHW: Tensor) -> Tensor:
    """(B, F) of a module in evaluation mode on the CPU."""
    return module.eval().cpu()(x_BCHW)


def require_close(
    reader: str, path: Path, found_BF: Tensor, expected_BF: Tensor, tolerance: float = TOLERANCE
) -> float:
    """The largest difference as a share of the largest feature; ``UserError`` where ``reader`` reads something else."""
    if found_BF.shape != expected_BF.shape:
        raise UserError(
            f"{path}: {reader} gives features of {tuple(found_BF.shape)}, not {tuple(expected_BF.shape)}; "
            f"nothing was written."
        )
    worst = float((found_BF - expected_BF).abs().max() / expected_BF.abs().max().clamp_min(1e-12))
    if not worst <= tolerance:
        raise UserError(f"{path}: {reader} gives other features, by {worst:.1e} of the largest; nothing was written.")
    return worst


def peer(name: str) -> tuple[Any, str]:
    """A library that can read a target back, or None and why it cannot be imported here."""
    try:
        return import_module(name), ""
    except ImportError as error:
        return None, str(error)
    except (RuntimeError, OSError, AttributeError) as error:  # built for another torch
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def required(name: str, target: str) -> Any:
    """A library without which a target cannot be written; ``UserError`` with the way to it."""
    module, reason = peer(name)
    if module is None:
        raise UserError(f"--to {target} needs {name} ({reason}): pip install 'fastvicreg[export]'.")
    return module
