"""Pairs in the layouts that people have them in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from images import encoded, photo
from paired import captions, shards, sounds

from fastvicreg.errors import UserError
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.source import captions_of, member_of, open_pairs, pair_splits

TEXT = PairConfig(pair=("image", "text"))
JPEG = encoded(photo(1, 20, 20))


def test_files_beside_each_other(tmp_path: Path) -> None:
    found = open_pairs(captions(tmp_path) / "train", TEXT)
    assert len(found) == 24
    assert found.classes == ()
    image, text = found.members
    assert image.name(3) == "000003.jpg"
    assert text.name(3) == "000003.txt"
    assert bytes(text.encoded(3)).decode().startswith(("a ", "one "))
    assert found.images is not None
    assert found.others == (text,)
    assert len(list(captions_of(found))) == 24 * 5


def test_two_folders(tmp_path: Path) -> None:
    data = captions(tmp_path) / "train"
    for name, ending in (("photos", "jpg"), ("words", "txt")):
        (data / name / "deep").mkdir(parents=True)
        for file in data.glob(f"*.{ending}"):
            shutil.move(file, data / name / "deep" / file.name)
    found = open_pairs(data, PairConfig(pair=("image=photos", "text=words")))
    assert len(found) == 24
    assert found.members[1].name(0) == "deep/000000.txt"
    assert found.classes == ("deep",)


def test_members_of_shards_with_labels(tmp_path: Path) -> None:
    members = {}
    for number in range(5):
        key = f"{number:03d}"
        members |= {
            f"{key}.cls": b"%d" % (number % 2),
            f"{key}.jpg": JPEG,
            f"{key}.caption.txt": b"caption " + key.encode(),
        }
    found = open_pairs(shards(tmp_path / "s", members), PairConfig(pair=("image=jpg", "text=caption.txt")))
    assert [found.label(at) for at in range(5)] == [0, 1, 0, 1, 0]
    assert [bytes(found.members[1].encoded(at)) for at in (0, 4)] == [b"caption 000", b"caption 004"]


def test_both_of_one_file(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    found = open_pairs(sounds(tmp_path) / "train", PairConfig(pair=("waveform", "spectrogram")))
    assert len(found) == 24
    assert len(found.classes) == 6
    assert found.images is None
    assert [member_of(found, branch).name(7) for branch in "ab"] == [found.name(7)] * 2


@pytest.mark.parametrize("missing", ["000003.txt", "000003.jpg"])
def test_a_sample_that_lacks_a_member(tmp_path: Path, missing: str) -> None:
    data = captions(tmp_path) / "train"
    (data / missing).unlink()
    lacking = "text" if missing.endswith("txt") else "image"
    with pytest.raises(UserError, match=rf"1 of the 24 samples lack one of the pair \(000003 has no {lacking}\)"):
        open_pairs(data, TEXT)
    found = open_pairs(data, PairConfig(pair=("image", "text"), unpaired="skip"))
    assert len(found) == 23
    assert found.passed.counts == {f"sample without {lacking}": 1}
    for at in range(23):
        assert found.members[0].name(at)[:6] == found.members[1].name(at)[:6] != "000003"


def test_shards_that_lack_a_member(tmp_path: Path) -> None:
    members = {"a.jpg": JPEG, "a.txt": b"a", "b.jpg": JPEG, "c.txt": b"c", "d.jpg": JPEG, "d.txt": b"d"}
    folder = shards(tmp_path / "s", members)
    with pytest.raises(UserError, match="2 of the 4 samples lack one of the pair"):
        open_pairs(folder, TEXT)
    found = open_pairs(folder, PairConfig(pair=("image", "text"), unpaired="skip"))
    assert [bytes(found.members[1].encoded(at)) for at in range(len(found))] == [b"a", b"d"]


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (("image", "text=caption"), r"no text in .*: no file ends in .caption; it holds .jpg, .txt"),
        (("waveform", "text"), "no waveform in .*: no file ends in .wav, .flac, .ogg"),
    ],
)
def test_nothing_of_the_kind(tmp_path: Path, pair: tuple[str, ...], told: str) -> None:
    pytest.importorskip("soundfile")
    with pytest.raises(UserError, match=told):
        open_pairs(captions(tmp_path) / "train", PairConfig(pair=pair))


@pytest.mark.parametrize("pair", [("text", "text=txt"), ("text=.txt", "text=txt"), ("text=txt", "text=txt,caption")])
def test_one_member_named_in_two_ways_is_no_pair(tmp_path: Path, pair: tuple[str, ...]) -> None:
    # Both views would be the same, and every invariance 0.
    with pytest.raises(UserError, match=r"both text views are .*\.txt in .*: name what holds each"):
        open_pairs(captions(tmp_path) / "train", PairConfig(pair=pair))


def test_one_member_of_shards_named_in_two_ways_is_no_pair(tmp_path: Path) -> None:
    members = {"0.txt": b"a", "0.en.txt": b"b"}
    with pytest.raises(UserError, match="both text views are"):
        open_pairs(shards(tmp_path / "s", members), PairConfig(pair=("text", "text=txt")))
    assert len(open_pairs(shards(tmp_path / "t", members), PairConfig(pair=("text", "text=en.txt")))) == 1


def test_two_folders_of_one_modality_are_a_pair(tmp_path: Path) -> None:
    for folder in ("en", "de"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    found = open_pairs(tmp_path, PairConfig(pair=("text=en", "text=de")))
    assert [bytes(member.encoded(0)) for member in found.members] == [b"en", b"de"]


def test_names_that_do_not_agree(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(UserError, match="1 x image and 1 x text and no pair: names up to their endings must agree"):
        open_pairs(tmp_path, TEXT)


def test_accents_written_in_two_ways_are_one_name(tmp_path: Path) -> None:
    (tmp_path / "caf\u00e9.jpg").write_bytes(JPEG)
    (tmp_path / "cafe\u0301.txt").write_text("a cup")
    assert len(open_pairs(tmp_path, TEXT)) == 1


def test_one_name_with_two_endings(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="holds a with several of the endings"):
        open_pairs(tmp_path, TEXT)
    assert len(open_pairs(tmp_path, PairConfig(pair=("image=jpg", "text")))) == 1


def test_splits(tmp_path: Path) -> None:
    data = captions(tmp_path / "files")
    assert pair_splits(data) == (data / "train", data / "val")
    assert pair_splits(data / "train") == (data / "train", None)
    for split in ("train", "validation"):
        shards(tmp_path / "tars", {"a.jpg": JPEG, "a.txt": b"a"}, f"coco-{split}-0000.tar")
    train, val = pair_splits(tmp_path / "tars")
    assert "train" in train.name
    assert val is not None
    assert "validation" in val.name


def test_no_such_folder(tmp_path: Path) -> None:
    for name in ("none", "none.tar"):
        with pytest.raises(UserError, match="does not exist: give a folder of pairs"):
            open_pairs(tmp_path / name, TEXT)
