"""Weights under torchvision's parameter names in a safetensors file, whose metadata says what they are."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fastvicreg.errors import UserError
from fastvicreg.pretrained import TrainedEncoder, load_encoder, metadata


def write(trained: TrainedEncoder, path: Path) -> None:
    """Write ``path`` whole or not at all, once it was read back and every value was the same.

    The names are those of torchvision's ResNets without ``fc``, so that ``model.load_state_dict(tensors,
    strict=False)`` takes them there. ``UserError`` where the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    tensors = {name: value.contiguous().cpu() for name, value in trained.encoder.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata(trained))
        read = load_encoder(draft).state_dict()
        wrong = [name for name, value in tensors.items() if not torch.equal(read[name], value)]
        assert not wrong, f"written, but read back otherwise: {wrong}"
        draft.rename(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}.") from error
    finally:
        draft.unlink(missing_ok=True)
