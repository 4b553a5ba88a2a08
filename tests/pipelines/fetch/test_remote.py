"""Data on another machine: ranges, retries, stalls, changed files, and what convert and train make of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from http_server import Website, serving
from tables import hub_table, write_parquet
from tars import members, write_tar

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.fetch import copies, download, is_remote, local_copy, needs_copy, remote
from fastvicreg.pipelines.manifest import manifest_path

CHUNK = 4096


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """Two shards and a parquet file on a server, fetched in small ranges, without long pauses."""
    root = tmp_path / "site"
    for at in range(2):
        (root / "s").mkdir(parents=True, exist_ok=True)
        write_tar(root / f"s/x-train-{at:04d}.tar", members(6, 6 * at))
    write_tar(root / "s/x-validation-0000.tar", members(3, 50))
    write_parquet(root / "p/t.parquet", hub_table(range(5), ["a", "b", "c"]))
    monkeypatch.setattr(download, "CHUNK", CHUNK)
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))
    monkeypatch.setattr(remote, "STALL", 1.0)
    with serving(root) as found:
        yield found


def tars_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def test_files_come_in_ranges_by_a_brace_list_or_a_listing(site: Website, tmp_path: Path) -> None:
    expected = {path.name: path.read_bytes() for path in sorted((site.root / "s").glob("x-train-*"))}
    source = f"{site.address}/s/x-train-{{0000..0001}}.tar"
    told: list[tuple[int, int, int]] = []
    place = local_copy(source, tmp_path / "c", lambda *progress: told.append(progress))
    assert tars_in(place) == expected
    assert told[-1] == (2, 2, sum(map(len, expected.values())))
    assert max(end - start for _, start, end in site.asked) == CHUNK
    before = len(site.asked)
    assert local_copy(source, tmp_path / "c") == place
    assert len(site.asked) == before  # nothing comes twice
    assert set(tars_in(local_copy(f"{site.address}/s/", tmp_path / "all"))) == {*expected, "x-validation-0000.tar"}
    assert local_copy(f"{site.address}/p/t.parquet", tmp_path / "one").name == "t.parquet"


@pytest.mark.parametrize("failures", [[503, 500, 429], ["cut", "cut", "cut"], ["stall", 503]])
def test_what_fails_is_asked_for_again(site: Website, tmp_path: Path, failures: list[int | str]) -> None:
    site.failures = failures
    place = local_copy(f"{site.address}/s/x-train-0000.tar", tmp_path / "c")
    assert place.read_bytes() == (site.root / "s/x-train-0000.tar").read_bytes()
    assert not site.failures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failures", "says"),
    [
        ([503] * 60, r"the server answers 503 .*\(4 tries\): the same command continues"),
        (["stall"] * 60, r"nothing came for 1 s \(4 tries\)"),
        ([403], r"the server answers 403 Forbidden\."),
    ],
)
def test_what_does_not_come_is_named_within_a_limit(
    site: Website, tmp_path: Path, failures: list[int | str], says: str
) -> None:
    site.failures = failures
    with pytest.raises(UserError, match=rf"cannot read {site.address}/s/x-train-0000\.tar: {says}"):
        local_copy(f"{site.address}/s/x-train-0000.tar", tmp_path / "c")
    site.failures.clear()
    place = local_copy(f"{site.address}/s/x-train-0000.tar", tmp_path / "c")
    assert place.read_bytes() == (site.root / "s/x-train-0000.tar").read_bytes()


def test_an_interrupted_file_continues_and_a_changed_one_does_not(site: Website, tmp_path: Path) -> None:
    address, file = f"{site.address}/s/x-train-0000.tar", site.root / "s/x-train-0000.tar"

    def stop(done: int, total: int, size: int) -> None:
        if size >= 3 * CHUNK:
            raise KeyboardInterrupt

    for changed in (False, True):
        with pytest.raises(KeyboardInterrupt):
            local_copy(address, tmp_path / f"c{changed}", stop)
        if changed:
            file.write_bytes(file.read_bytes()[::-1])
        site.asked.clear()
        assert local_copy(address, tmp_path / f"c{changed}").read_bytes() == file.read_bytes()
        assert min(start for _, start, _ in site.asked) == (0 if changed else 3 * CHUNK)


def test_what_cannot_be_fetched_is_one_line(site: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.root / "empty").mkdir()
    for address, says in (
        (f"{site.address}/s/none.tar", r"cannot read http.*/s/none\.tar: the server answers 404"),
        (f"{site.address}/empty/", r"nothing to read at http.*/empty/: give a \.tar, \.parquet or \.beton"),
        ("s4://bucket/x.tar", r"s4://bucket/x\.tar: Protocol not known: s4"),
    ):
        with pytest.raises(UserError, match=says):
            local_copy(address, tmp_path / "c")
    site.ranges = False
    with pytest.raises(UserError, match="the server gives no ranges of a file"):
        local_copy(f"{site.address}/s/x-train-0000.tar", tmp_path / "c")
    site.ranges = True
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(UserError, match=r"needs 0\.0 GB in .*, where 0\.0 GB are free: make room"):
        local_copy(f"{site.address}/s/x-train-0000.tar", tmp_path / "c")
    with serving(tmp_path) as gone:
        address = gone.address
    with pytest.raises(UserError, match=rf"cannot read {address}/x\.tar: .*Connect call failed.*4 tries"):
        local_copy(f"{address}/x.tar", tmp_path / "c")


def test_any_file_system_of_fsspec_is_a_source(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for at in range(2):
        write_tar(tmp_path / "x.tar", members(2, 2 * at))
        memory.pipe(f"/bucket/a/{at}/x-{at}.tar", (tmp_path / "x.tar").read_bytes())
    memory.pipe("/bucket/a/.hidden/x.tar", b"x")
    memory.pipe("/bucket/a/_tmp/x.tar", b"x")
    for address, names in (
        ("memory://bucket/a", {"0/x-0.tar", "1/x-1.tar"}),
        ("memory://bucket/a/*/x-*.tar", {"0/x-0.tar", "1/x-1.tar"}),
        ("memory://bucket/a/1/x-[0-9].tar", {"x-1.tar"}),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        local_copy(address, folder)
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.tar")} == names


def test_a_checksum_that_the_other_side_tells_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/sums/x.tar", b"content")
    info = memory.info

    for digest, good in (("9a0364b9e99bb480dd25e1f0284c8555", True), ("0" * 32, False)):
        told = {"StorageClass": "STANDARD", "ETag": f'"{digest}"'}
        monkeypatch.setattr(type(memory), "info", lambda self, path, told=told: {**info(path), **told})
        if good:
            assert local_copy("memory://sums/x.tar", tmp_path / digest).read_bytes() == b"content"
            continue
        with pytest.raises(UserError, match=f"came with the md5 9a0364.*, and {digest} was announced"):
            local_copy("memory://sums/x.tar", tmp_path / digest)
        assert not list((tmp_path / digest).glob("*.part"))


def test_convert_writes_what_the_files_here_would_give(
    site: Website, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", f"{site.address}/s/", str(tmp_path / "out")]) == 0
    assert "is brought to" in capsys.readouterr().out
    assert main(["convert", str(site.root / "s"), str(tmp_path / "here")]) == 0
    for split in ("train", "validation"):
        ours, theirs = (tmp_path / folder / f"{split}.beton" for folder in ("out", "here"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not (tmp_path / "out.source").exists()
    assert main(["convert", f"{site.address}/p/t.parquet", str(tmp_path / "t.beton")]) == 0
    assert open_source(tmp_path / "t.beton").classes == ("a", "b", "c")
    site.asked.clear()
    assert main(["convert", f"{site.address}/p/t.parquet", str(tmp_path / "t.beton")]) == 2
    assert not site.asked  # refused before anything is fetched
    assert "exists" in capsys.readouterr().err


def test_a_beton_comes_with_its_manifest(site: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 2**20)
    convert_dataset(site.root / "p/t.parquet", site.root / "b.beton")
    (site.root / "b").mkdir()
    for path in (site.root / "b.beton", manifest_path(site.root / "b.beton")):
        path.rename(site.root / "b" / path.name)
    place = local_copy(f"{site.address}/b/", tmp_path / "c")
    assert place.name == "b.beton"
    assert open_source(place).expected_hash(0) is not None


def test_train_s_data_are_fetched_once_into_the_cache(
    site: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvicreg.pipelines.fetch.placed.cache_folder", lambda: tmp_path / "cache")
    config = TrainConfig(data=DataConfig(data=f"{site.address}/s/"))
    data = open_data(config)
    assert (len(data.train), data.train.label(1)) == (12, 1)
    assert data.validation is not None
    assert len(data.validation) == 3
    site.asked.clear()
    open_data(config)
    assert not site.asked


def test_addresses_are_told_from_paths() -> None:
    assert all(map(is_remote, ("https://h/x", "s3://b", "hf://datasets/x", Path("https://h/x"), "gs://b/c")))
    assert not any(map(is_remote, ("a/b", "/a/b", "file:///a", "./x://y", "x.beton", Path("a:b"), "C:\\data")))
    assert not needs_copy("nothing/here")
