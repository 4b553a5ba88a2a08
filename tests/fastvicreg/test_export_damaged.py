"""An export whose description of itself is damaged is refused in a line."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastvicreg import load_encoder
from fastvicreg.errors import UserError
from fastvicreg.pretrained import METADATA


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 3000, "[]", "{}", '{"encoder": {}}', '{"encoder": {}, "image_size": Infinity}', "null"],
    ids=["nothing", "cut", "nested", "list", "empty", "no size", "infinite", "null"],
)
def test_a_description_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {METADATA: text})
    with pytest.raises(UserError, match=r"x\.safetensors: what it says of its encoder is damaged .*export it again"):
        load_encoder(tmp_path / "x.safetensors")


def test_a_description_of_settings_that_there_are_not_is_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {METADATA: '{"encoder": 3, "image_size": 32}'})
    with pytest.raises(UserError, match=r"x\.safetensors: 'encoder' is no section of settings, but 3"):
        load_encoder(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (64 * 4096, r"is of another architecture: conv1\.weight is \(64, 3, 7, 7\) there, \(262144, 3, 7, 7\)"),
        (10**12, r"no network is as it says of its encoder .*export it again"),
    ],
)
def test_a_width_that_the_weights_have_not_is_refused_before_it_is_made(width: int, said: str, tmp_path: Path) -> None:
    described = json.dumps({"encoder": {"arch": "resnet18", "width": width}, "image_size": 32})
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "x.safetensors", {METADATA: described})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said):
        load_encoder(tmp_path / "x.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
