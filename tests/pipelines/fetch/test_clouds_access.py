"""Private data on Google's storage and on the hub: who may read, and where tokens go and do not go."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from http_server import Website
from ranged import SAMPLES, here, require_equal
from served import served_by

from fastvicreg.cli import main
from fastvicreg.errors import UserError
from fastvicreg.pipelines.fetch.systems import google_client, open_system

TOKEN = "hf_averysecrettoken"


def test_a_private_dataset_of_the_hub_takes_its_token_and_tells_nobody(
    site: Website, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with served_by("hf", site.root, monkeypatch) as served:
        served.cloud.token = TOKEN
        for path in (site.root / "ours").iterdir():
            path.write_bytes(path.read_bytes().ljust(2000, b"\0") if path.suffix == ".tar" else path.read_bytes())
        address = f"{served.address}/ours"
        for token in (None, "hf_another"):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            assert main(["verify", address]) == 2
            error = capfd.readouterr().err
            assert "the hub has no such repository, or it is private (set HF_TOKEN, or run: hf auth login)" in error
            assert error.count("\n") == 1
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert main(["verify", address, "--decode"]) == 0
        assert f"0 faults in {SAMPLES} samples" in capfd.readouterr().out
        source = served.opened("ours")
        monkeypatch.delenv("HF_TOKEN")  # revoked, say
        served.cloud.epoch += 1
        with pytest.raises(UserError, match=r"shard-0.*set HF_TOKEN, or run") as refused:
            source.encoded(0)
        assert served.cloud.bearers == {TOKEN, "hf_another"}  # the store refuses whoever shows it one
        said = "".join(capfd.readouterr()) + caplog.text + str(refused.value)
        assert "hf_" not in said.replace("HF_TOKEN", "")
        cached = [path for path in (site.root.parent / "cache").rglob("*") if path.is_file()]
        assert cached
        assert not any(TOKEN.encode() in path.read_bytes() for path in cached)


def test_another_token_is_another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client keeps what a token was refused, by threads whose numbers come again."""
    client = importlib.import_module("huggingface_hub.hf_file_system")
    monkeypatch.setattr(client, "threading", SimpleNamespace(**{**vars(threading), "get_ident": lambda: 1}))

    def opened_with(token: str) -> object:
        monkeypatch.setenv("HF_TOKEN", token)
        return open_system("hf://datasets/user/name", 10.0)[0]

    first = opened_with("hf_one")
    assert opened_with("hf_two") is not first
    assert opened_with("hf_one") is first


def test_the_hub_is_asked_once_where_a_file_lies_and_again_when_that_address_expires(
    site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_by("hf", site.root, monkeypatch) as served:
        source = served.opened("walked", cache_gb=0)
        for asked in (3, 0, 3):  # of three files
            served.cloud.calls.clear()
            require_equal(source, here(site, "walked"))
            assert len([call for call in served.cloud.calls if "/resolve/" in call]) == asked
            served.cloud.epoch += not asked


def test_google_s_credentials_are_taken_from_where_its_programs_take_them(
    site: Website, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A service account's key, which its token is asked with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with served_by("gs", site.root, monkeypatch) as served:
        served.cloud.token = "ya29.secret"
        assert main(["verify", f"{served.address}/ours"]) == 2
        error = capfd.readouterr().err
        assert "the server answers 401 Anonymous caller does not have storage.objects." in error
        assert ": set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login." in error
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": key,
            "client_email": "a@project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{served.cloud.address}/token",
        }
        (tmp_path / "key.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        google_client().clear_instance_cache()  # as another process
        assert main(["verify", f"{served.address}/ours", "--decode"]) == 0
        captured = capfd.readouterr()
        assert f"0 faults in {SAMPLES} samples" in captured.out
        assert "ya29" not in captured.out + captured.err
        assert served.cloud.bearers == {"ya29.secret"}


@pytest.mark.slow
def test_a_package_that_is_missing_is_named() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("gcsfs", "huggingface_hub", "s3fs")))
from fastvicreg.cli import main
print([main(["verify", address]) for address in ("gs://b/x.tar", "hf://datasets/u/n/x.tar", "s3://b/x.tar")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[2, 2, 2]\n"
    for line, package in zip(done.stderr.splitlines(), ("gcsfs", "huggingface_hub", "s3fs"), strict=True):
        assert package in line
        assert line.endswith(": pip install 'fastvicreg[remote]'.")
