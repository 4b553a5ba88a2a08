"""An export whose description of itself is damaged is refused in a line."""

from __future__ import annotations

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
