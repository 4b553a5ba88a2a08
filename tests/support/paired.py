"""Small sets of pairs, made by the example that shows their layouts, and runs on them."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs import tiny

from fastvicreg.config import TrainConfig
from fastvicreg.encoders.resnet1d.config import ResNet1dConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.pipelines.pairs.config import PairConfig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pairs.py"
_spec = importlib.util.spec_from_file_location("pairs_example", EXAMPLE)
assert _spec is not None
assert _spec.loader is not None
example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(example)

SOUND = PairConfig(pair=("waveform", "spectrogram"), sample_rate=2000, clip_seconds=0.3, mels=8)


def captions(folder: Path, train: int = 24, val: int = 12) -> Path:
    """FOLDER/train and FOLDER/val of pictures beside captions."""
    example.write_captions(folder, train, val)
    return folder


def sounds(folder: Path, train: int = 4, val: int = 2) -> Path:
    """FOLDER/train/CLASS and FOLDER/val/CLASS of sounds; that many of each of six classes."""
    example.write_sounds(folder, train, val)
    return folder


def shards(folder: Path, members: dict[str, bytes], name: str = "shard-000000.tar") -> Path:
    """FOLDER/NAME with these members in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for path, content in members.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder


TEXT_ENCODERS = {
    "gru": ("gru", "width=16", "embedding=8", "vocabulary=40"),
    "text_transformer": ("text_transformer", "width=16", "depth=2", "vocabulary=40", "drop_path=.2"),
}
"""Small ones, as --branch-b has them."""


def image_text(data: Path, encoder: str = "gru", **run: Any) -> TrainConfig:
    """A run of pictures and captions, 3 batches an epoch."""
    config = tiny(data, **run)
    method = VICRegConfig(expander=(16, 16), branch_b=TEXT_ENCODERS[encoder])
    return replace(config, pair=PairConfig(pair=("image", "text"), words=12), method=method)


def sound_pair(data: Path, **run: Any) -> TrainConfig:
    """A run of waveforms and spectrograms, 3 batches an epoch."""
    config = tiny(data, **run)
    method = VICRegConfig(expander=(16, 16), branch_b=("resnet18", "width=16", "stem=3x3s2"))
    return replace(config, pair=SOUND, encoder=ResNet1dConfig(width=4), method=method)
