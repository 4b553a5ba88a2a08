"""An address that names no host, bucket or repository: every command says so in one line, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.fetch import is_remote
from fastvicreg.pipelines.fetch.address import require_complete

BUCKET, HOST, REPOSITORY = "BUCKET/PATH", "HOST/PATH", "datasets/USER/NAME[@REVISION]/PATH"
INCOMPLETE = {
    "gs:": f"has fewer slashes than an address: give gs://{BUCKET}",
    "gs:/": f"has fewer slashes than an address: give gs://{BUCKET}",
    "gs:/x": "has fewer slashes than an address: give gs://x",
    "hf:/datasets/me/set": "has fewer slashes than an address: give hf://datasets/me/set",
    "gs://": f"names no bucket: give gs://{BUCKET}",
    "gcs:///x": f"names no bucket: give gcs://{BUCKET}",
    "s3://": f"names no bucket: give s3://{BUCKET}",
    "s3:///key": f"names no bucket: give s3://{BUCKET}",
    "S3:// /key": f"names no bucket: give s3://{BUCKET}",
    "hf://": f"names no repository: give hf://{REPOSITORY}",
    "hf:///me/set": f"names no repository: give hf://{REPOSITORY}",
    "hf://datasets": f"names no repository: give hf://{REPOSITORY}",
    "hf://datasets/": f"names no repository: give hf://{REPOSITORY}",
    "hf://datasets/me": f"names no repository: give hf://{REPOSITORY}",
    "hf://me": f"names no repository: give hf://{REPOSITORY}",
    "https://": f"names no host: give https://{HOST}",
    "https:///x.tar": f"names no host: give https://{HOST}",
    "http://:80/x.tar": f"names no host: give http://{HOST}",
    "https://[/x.tar": f"names no host: give https://{HOST}",
}
WHOLE = (
    "gs://b",
    "s3://b/k",
    "hf://datasets/me/set",
    "hf://me/model/x.tar",
    "https://h",
    "http://[::1]:80/x",
    "foo://x",
)


def line_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command ends, with code 2."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("address", INCOMPLETE)
def test_what_is_missing_is_named(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["convert", address, tmp_path / "a.beton"],
        ["train", "--data", address, "--out", tmp_path / "run", "--device", "cpu"],
        ["verify", address],
    ):
        assert f"fastvicreg: {address} {INCOMPLETE[address]}" in line_of(capsys, *command)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"names no|fewer slashes"):
        open_source(address)


def test_other_addresses_and_paths_are_as_before() -> None:
    for address in WHOLE:
        assert is_remote(address)
        require_complete(address)
    assert not any(map(is_remote, ("gs", "gs:x", "c:/", "C:/data", "folder:", "a/gs://", "file://", "s3/x")))
    with pytest.raises(UserError, match=r"s3:/bucket/key has fewer slashes.*give s3://bucket/key, as text"):
        open_source(Path("s3://bucket/key"))


def test_an_unknown_protocol_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "foo://x: Protocol not known: foo" in line_of(capsys, "convert", "foo://x", tmp_path / "a.beton")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_validation_data_and_evaluation_are_told_the_same(
    uninterrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = uninterrupted
    shutil.copytree(run, tmp_path / "run")
    for address, said in INCOMPLETE.items():
        for option in ("--data", "--val-data"):
            line = line_of(capsys, "eval", "knn", tmp_path / "run", option, address, "--device", "cpu")
            assert f"fastvicreg: {address} {said}" in line
        line = line_of(
            capsys, "train", "--data", data, "--val-data", address, "--out", tmp_path / "new", "--device", "cpu"
        )
        assert f"fastvicreg: {address} {said}" in line
        assert not (tmp_path / "new").exists()
