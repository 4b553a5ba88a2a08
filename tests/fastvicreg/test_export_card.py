"""The model card of an export tells how many views its run had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open

from fastvicreg.cli import main
from fastvicreg.export.card import markdown


def test_the_card_of_a_run_of_more_views_counts_them(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted[1], copy)
    settings = json.loads((copy / "config.json").read_text())
    settings["data"]["num_views"] = 4
    (copy / "config.json").write_text(json.dumps(settings))
    file = tmp_path / "encoder.safetensors"
    assert main(["export", str(copy), str(file)]) == 0
    with safe_open(file, "pt") as opened:
        card = json.loads(opened.metadata()["fastvicreg"])
    assert (card["recipe"], card["num_views"]) == ("small", 4)
    assert "4 views by the small recipe" in markdown(card, title="run", load="")
