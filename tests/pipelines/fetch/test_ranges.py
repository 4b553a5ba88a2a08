"""Training on remote files by ranges of them: the same samples, crops and log as of the files here, in bounded room."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from http_server import Website
from images import encoded, photo
from ranged import GB, KINDS, SAMPLES, here, image_bytes, opened, require_equal
from runs import log, tiny, train
from stored import epoch_of, training
from tars import write_tar

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import ViewLoader, open_source
from fastvicreg.pipelines.convert import convert_dataset
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.fetch import download, ranges, remote
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.manifest import manifest_path


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_files_here_and_come_once(site: Website, kind: str) -> None:
    source = opened(site, kind)
    local = here(site, kind)
    opening = sum(end - start for _, start, end in site.asked)
    whole = sum(path.stat().st_size for path in (site.root / kind).iterdir())
    if kind.startswith("ours"):  # nothing of the images was read; tar files of tests are mostly padding
        assert opening < whole - image_bytes(site)
    site.asked.clear()
    order = torch.randperm(SAMPLES)
    for part in order.split(8):
        source.read_ahead(part)  # type: ignore[attr-defined]
        for index in part.tolist():
            assert bytes(source.encoded(index)) == bytes(local.encoded(index))
    assert site.asked
    site.asked.clear()
    require_equal(source, local)  # from what is kept
    require_equal(opened(site, kind), local)  # and in another process
    assert not site.asked


def test_what_is_kept_is_bounded_and_what_is_damaged_there_comes_again(site: Website, tmp_path: Path) -> None:
    limit = image_bytes(site) // 3
    source = opened(site, "ours", cache_gb=limit / GB)
    local = here(site, "ours")
    require_equal(source, local)
    (samples,) = (tmp_path / "cache").rglob("samples")
    size = samples.stat().st_size
    assert limit / 2 < size <= limit
    site.asked.clear()
    require_equal(source, local)
    assert samples.stat().st_size == size
    came = sum(end - start for _, start, end in site.asked)
    assert came == image_bytes(site) - samples.stat().st_size
    assert samples.stat().st_mode & 0o077 == 0
    assert samples.parent.stat().st_mode & 0o077 == 0
    samples.write_bytes(bytes(samples.stat().st_size))
    require_equal(source, local)
    none = opened(site, "indexed", cache_gb=0)
    require_equal(none, here(site, "indexed"))
    assert len(list((tmp_path / "cache").rglob("samples"))) == 1


def test_neighbours_come_in_one_request_and_what_nobody_takes_is_dropped(
    site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(site, "unchecked-beton", cache_gb=0)
    site.asked.clear()
    source.read_ahead(torch.arange(SAMPLES))  # type: ignore[attr-defined]
    require_equal(source, here(site, "unchecked-beton"))
    assert len(site.asked) == 1
    monkeypatch.setattr(ranges, "LATE", 2)
    for _ in range(4):
        source.read_ahead(torch.arange(4))  # type: ignore[attr-defined]
    assert len(source.elsewhere._coming) == 4  # type: ignore[attr-defined]
    source.read_ahead(torch.arange(4, 6))  # type: ignore[attr-defined]
    source.read_ahead(torch.arange(4, 6))  # type: ignore[attr-defined]
    assert set(source.elsewhere._coming) <= {4, 5}  # type: ignore[attr-defined]


@pytest.mark.parametrize("failures", [[503, "cut", 500, "cut"], ["stall", 429, "cut"]])
def test_crops_and_a_resumed_epoch_are_those_of_the_files_here(site: Website, failures: list[int | str]) -> None:
    for kind in ("indexed", "ours-beton"):
        site.failures = []
        source = opened(site, kind)
        site.failures = list(failures)
        for start in (Cursor(0, 0), Cursor(1, 2)):
            engine, local = (
                build_engine("native", one, training(SAMPLES), batch_size=6, workers=2)
                for one in (source, here(site, kind))
            )
            ours, expected = (epoch_of(one, start) for one in (engine, local))
            assert len(ours) == len(expected)
            for crops, same in zip(ours, expected, strict=True):
                assert all(map(torch.equal, crops.groups, same.groups))
                assert torch.equal(crops.index_B, same.index_B)
                assert torch.equal(crops.label_B, same.label_B)
            assert not engine.faults().counts
        assert not site.failures


def test_a_stall_is_named_within_the_time_that_was_given(site: Website) -> None:
    data = open_data(TrainConfig(data=DataConfig(data=f"{site.address}/ours/", stall_timeout=2.0, remote_cache=0)))
    engine = build_engine("native", data.train, training(SAMPLES), batch_size=6, workers=2, stall=2.0)
    site.failures = ["stall"] * 100
    with pytest.raises(UserError, match=rf"cannot read {site.address}/ours/shard-.*: nothing came for 0\.4 s \("):
        epoch_of(engine, Cursor(0, 0))
    site.failures.clear()
    require_equal(opened(site, "ours"), here(site, "ours"))


@pytest.mark.parametrize("matching", [True, False])
def test_a_file_that_changes_while_it_is_read_is_named(
    site: Website, matching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.matching = matching
    for kind in ("unchecked-beton", "ours-beton"):
        source = opened(site, kind)
        source.encoded(0)
        shutil.rmtree(site.root / "again", ignore_errors=True)
        for at in range(SAMPLES):
            (site.root / "again/a").mkdir(parents=True, exist_ok=True)
            (site.root / f"again/a/{at}.jpg").write_bytes(encoded(photo(50 + at, 40 + at % 5, 30)))
        manifest_path(site.root / kind / "d.beton").unlink(missing_ok=True)
        (site.root / kind / "d.beton").unlink()
        convert_dataset(site.root / "again", site.root / kind / "d.beton")
        if kind == "unchecked-beton":
            manifest_path(site.root / kind / "d.beton").unlink()
            monkeypatch.setattr(ranges, "RECHECK", 300.0 if matching else 0.0)
        with pytest.raises(UserError, match=r"d\.beton has changed since it was opened"):
            [source.encoded(index) for index in range(1, SAMPLES)]
        require_equal(opened(site, kind), here(site, kind))  # opened again it is read anew, what was kept too


def test_a_server_that_compares_etags_otherwise_is_read_without(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.Remote, "described", _with_other_etag(remote.Remote.described))
    require_equal(opened(site, "ours"), here(site, "ours"))


def _with_other_etag(described):  # type: ignore[no-untyped-def]
    return lambda self, path, name: described(self, path, name)._replace(etag='"other"')


def test_an_interrupted_opening_goes_on_where_it_stopped(site: Website) -> None:
    def stop(done: int, total: int, size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        placed(f"{site.address}/walked/", told=stop)
    asked = {path for path, _, _ in site.asked}
    site.asked.clear()
    require_equal(opened(site, "walked"), here(site, "walked"))
    assert len({path for path, _, _ in site.asked} - asked) <= 2
    assert all(path.endswith(".tar") for path in asked)


def test_what_ranges_do_not_do_for_is_copied(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 2**20)
    (site.root / "packed").mkdir()
    (site.root / "nested").mkdir()
    for tar in sorted((site.root / "walked").iterdir()):
        (site.root / f"packed/{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
    classes = [(f"n{at}.tar", (site.root / f"walked/x-{at}.tar").read_bytes()) for at in range(3)]
    write_tar(site.root / "nested/train.tar", classes)
    for kind in ("packed", "nested"):
        found = placed(f"{site.address}/{kind}/")
        assert "was copied to" in found.note
        assert len(open_source(found.path)) == SAMPLES
    whole = placed(f"{site.address}/ours-beton/", whole=True)
    assert whole.path.read_bytes() == (site.root / "ours-beton/d.beton").read_bytes()
    site.ranges = False
    with pytest.raises(UserError, match="the server gives no ranges of a file"):
        placed(f"{site.address}/ours/")


def test_members_of_any_tar_are_found_as_in_the_file_itself(site: Website) -> None:
    """Long names in GNU's and pax's headers, a JSON label, a member larger than a request, an empty one, damage."""
    import tarfile

    long = "folder/" + "x" * 120
    entries = [
        (f"{long}-{at}.{kind}", data)
        for at in range(4)
        for kind, data in (("png", encoded(photo(at, 60, 50), "PNG")), ("json", b'{"label": %d}' % (at % 2)))
    ]
    for name, kind in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        (site.root / name).mkdir()
        write_tar(site.root / f"{name}/x.tar", [*entries, ("00.npy", bytes(9000)), ("01.txt", b"")], kind)
        local = open_source(site.root / f"{name}/x.tar", label="json:label")
        ours = open_source(placed(f"{site.address}/{name}/").path, label="json:label")
        require_equal(ours, local)
        assert ours.passed.lines() == local.passed.lines()  # type: ignore[attr-defined]
    content = bytearray((site.root / "gnu/x.tar").read_bytes())
    content[512 * 2 : 512 * 2 + 300] = b"?" * 300
    (site.root / "gnu/x.tar").write_bytes(content)
    said = []
    for path in (site.root / "gnu/x.tar", placed(f"{site.address}/gnu/").path):
        with pytest.raises(UserError) as error:
            open_source(path, label="json:label")
        said.append(str(error.value).partition(" is ")[2])
    assert said[0] == said[1] != ""


def test_train_logs_what_it_logs_of_the_files_here_also_resumed(site: Website, tmp_path: Path) -> None:
    shutil.copytree(site.root / "walked", site.root / "s")
    for at, tar in enumerate(sorted((site.root / "s").iterdir())):
        tar.rename(tar.with_name(f"x-{'val' if at == 2 else 'train'}-{at}.tar"))
    train(tiny(site.root / "s", steps=6), tmp_path / "here")
    config = tiny(site.root / "s", steps=3)
    config = replace(config, data=replace(config.data, data=f"{site.address}/s/", remote_cache=1e-5))
    train(config, tmp_path / "there")
    shutil.rmtree(tmp_path / "cache")
    site.failures = ["cut", 503]
    train(replace(config, run=replace(config.run, steps=6)), tmp_path / "there", resume=True)
    assert log(tmp_path / "there") == log(tmp_path / "here")
    assert any("knn" in row for row in log(tmp_path / "here"))


def test_verify_and_the_loader_take_an_address(site: Website, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        assert main(["verify", f"{site.address}/{kind}/", "--decode"]) == 0
        assert f"0 faults in {SAMPLES} samples" in capsys.readouterr().out
    shard = site.root / "ours/shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[512 + 300] ^= 255
    shard.write_bytes(content)
    assert main(["verify", f"{site.address}/ours/"]) == 1
    assert "differ from the manifest's hash" in capsys.readouterr().out
    with (
        ViewLoader(f"{site.address}/indexed/", batch_size=8, image_size=32, dtype=torch.uint8) as ours,
        ViewLoader(site.root / "indexed", batch_size=8, image_size=32, dtype=torch.uint8) as local,
    ):
        for batch, same in zip(ours, local, strict=True):
            assert all(np.array_equal(*pair) for pair in zip(batch.views, same.views, strict=True))
