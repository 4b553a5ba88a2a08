"""What --pair may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.encoders.gru.config import GRUConfig
from fastvicreg.encoders.resnet1d.config import ResNet1dConfig
from fastvicreg.errors import UserError
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.pipelines.pairs.config import PairConfig, Side


def test_sides() -> None:
    assert PairConfig(pair=("image=jpg", "text=caption.txt")).parsed() == (
        Side("image", "jpg"),
        Side("text", "caption.txt"),
    )


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (("image",), "give two modalities, such as --pair image text"),
        (("image", "txt"), "unknown modality 'txt'; did you mean 'text'?"),
        (("text", "image"), "give the image first, --pair image text"),
        (("image=a", "image=b"), "one image is enough"),
        (("text", "text"), "both views would be the same"),
        (("image=", "text"), "name what holds the image, or leave the = out"),
    ],
)
def test_no_pair(pair: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("?", r"\?")):
        PairConfig(pair=pair).check()


@pytest.mark.parametrize(
    ("field", "value"), [("words", 10**6), ("sample_rate", 10**7), ("clip_seconds", 1e9), ("mels", 100_000)]
)
def test_too_large(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--{field.replace('_', '-')} {value} is too large: give [0-9.e+]+ or less"):
        replace(PairConfig(), **{field: value}).check()


@pytest.mark.parametrize(("field", "value"), [("words", 2), ("sample_rate", 10), ("clip_seconds", 0.0), ("mels", 1)])
def test_too_small(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--{field.replace('_', '-')} {value}"):
        replace(PairConfig(), **{field: value}).check()


TEXT = TrainConfig(
    data=DataConfig(data="somewhere"),
    pair=PairConfig(pair=("image", "text")),
    method=VICRegConfig(branch_b=("gru",)),
)


def test_encoders_that_take_what_they_are_given() -> None:
    TEXT.check()
    sound = replace(TEXT, pair=PairConfig(pair=("waveform", "spectrogram")), encoder=ResNet1dConfig())
    replace(sound, method=VICRegConfig(branch_b=("resnet18",))).check()


def test_sizes_are_of_images() -> None:
    sound = replace(TEXT, pair=PairConfig(pair=("waveform", "spectrogram")), encoder=ResNet1dConfig())
    sound = replace(sound, data=DataConfig(data="x", resolution="32:64"))
    with pytest.raises(UserError, match="--resolution 32:64 is of images, and --pair waveform spectrogram has none"):
        replace(sound, method=VICRegConfig(branch_b=("resnet18",))).check()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": VICRegConfig()}, "--arch resnet50 takes images, not text: give --branch-b gru"),
        ({"method": VICRegConfig(branch_b=("resnet18",))}, "--branch-b resnet18 takes images, not text"),
        ({"encoder": GRUConfig()}, "--arch gru takes text, not images: give --arch resnet50"),
        ({"method": BYOLConfig()}, "byol has one network for all views: give --method vicreg"),
        ({"data": DataConfig()}, "needs --data"),
        ({"data": DataConfig(data="x", image="jpg")}, "--image jpg"),
        ({"pair": PairConfig(), "method": VICRegConfig()}, ""),
        ({"data": DataConfig(data="x", resolution="32:64")}, ""),
        ({"pair": PairConfig()}, "--branch-b gru takes text: name the pair"),
    ],
)
def test_networks_and_pairs(change: dict, told: str) -> None:
    config = replace(TEXT, **change)
    if not told:
        config.check()
        return
    with pytest.raises(UserError, match=told):
        config.check()
