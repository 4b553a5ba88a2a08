"""A backbone as detectron2 reads it: its own names for a ResNet's parts, in the pickle that its checkpointer takes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvicreg.encoders.resnet.config import ResNetConfig
from fastvicreg.errors import UserError
from fastvicreg.export import Written
from fastvicreg.export.writing import draft_with_card, features, noise_input, require_close, tensors_of
from fastvicreg.pretrained import TrainedEncoder

RENAMED = (
    (r"^(?!layer)", "stem."),
    (r"^layer(\d)", lambda match: f"res{int(match.group(1)) + 1}"),
    (r"\bbn(\d)", r"conv\1.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
)
"""torchvision's names to detectron2's (facebookresearch/moco, detection/convert-pretrain-to-detectron2.py)."""

RESTORED = (
    (r"^stem\.", ""),
    (r"^res(\d)", lambda match: f"layer{int(match.group(1)) - 1}"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"shortcut\.norm", "downsample.1"),
    (r"shortcut", "downsample.0"),
)
"""And back."""


def renamed(name: str, table: tuple[tuple[str, Any], ...] = RENAMED) -> str:
    """``name`` after every rule of ``table``, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def settings_of(config: ResNetConfig) -> str:
    """The options of detectron2's config (MODEL.RESNETS and pixels) that build this network; one line."""
    from fastvicreg.encoders.resnet.network import ARCHITECTURES, Bottleneck

    block, depths, multiple = ARCHITECTURES[config.arch]
    width = config.width * multiple
    layers = 2 + sum(depths) * (3 if block is Bottleneck else 2)
    return (
        f"MODEL.RESNETS.DEPTH {layers} MODEL.RESNETS.STEM_OUT_CHANNELS {width} MODEL.RESNETS.WIDTH_PER_GROUP {width} "
        f"MODEL.RESNETS.RES2_OUT_CHANNELS {width * (4 if block is Bottleneck else 1)} "
        f"MODEL.RESNETS.STRIDE_IN_1X1 False INPUT.FORMAT RGB"
    )


def write(trained: TrainedEncoder, path: Path) -> Written:
    """Write a ``.pkl`` of {"model", "__author__", "matching_heuristics"}, with its card beside it.

    Batch norms' counters are left out, as detectron2's norms do not use them. The file is read back through a reader
    that takes numpy arrays and nothing else. ``UserError`` for anything but a ResNet with a 7x7 stem, for another
    ending than .pkl, and where the file cannot be written.
    """
    config = trained.config.encoder
    if not isinstance(config, ResNetConfig) or config.stem != "7x7":
        told = f"a {config.stem} stem" if isinstance(config, ResNetConfig) else "no ResNet of images"
        raise UserError(f"--to detectron2 has no {config.arch} ({told}): it takes ResNets with a 7x7 stem.")
    if path.suffix != ".pkl":
        raise UserError(f"{path}: detectron2 reads this form from files ending in .pkl; give FILE.pkl.")
    settings = settings_of(config)
    load = f"MODEL.WEIGHTS {path} {settings}"
    note = f"# detectron2 options, on its command line or in a yaml file\n{load}"
    kept = {name: value for name, value in tensors_of(trained).items() if not name.endswith("num_batches_tracked")}
    model = {renamed(name): np.ascontiguousarray(value.numpy()) for name, value in kept.items()}
    x_BCHW = noise_input(trained)
    with draft_with_card(trained, path, note) as aside:
        content = {"model": model, "__author__": "fastvicreg", "matching_heuristics": True}
        aside.write_bytes(pickle.dumps(content, protocol=4))
        found_BF = features(_read_back(aside, config), x_BCHW)
        worst = require_close("the file", path, found_BF, features(trained.encoder, x_BCHW))
    proof = f"read back under its renamed keys, largest difference {worst:.0e}; detectron2 itself was not run"
    return Written(proof, load)


def _read_back(path: Path, config: ResNetConfig) -> nn.Module:
    with path.open("rb") as file:
        content = _ArraysOnly(file).load()
    tensors: dict[str, Tensor] = {
        renamed(name, RESTORED): torch.from_numpy(value) for name, value in content["model"].items()
    }
    encoder = config.build()
    counters = {name: value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked")}
    encoder.load_state_dict({**counters, **tensors})
    return encoder


class _ArraysOnly(pickle.Unpickler):
    """Takes numpy arrays, and no other object."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Numpy's own constructors of an array; ``pickle.UnpicklingError`` for any other name."""
        names = ("ndarray", "dtype", "_reconstruct", "_frombuffer")
        if module_name.startswith("numpy") and global_name in names:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no array")
