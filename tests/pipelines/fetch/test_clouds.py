"""Google's storage and the Hugging Face hub: lists, ranges, changed files, refusals, tokens and stalls."""

from __future__ import annotations

import gzip
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from http_server import Website
from ranged import SAMPLES, here, require_equal
from runs import log, tiny, train
from served import Served
from stored import epoch_of, training
from tables import hub_table, write_parquet
from tars import members, write_tar

from fastvicreg.cli import main
from fastvicreg.config import DataConfig, TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.datasets import open_data
from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.engines import build_engine
from fastvicreg.pipelines.fetch import copies, download, remote
from fastvicreg.pipelines.fetch.placed import placed


@pytest.mark.parametrize("kind", ["indexed", "ours", "ours-beton"])
def test_samples_are_those_of_the_files_here_and_come_by_ranges_once(served: Served, site: Website, kind: str) -> None:
    local = here(site, kind)
    alone = served.opened(kind, cache_gb=0)
    served.cloud.asked.clear()
    size = len(alone.encoded(5))
    assert [end - start for _, start, end in served.cloud.asked] == [size]  # no byte more than was asked for
    source = served.opened(kind)
    for part in torch.randperm(SAMPLES).split(8):
        source.read_ahead(part)  # type: ignore[attr-defined]
        for index in part.tolist():
            assert bytes(source.encoded(index)) == bytes(local.encoded(index))
    served.cloud.asked.clear()
    require_equal(served.opened(kind), local)
    assert not served.cloud.asked


@pytest.mark.parametrize("failures", [[503, "cut", 500, "cut"], ["stall", 429, "cut"]])
def test_crops_are_those_of_the_files_here_whatever_fails(
    served: Served, site: Website, failures: list[int | str]
) -> None:
    source = served.opened("ours")
    served.cloud.failures = list(failures)
    engines = [
        build_engine("native", one, training(SAMPLES), batch_size=6, workers=2) for one in (source, here(site, "ours"))
    ]
    ours, expected = (epoch_of(engine, Cursor(0, 0)) for engine in engines)
    for crops, same in zip(ours, expected, strict=True):
        assert all(map(torch.equal, crops.groups, same.groups))
        assert torch.equal(crops.label_B, same.label_B)
    assert not served.cloud.failures
    assert not engines[0].faults().counts


def test_train_logs_what_it_logs_of_the_files_here(served: Served, tmp_path: Path) -> None:
    for at, tar in enumerate(sorted((served.root / "walked").iterdir())):
        tar.rename(tar.with_name(f"x-{'val' if at == 2 else 'train'}-{at}.tar"))
    config = tiny(served.root / "walked", steps=3)
    train(config, tmp_path / "here")
    train(replace(config, data=replace(config.data, data=f"{served.address}/walked")), tmp_path / "there")
    assert log(tmp_path / "there") == log(tmp_path / "here")
    assert any("knn" in row for row in log(tmp_path / "here"))


