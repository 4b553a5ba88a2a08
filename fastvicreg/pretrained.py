"""A trained encoder in one call, from a run's folder or an exported file, with the preprocessing that it expects."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fastvicreg import config_file
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import photometric_identity
from fastvicreg.encoders import build_encoder
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import evaluation_resize
from fastvicreg.kernels.augment import IMAGENET_MEAN, IMAGENET_STD, augment
from fastvicreg.kernels.resample import resample_views
from fastvicreg.pipelines.plan import EvalPlan, eval_plan
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.run_folder import require_run

METADATA = "fastvicreg"
"""Key of an exported file's metadata that holds JSON: encoder, image size and origin."""

PREFIX = "encoder."
"""Where the principal encoder's tensors lie in a checkpoint, whichever method trained it."""


@dataclass(frozen=True)
class Preprocessing:
    """From a PIL image to what an encoder takes, by evaluation's own definition: resize, centre crop, normalise."""

    resize: int
    """Short side in pixels before the crop."""
    crop: int

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, crop, crop) float32, normalised with ImageNet's statistics; EXIF orientation is not applied."""
        pixels_HWC = np.ascontiguousarray(image.convert("RGB"))
        wh_12 = torch.tensor([image.size])
        box_14, flip_1 = (found[0] for found in self._plan.boxes(0, torch.zeros(1, dtype=torch.int64), wh_12))
        view_VHWC = np.empty((1, self.crop, self.crop, 3), np.uint8)
        resample_views(pixels_HWC, box_14.numpy(), flip_1.numpy(), view_VHWC, support=self._plan.support)
        (view_1CHW,) = augment(torch.from_numpy(view_VHWC)[None], photometric_identity(1, 1))
        return view_1CHW[0].contiguous()

    @property
    def _plan(self) -> EvalPlan:
        return eval_plan(1, resize=self.resize, crop=self.crop)


@dataclass(frozen=True)
class TrainedEncoder:
    """A run's encoder in evaluation mode, its settings, and the checkpoint that it comes from."""

    encoder: nn.Module
    config: TrainConfig
    checkpoint: Path
    passed_over: str = ""
    """What was wrong with a newer checkpoint."""


def load_encoder(path: str | Path, *, checkpoint: str | None = None) -> nn.Module:
    """The encoder of a run's folder, or of a file that ``fastvicreg export`` wrote: ready to use, in evaluation mode.

    It maps images (B, 3, H, W) to features (B, F); ``encoder.features`` is F and ``encoder.preprocess`` turns a PIL
    image into one of the B. ``checkpoint`` chooses one of a run's, by number of steps, name or path.

    Raises ``UserError`` where there is no such run, checkpoint or file, or where it is damaged.
    """
    if Path(path).is_file():
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint} chooses one of a run's, and {path} is a file: leave it out.")
        encoder, image_size = _from_file(Path(path))
    else:
        found = load_trained(path, checkpoint)
        if found.passed_over:
            warnings.warn(f"{found.passed_over}: {found.checkpoint.name} was loaded.", stacklevel=2)
        encoder, image_size = found.encoder, found.config.data.image_size
    encoder.preprocess = Preprocessing(evaluation_resize(image_size), image_size)  # type: ignore[assignment]
    return encoder.eval()


def load_trained(run: str | Path, checkpoint: str | None = None) -> TrainedEncoder:
    """The encoder of a run's newest whole checkpoint, or of the one that ``checkpoint`` names.

    ``UserError`` where ``run`` is no run, has no such checkpoint, or has one whose values are not finite.
    """
    require_run(Path(run))
    config = config_file.load(Path(run))
    encoder = build_encoder(config.encoder)
    assert isinstance(encoder, nn.Module)
    found, passed_over = checkpoints.listed(Path(run) / "checkpoints"), ""
    for path in reversed(found if checkpoint is None else [_named(Path(run), checkpoint, found)]):
        try:
            tensors = load_file(path / "model.safetensors")
        except (OSError, SafetensorError) as error:
            if checkpoint is not None:
                raise UserError(f"the checkpoint {path} is damaged ({error}): leave out --checkpoint.") from error
            passed_over = passed_over or f"the newer checkpoint {path} is damaged ({error})"
            continue
        own = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
        if spoilt := checkpoints.not_finite(own):
            raise UserError(f"{path}: {spoilt} of the encoder is not finite; give an earlier --checkpoint.")
        checkpoints.load_weights(encoder, own, str(path))
        return TrainedEncoder(encoder.eval(), config, path, passed_over)
    raise UserError(f"{run} has no whole checkpoint: train it, or --resume it, first.")


def metadata(trained: TrainedEncoder) -> dict[str, str]:
    """Everything beside the weights that ``load_encoder`` needs, and where they come from."""
    config = trained.config
    described = {
        "version": 1,
        "encoder": dataclasses.asdict(config.encoder),  # type: ignore[call-overload]
        "image_size": config.data.image_size,
        "resize": evaluation_resize(config.data.image_size),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "method": config.method.name,
        "epochs": config.run.epochs,
        "checkpoint": trained.checkpoint.name,
    }
    return {"format": "pt", METADATA: json.dumps(described)}


def _from_file(path: Path) -> tuple[nn.Module, int]:
    try:
        with safe_open(path, "pt") as file:
            held: dict[str, str] = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or a damaged one ({error}).") from error
    if METADATA not in held:
        raise UserError(f"{path} was not written by fastvicreg export: it does not say which encoder it holds.")
    described: dict[str, Any] = json.loads(held[METADATA])
    content = {"version": config_file.VERSION, "encoder": described["encoder"]}
    encoder = build_encoder(config_file.from_mapping(content, str(path)).encoder)
    assert isinstance(encoder, nn.Module)
    checkpoints.load_weights(encoder, tensors, str(path))
    return encoder, int(described["image_size"])


def _named(run: Path, asked: str, found: list[Path]) -> Path:
    """The checkpoint of ``found`` that ``asked`` means."""
    name = f"{checkpoints.PREFIX}{int(asked):08d}" if asked.isdecimal() else Path(asked).name
    for path in found:
        if path.name == name and (os.sep not in asked or path.resolve() == Path(asked).resolve()):
            return path
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"--checkpoint {asked}: {run} has no such checkpoint; it has {there}.")
