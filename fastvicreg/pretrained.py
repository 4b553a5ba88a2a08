"""A trained encoder in one call, from a run's folder or an exported file, with the preprocessing that it expects."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastvicreg import config_file
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.contracts import photometric_identity
from fastvicreg.encoders import EncoderConfig, build_encoder, varied
from fastvicreg.errors import UserError
from fastvicreg.evaluate.features import evaluation_resize
from fastvicreg.json_text import parse_json
from fastvicreg.kernels.augment import augment
from fastvicreg.kernels.resample import resample_views
from fastvicreg.methods.settings import branch_of
from fastvicreg.pipelines.feed import as_view
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.modalities import Modality, build
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary
from fastvicreg.pipelines.plan import EvalPlan, eval_plan
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.run_folder import is_export, require_run
from fastvicreg.weights import files
from fastvicreg.weights.imported import import_weights

METADATA = "fastvicreg"
"""Key of an exported file's metadata that holds JSON: encoder, image size and origin."""

PREFIXES = {"a": "encoder.", "b": "encoder_b.", "target": "target_encoder.network."}
"""Where an encoder has its tensors in a checkpoint, whichever method trained it; a is the principal one."""


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
class MemberPreprocessing:
    """From what is no image to what an encoder takes, by evaluation's own definition."""

    modality: Modality

    def __call__(self, given: str | os.PathLike[str] | bytes) -> Tensor:
        """One view, of the shape that all have. A caption is given as text; a sound as its file's path or bytes.

        ``DecodeError`` where that is no sound; ``OSError`` where it cannot be read.
        """
        if isinstance(given, str) and isinstance(self.modality, Text):
            given = given.encode()
        encoded = given if isinstance(given, bytes) else Path(given).read_bytes()
        view = as_view(torch.from_numpy(self.modality.view(encoded, None))[None], torch.float32)
        return view[0]


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder in evaluation mode, its settings, and where it comes from: a run's checkpoint, or a file."""

    encoder: nn.Module
    config: TrainConfig
    """The run's; of a file only encoder and image size are known, the rest is at its defaults."""
    checkpoint: Path
    passed_over: str = ""
    """What was wrong with a newer checkpoint."""
    notes: tuple[str, ...] = ()
    """Of another program's file: what was recognised, left out and assumed, a line each."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What a file says of its origin; empty for a run, whose folder does."""
    run: Path | None = None
    """The run's folder; None for a file."""
    modality: Modality | None = None
    """What it was given, of a run of pairs; None: images."""


def load_encoder(
    path: str | Path,
    *,
    checkpoint: str | None = None,
    encoder: str = "a",
    arch: str | None = None,
    stem: str | None = None,
) -> nn.Module:
    """An encoder ready to use, in evaluation mode: of a run's folder, of an exported file, or of anyone's weights.

    It maps images (B, 3, H, W) to features (B, F); ``encoder.features`` is F and ``encoder.preprocess`` turns a PIL
    image into one of the B. Of a run of pairs it may take waveforms (B, 1, T) or words (B, L) in their place, and
    ``preprocess`` a sound's file or a caption. ``checkpoint`` chooses one of a run's, by number of steps, name or path,
    and ``encoder`` "b" the second branch's of a run with --branch-b, or "target" the momentum network's. Files may be
    ``fastvicreg export``'s, safetensors, or ``torch.save``'s in one of ``weights.layouts.LAYOUTS`` (VICReg, VICRegL,
    Barlow Twins, solo-learn, lightly, torchvision, timm ...), of which no code is run; their architecture is read from
    the shapes, ``arch`` is compared with it, and ``stem`` says what a 3x3 stem was where the layout does not.

    Raises ``UserError`` where there is no such run, checkpoint or file, where it is damaged, holds no encoder that is
    known here, or would run code.
    """
    found = load_trained(path, checkpoint, encoder=encoder, arch=arch, stem=stem)
    if found.passed_over:
        warnings.warn(f"{found.passed_over}: {found.checkpoint.name} was loaded.", stacklevel=2)
    image_size = found.config.data.image_size
    module = found.encoder
    images = Preprocessing(evaluation_resize(image_size), image_size)
    module.preprocess = MemberPreprocessing(found.modality) if found.modality else images  # type: ignore[assignment]
    return module.eval()