def test_convert_writes_what_the_files_here_would_give(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    for name in ("packed", "tables"):
        (served.root / name).mkdir()
    for tar in (served.root / "walked").iterdir():
        (served.root / f"packed/{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
    write_parquet(served.root / "tables/t.parquet", hub_table(range(5), ["a", "b", "c"]))
    for number, (name, local) in enumerate(
        (
            ("walked", "walked"),
            ("walked/x-{0..2}.tar", "walked"),
            ("walked/x-[01].tar", "walked/x-{0,1}.tar"),
            ("*lked/x-1.tar", "walked/x-1.tar"),
            ("packed", "packed"),
            ("tables/t.parquet", "tables/t.parquet"),
            ("ours-beton/d.beton", "ours-beton/d.beton"),
        )
    ):
        ours, theirs = tmp_path / f"{number}.beton", tmp_path / f"{number}-here.beton"
        assert main(["convert", f"{served.address}/{name}", str(ours)]) == 0
        assert main(["convert", str(served.root / local), str(theirs)]) == 0
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_what_cannot_be_read_is_one_line_and_is_not_asked_for_again(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    gs = served.address.startswith("gs")
    (served.root / "empty").mkdir()
    (served.root / "empty/README.md").write_text("none")
    where = served.address.partition("://")[2]
    cases = [
        ("ours/none.tar", [], r"there is no such file"),
        ("empty", [], r"nothing to read at .*/empty: give a \.tar"),
        ("none", [], r"nothing to read at .*/none: give a \.tar"),
        ("ours", [(403, "GatedRepo")], r"answers 403|its terms have not been accepted"),
        (
            "ours",
            [(401, "Invalid")],
            r"set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud|HF_TOKEN, or run: hf auth login",
        ),
        ("ours", [(400, "Bad")], r"the server answers 400"),
    ]
    for name, refusals, says in cases:
        served.cloud.refusals = list(refusals)
        served.cloud.calls.clear()
        assert main(["convert", f"{served.address}/{name}", str(tmp_path / "x.beton")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert where in error
        assert "Traceback" not in error
        assert re.search(says, error), error
        assert not served.cloud.refusals
        assert max(map(served.cloud.calls.count, served.cloud.calls)) < 3
    other = served.address.replace(where, "nobody" if gs else "datasets/nobody/none")
    for address, says in (
        (f"{other}/x.tar", "no such file" if gs else r"no such repository, or it is private \(set HF_TOKEN"),
        (other, "no such file" if gs else "no such repository"),
        *(
            ()
            if gs
            else (
                ("hf://datasets/one", "names no repository"),
                ("hf://datasets/user/name@v9/x.tar", "no such revision"),
            )
        ),
    ):
        assert main(["verify", address]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(says, error), error
    assert not [record for record in caplog.records if record.name.startswith("gcsfs")]


def test_what_fails_for_long_is_named_by_its_reason(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    source = served.opened("ours")
    served.cloud.failures = [503] * 4
    with pytest.raises(UserError, match=r"cannot read (gs|hf)://.*ours/shard-.*: the server answers 503.*\(4 tries\)"):
        source.encoded(0)
    assert not served.cloud.failures
    require_equal(source, open_source(served.root / "ours"))
    assert not [record for record in caplog.records if record.name.startswith("gcsfs")]


def test_a_stall_is_named_within_the_time_that_was_given(served: Served) -> None:
    data = open_data(TrainConfig(data=DataConfig(data=f"{served.address}/ours", stall_timeout=2.0, remote_cache=0)))
    engine = build_engine("native", data.train, training(SAMPLES), batch_size=6, workers=2, stall=2.0)
    served.cloud.failures = ["stall"] * 100
    with pytest.raises(UserError, match=r"cannot read (gs|hf)://.*/ours/shard-.*: nothing came for 0\.4 s \("):
        epoch_of(engine, Cursor(0, 0))


def test_a_list_that_stalls_is_named_too(served: Served) -> None:
    served.cloud.api_stall = 4.0
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot (read|open) (gs|hf)://.*: (nothing came for|no credentials)"):
        placed(f"{served.address}/ours", patience=1.6)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("kind", ["unchecked-beton", "indexed"])
def test_a_file_that_changes_while_it_is_read_is_named(served: Served, kind: str) -> None:
    """Of the same size: neither a look at sizes nor the recheck, which comes after minutes, would tell."""
    source = served.opened(kind, cache_gb=0)
    source.encoded(0)
    served.cloud.epoch += 1  # the hub's store would have kept what it gave an address for
    for path in (served.root / kind).glob("*.beton" if "beton" in kind else "*.tar"):
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"(d\.beton|x-0\.tar) has changed since it was opened"):
        source.encoded(1)


def test_an_earlier_opening_s_lists_are_not_taken_for_what_is_there(served: Served, site: Website) -> None:
    require_equal(served.opened("walked"), here(site, "walked"))
    for name, count in (("x-0.tar", 2), ("x-1.tar", 9)):
        (served.root / f"walked/{name}").unlink()
        write_tar(served.root / f"walked/{name}" if count == 2 else served.root / "walked/y.tar", members(count, 90))
    assert len(served.opened("walked")) == 2 + 9 + 8
    require_equal(served.opened("walked"), here(site, "walked"))


def test_a_checksum_is_compared(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = remote.Remote(f"{served.address}/walked").files()
    assert {file.checksum[0] for file in files if file.checksum} == {"md5" if served.address[0] == "g" else "sha256"}
    described = remote.Remote.described

    def other(self: remote.Remote, path: str, name: str) -> remote.RemoteFile:
        found = described(self, path, name)
        return found._replace(checksum=(found.checksum[0], "0" * 32))  # type: ignore[index]

    monkeypatch.setattr(remote.Remote, "described", other)
    with pytest.raises(UserError, match=r"came with the (md5|sha256) .*, and 0+ was announced"):
        copies.local_copy(f"{served.address}/walked", tmp_path / "c")
