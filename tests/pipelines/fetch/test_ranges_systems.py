"""Other file systems than the web's are read by ranges too."""

from __future__ import annotations

import pytest
import torch
from http_server import Website
from ranged import SAMPLES, here, require_equal

from fastvicreg.errors import UserError
from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.fetch import ranges
from fastvicreg.pipelines.fetch.placed import placed


def test_any_file_system_of_fsspec_is_read_by_ranges(site: Website) -> None:
    """The memory's, which is neither asynchronous nor the web's, as the hub's client is."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (site.root / "ours").iterdir():
        memory.pipe(f"/ranges/{path.name}", path.read_bytes())
    require_equal(open_source(placed("memory://ranges").path), here(site, "ours"))


@pytest.mark.slow
def test_an_s3_server_is_read_by_ranges(site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto's."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "none"),
            ("AWS_SECRET_ACCESS_KEY", "none"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        s3 = s3fs.S3FileSystem()
        s3.mkdir("bucket")
        for kind in ("indexed", "ours"):
            for path in (site.root / kind).iterdir():
                s3.put(str(path), f"bucket/{kind}/{path.name}")
            source = open_source(placed(f"s3://bucket/{kind}").path)
            source.read_ahead(torch.arange(SAMPLES))  # type: ignore[attr-defined]
            require_equal(source, here(site, kind))
        source = open_source(placed("s3://bucket/ours/shard-*", cache_gb=0).path)
        monkeypatch.setattr(ranges, "RECHECK", 0.0)
        s3.pipe("bucket/ours/shard-000000.tar", b"other")
        with pytest.raises(UserError, match=r"shard-000000\.tar has changed since it was opened"):
            source.encoded(0)
    finally:
        server.stop()