def load_trained(
    path: str | Path,
    checkpoint: str | None = None,
    *,
    encoder: str = "a",
    arch: str | None = None,
    stem: str | None = None,
) -> TrainedEncoder:
    """The encoder of a run's newest whole checkpoint, or of the one that ``checkpoint`` names, or of a file.

    Of branch ``encoder``, whose settings are then those of the config too, or of the momentum network, "target".

    ``UserError`` where ``path`` is neither, has no such checkpoint, or has one whose values are not finite; otherwise
    as ``load_encoder``.
    """
    path = _exported_folder(Path(path))
    if encoder not in PREFIXES:
        raise UserError(f"--encoder {encoder}: give a, b of a run with --branch-b, or target of a momentum network.")
    if path.is_file() and not (path.parent / "state.json").exists():  # a run's own is given by the run
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint} chooses one of a run's, and {path} is a file: leave it out.")
        if encoder != "a":
            raise UserError(f"--encoder {encoder} chooses one of a run's, and {path} is a file: leave it out.")
        return _of_file(path, arch, stem)
    require_run(path)
    config = config_file.load(path)
    if encoder == "b":
        if not (words := branch_of(config.method)):
            raise UserError(f"--encoder b: {path} was trained without --branch-b and has one encoder: leave it out.")
        config = replace(config, encoder=varied(config.encoder, words))
    _require_asked(config.encoder, path, arch, stem)
    module = build_encoder(config.encoder)
    assert isinstance(module, nn.Module)
    prefix = PREFIXES[encoder]
    found, passed_over = checkpoints.listed(path / "checkpoints"), ""
    for each in reversed(found if checkpoint is None else [_named(path, checkpoint, found)]):
        try:
            tensors = checkpoints.read_tensors(each, "model")
        except checkpoints.CheckpointError as error:
            if checkpoint is not None:
                raise UserError(
                    f"the checkpoint {each} is damaged ({error.__cause__}): leave out --checkpoint."
                ) from error
            passed_over = passed_over or f"the newer checkpoint {each} is damaged ({error.__cause__})"
            continue
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if not own and encoder == "target":
            raise UserError(f"--encoder target: {config.method.name} has no momentum network in {path}: leave it out.")
        if spoilt := checkpoints.not_finite(own):
            raise UserError(f"{each}: {spoilt} of the encoder is not finite; give an earlier --checkpoint.")
        checkpoints.load_weights(module, own, str(each))
        modality = _modality(config.pair, encoder, lambda: Vocabulary.load(path))
        return TrainedEncoder(module.eval(), config, each, passed_over, run=path, modality=modality)
    raise UserError(f"{path} has no whole checkpoint: train it, or --resume it, first.")


def _modality(pair: PairConfig, branch: str, words: Callable[[], Vocabulary]) -> Modality | None:
    """What the encoder of ``branch`` is given; None: images. ``words`` are asked for where it is text."""
    if not pair.pair:
        return None
    name = pair.parsed()["ab".index(branch)].modality
    if name == "image":
        return None
    modality = build(name, pair)
    if isinstance(modality, Text):
        modality.vocabulary = words()
    return modality


def _exported_folder(path: Path) -> Path:
    """The weights in a folder that ``export --to hf`` wrote; any other path as it is."""
    return path / "model.safetensors" if is_export(path) else path


def _of_file(path: Path, arch: str | None, stem: str | None) -> TrainedEncoder:
    content = files.read(path)
    if METADATA not in content.metadata:
        found = import_weights(content, arch=arch, stem=stem)
        config = TrainConfig(encoder=found.config, data=DataConfig(image_size=found.image_size))
        return TrainedEncoder(found.encoder, config, path, notes=found.notes, card={"source": found.layout})
    try:
        described: dict[str, Any] = parse_json(content.metadata[METADATA])
        saved = {"version": config_file.VERSION, "encoder": described["encoder"]}
        image_size = int(described["image_size"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: what it says of its encoder is damaged ({error!r}): export it again.") from error
    config = config_file.from_mapping(saved, str(path))
    _require_asked(config.encoder, path, arch, stem)
    weights = content.groups[""]
    _require_weights(config.encoder, weights, path)
    encoder = build_encoder(config.encoder)
    assert isinstance(encoder, nn.Module)
    checkpoints.load_weights(encoder, weights, str(path))
    config = replace(config, data=replace(config.data, image_size=image_size))
    modality = None
    if "pair" in described:
        config = replace(config, pair=config_file.from_mapping({"pair": described["pair"]}, str(path)).pair)
        branch = "b" if described.get("branch") == "b" else "a"
        modality = _modality(config.pair, branch, lambda: Vocabulary.read(described.get("words"), str(path)))
    return TrainedEncoder(encoder.eval(), config, path, card=described, modality=modality)


def _require_weights(config: EncoderConfig, weights: dict[str, Tensor], path: Path) -> None:
    """``UserError`` where ``path`` says that it is a network that its weights are not, before any is made."""
    try:
        with torch.device("meta"):
            skeleton = build_encoder(config)
    except RuntimeError as error:  # more values than there are numbers for
        raise UserError(f"{path}: no network is as it says of its encoder ({error}): export it again.") from error
    assert isinstance(skeleton, nn.Module)
    checkpoints.require_fits(skeleton, weights, str(path))


def _require_asked(config: EncoderConfig, path: Path, arch: str | None, stem: str | None) -> None:
    """``UserError`` where ``path`` says that it is another encoder than was asked for."""
    for flag, asked in (("arch", arch), ("stem", stem)):
        own = getattr(config, flag, "none")
        if asked is not None and asked != own:
            raise UserError(f"--{flag} {asked}: {path} is of --{flag} {own}; leave it out.")


def _named(run: Path, asked: str, found: list[Path]) -> Path:
    """The checkpoint of ``found`` that ``asked`` means."""
    name = f"{checkpoints.PREFIX}{int(asked):08d}" if asked.isdecimal() else Path(asked).name
    for path in found:
        if path.name == name and (os.sep not in asked or path.resolve() == Path(asked).resolve()):
            return path
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"--checkpoint {asked}: {run} has no such checkpoint; it has {there}.")
