"""Data that are not there: the line says what was looked for, and offers what has a similar name beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.source import open_pairs

GIVE = "give a folder of images or of class folders, a .beton file, or tar shards."


def said(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.beton", ".beton file"),
        ("a.FFCV", ".ffcv file"),
        ("a.tar", "tar file"),
        ("a.tar.gz", "compressed tar file"),
        ("a.tgz", "compressed tar file"),
        ("a.parquet", "parquet file"),
        ("a.jpg", "image file"),
        ("a", "folder"),
        ("v1.5", "folder"),
    ],
)
def test_the_ending_tells_what_was_meant(tmp_path: Path, name: str, kind: str) -> None:
    assert said(tmp_path / name) == f"the {kind} {tmp_path / name} does not exist: {GIVE}"


@pytest.mark.parametrize(
    ("there", "asked", "meant"),
    [
        ("train.beton", "trian.beton", "train.beton"),
        ("train.beton", "Train.beton", "train.beton"),
        ("train.beton", "train.tar", "train.beton"),
        ("train/", "train.beton", "train/"),
        ("train.beton", "train", "train.beton"),
        ("imagenet/train/", "imagnet/train", "imagenet/train"),
        ("imagenet/other/", "imagnet/train", "imagenet"),
        ("imagenet/train.beton", "imagenet/train.beto", "imagenet/train.beton"),
    ],
)
def test_a_similar_name_is_offered(tmp_path: Path, there: str, asked: str, meant: str) -> None:
    place = tmp_path / there
    place.parent.mkdir(exist_ok=True)
    if there.endswith("/"):
        place.mkdir()
    else:
        place.write_bytes(b"")
    (tmp_path / "validation.beton").write_bytes(b"")
    assert said(tmp_path / asked).endswith(f": did you mean {tmp_path / meant}?")


def test_the_nearest_of_several_is_offered(tmp_path: Path) -> None:
    for name in ("train-a", "train-b", "train-bb"):
        (tmp_path / name).mkdir()
    assert said(tmp_path / "train-bbb").endswith(f"did you mean {tmp_path / 'train-bb'}?")


def test_what_is_no_data_is_not_offered(tmp_path: Path) -> None:
    for name in ("train.txt", "train.beton.manifest", "a.beton"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "train.partial").mkdir()
    for asked in ("train.tar", "b.beton"):
        assert said(tmp_path / asked).endswith(f": {GIVE}")
    (tmp_path / "trainn.beton").write_bytes(b"")  # no folder, so that nothing lies in it
    assert said(tmp_path / "train" / "x").endswith(f", nor does the folder {tmp_path / 'train'}: {GIVE}")


def test_a_link_and_an_unfinished_conversion_are_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert said(tmp_path / "link").startswith(f"{tmp_path / 'link'} is a link to {tmp_path / 'gone'}, which does not")
    (tmp_path / "a.beton.partial").mkdir()
    assert "a.beton.partial is its unfinished conversion, which the same command continues" in said(
        tmp_path / "a.beton"
    )


def test_commands_say_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.beton").write_bytes(b"")
    wrong = str(tmp_path / "tran.beton")
    for command in (
        ["convert", wrong, str(tmp_path / "b.beton")],
        ["verify", wrong],
        ["train", "--data", wrong, "--out", str(tmp_path / "run"), "--device", "cpu"],
    ):
        assert main(command) == 2
        line = f"fastvicreg: the .beton file {wrong} does not exist: did you mean {tmp_path / 'train.beton'}?\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize("address", ["file:///data/images", "file:/data/images", "FILE://data/images"])
def test_an_address_of_this_machine_is_told_as_a_path(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["convert", address, "x.beton"], ["train", "--data", address, "--out", "run"]):
        assert main(command) == 2
        said = "file:/data/images is an address of this machine: give its path, /data/images."
        assert capsys.readouterr().err.lower() == f"fastvicreg: {said}\n"
    assert not list(tmp_path.iterdir())


def test_of_pairs_too(tmp_path: Path) -> None:
    (tmp_path / "captions").mkdir()
    with pytest.raises(UserError, match=r"the folder .*caption does not exist: did you mean .*/captions\?"):
        open_pairs(tmp_path / "caption", PairConfig(pair=("image", "text")))
