"""Engines over pairs: any backend cuts the images, and what lies beside them follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paired import SOUND, captions, shards, sounds

from fastvicreg.contracts import Crops, Cursor
from fastvicreg.errors import UserError
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.engines.native import NativeBackend
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.plan import PairPlan
from fastvicreg.pipelines.pairs.source import MemberSource, PairedSource, captions_of, open_pairs
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

BEGINNING = Cursor(0, 0)


def plan(samples: int, *, images: bool, seed: int = 3) -> PairPlan:
    return PairPlan(train_plan(samples, seed=seed, recipe=named_recipe("small"), image_size=16), images=images)


def pictures(folder: Path) -> PairedSource:
    found = open_pairs(captions(folder) / "train", PairConfig(pair=("image", "text"), words=12))
    (text,) = (member.modality for member in found.others)
    assert isinstance(text, Text)
    text.vocabulary = Vocabulary.of(captions_of(found), 60)
    return found


def known_views(member: MemberSource, index: int) -> list[np.ndarray]:
    assert member.modality is not None
    return member.modality.views(member.encoded(index))


def delivered(source: PairedSource, start: Cursor = BEGINNING, name: str = "native", **options: Any) -> list[Crops]:
    options.setdefault("workers", 2)
    own = plan(len(source), images=source.images is not None, seed=options.pop("seed", 3))
    engine = build_engine(name, source, own, batch_size=8, **options)
    try:
        return list(engine.batches(start))
    finally:
        engine.close()


def same(one: Crops, two: Crops) -> bool:
    pairs = zip((*one.groups, *one.others, one.index_B), (*two.groups, *two.others, two.index_B), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_captions_follow_the_images(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    text = source.others[0]
    batches = delivered(source)
    assert sorted(torch.cat([batch.index_B for batch in batches]).tolist()) == list(range(24))
    for batch in batches:
        assert batch.groups[0].shape == (8, 1, 16, 16, 3)
        (words_BL,) = batch.others
        assert words_BL.dtype == torch.int64
        for index, words_L in zip(batch.index_B.tolist(), words_BL, strict=True):
            known = known_views(text, index)
            assert any(np.array_equal(words_L.numpy(), one) for one in known)


def test_the_images_are_those_of_a_run_without_captions(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    alone = train_plan(24, seed=3, recipe=named_recipe("small"), image_size=16)
    assert source.images is not None
    engine = build_engine("native", source.images, alone, batch_size=8)
    for paired, own in zip(delivered(source), engine.batches(Cursor(0, 0)), strict=True):
        assert torch.equal(paired.groups[0][:, 0], own.groups[0][:, 0])
    engine.close()


def in_shards(folder: Path) -> PairedSource:
    made = captions(folder / "made") / "train"
    members = {file.name: file.read_bytes() for file in sorted(made.iterdir())}
    found = open_pairs(shards(folder / "shards", members), PairConfig(pair=("image", "text"), words=12))
    (text,) = (member.modality for member in found.others)
    assert isinstance(text, Text)
    text.vocabulary = Vocabulary.of(captions_of(found), 60)
    return found


def test_dali_cuts_a_pairs_images_as_it_does_without_captions(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    source = in_shards(tmp_path)
    assert source.images is not None
    alone = train_plan(24, seed=3, recipe=named_recipe("small"), image_size=16)
    engine = build_engine("dali", source.images, alone, batch_size=8, workers=2)
    own = [crops.groups[0].clone() for crops in engine.batches(Cursor(0, 0))]
    engine.close()
    paired = delivered(source, name="dali")  # all are held at once: what waits for its captions is not overwritten
    assert [len(one) for one in own] == [8, 8, 8]
    for one, two in zip(own, paired, strict=True):
        assert torch.equal(one[:, 0], two.groups[0][:, 0])


def test_images_on_a_device_are_kept_until_the_stream_that_asks_has_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their backend may write over a batch once it was asked for another, which it is before this one is used."""
    kept = []

    class OnDevice(torch.Tensor):
        is_cuda = True

        def record_stream(self, s: object) -> None:
            kept.append((int(self.sum()), s))

    def on_device(crops: Crops) -> Crops:
        return replace(crops, groups=tuple(group.as_subclass(OnDevice) for group in crops.groups))

    deliver = NativeBackend.deliver
    monkeypatch.setattr(
        NativeBackend, "deliver", lambda *about: ((on_device(cut), bad) for cut, bad in deliver(*about))
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream that asks")
    found = delivered(pictures(tmp_path))
    assert kept == [(int(crops.groups[0].sum()), "the stream that asks") for crops in found]


def test_what_lies_beside_the_images_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_shards(tmp_path)
    hinted: list[int] = []
    monkeypatch.setattr(ShardSource, "read_ahead", lambda self, index_B: hinted.extend(index_B.tolist()))
    delivered(source)
    assert sorted(hinted) == sorted([*range(24)] * 2)  # once for the images, once for the captions


def test_a_resumed_epoch_goes_on_as_it_was(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    whole = delivered(source, Cursor(1, 0))
    assert all(same(*pair) for pair in zip(whole[1:], delivered(source, Cursor(1, 1), workers=1), strict=True))
    assert not torch.equal(whole[0].others[0], delivered(source, Cursor(1, 0), seed=4)[0].others[0])


def test_two_processes_deliver_what_one_does(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    whole = delivered(source)
    parts = [delivered(source, rank=rank, world_size=2) for rank in (0, 1)]
    for one, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(one.others[0], torch.cat([share.others[0] for share in shares]))


def test_synthetic_images_beside_real_captions(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    for made, real in zip(delivered(source, name="synthetic"), delivered(source), strict=True):
        assert torch.equal(made.others[0], real.others[0])


def test_sounds_without_images(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    source = open_pairs(sounds(tmp_path) / "train", SOUND)
    for batch in delivered(source):
        assert batch.groups == ()
        wave_B1T, mel_B1MF = batch.others
        assert wave_B1T.shape == (8, *SOUND.shape("waveform"))
        assert mel_B1MF.shape[1:] == (1, 8, SOUND.frames)
        assert batch.label_B.tolist() == [source.label(index) for index in batch.index_B.tolist()]


def test_a_pipeline_of_images_is_refused_sounds(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    source = open_pairs(sounds(tmp_path) / "train", SOUND)
    with pytest.raises(UserError, match="--pipeline dali reads images, and this pair has none: give --pipeline native"):
        delivered(source, name="dali")


@pytest.mark.parametrize("spoilt", ["000002.txt", "000002.jpg"])
def test_a_pair_of_which_one_cannot_be_read_is_replaced_whole(tmp_path: Path, spoilt: str) -> None:
    source = pictures(tmp_path)
    (tmp_path / "train" / spoilt).write_bytes(b"\xff\xfe")
    text = source.others[0]
    for batch in delivered(source):
        for index, words_L in zip(batch.index_B.tolist(), batch.others[0], strict=True):
            assert index != 2
            assert any(np.array_equal(words_L.numpy(), one) for one in known_views(text, index))


def test_what_was_replaced_is_counted_and_stops_above_the_budget(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    (tmp_path / "train" / "000002.txt").write_bytes(b"")
    engine = build_engine("native", source, plan(24, images=True), batch_size=8)
    list(engine.batches(Cursor(0, 0)))
    report = engine.faults()
    engine.close()
    assert report.counts == {"undecodable": 1}
    assert report.named == ("000002.txt: an empty caption",)
    for number in range(24):
        (tmp_path / "train" / f"{number:06d}.txt").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 8 pairs of a batch can be read"):
        delivered(source)
