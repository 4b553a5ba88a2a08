"""Pairs in tar shards of a server: the members of both sides are those of the files here."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_server import serving
from images import encoded, photo
from paired import shards

from fastvicreg.pipelines.fetch import download
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.source import open_pairs


def test_both_members_are_read_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {}
    for number in range(12):
        image = encoded(photo(number, 60, 50), quality=90)
        members |= {f"{number:03d}.jpg": image, f"{number:03d}.txt": b"caption %d" % number}
    folder = shards(tmp_path / "site" / "pairs", members)
    monkeypatch.setattr("fastvicreg.pipelines.fetch.placed.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(download, "CHUNK", 4096)
    pair = PairConfig(pair=("image", "text"))
    local = open_pairs(folder, pair)
    with serving(tmp_path / "site") as site:
        found = open_pairs(placed(f"{site.address}/pairs/").path, pair)
        assert len(found) == len(local) == 12
        for ours, here in zip(found.members, local.members, strict=True):
            for index in range(12):
                assert bytes(ours.encoded(index)) == bytes(here.encoded(index))
                assert ours.name(index) == here.name(index)
