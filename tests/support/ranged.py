"""A served dataset in every form that is read by ranges, and what of it must equal the files here."""

from __future__ import annotations

from pathlib import Path

from http_server import Website
from tars import index_by_tarfile, members, write_tar

from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.fetch.placed import placed
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.manifest import manifest_path

SAMPLES = 24
KINDS = ("walked", "indexed", "ours", "unchecked-beton", "ours-beton")
GB = 1e9


def write_all(root: Path) -> None:
    """The same samples in every form that is read by ranges; a name below ``root`` each of ``KINDS``."""
    for at in range(3):
        for kind in ("walked", "indexed"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            write_tar(root / f"{kind}/x-{at}.tar", members(8, 8 * at))
        index_by_tarfile(root / f"indexed/x-{at}.tar", root / f"indexed/x-{at}.idx")
    convert_dataset(root / "walked", root / "ours", Settings(format="shards", shard_size=16 << 10))
    for kind in ("unchecked-beton", "ours-beton"):
        (root / kind).mkdir()
        convert_dataset(root / "walked", root / f"{kind}/d.beton")
    manifest_path(root / "unchecked-beton/d.beton").unlink()


def opened(site: Website, kind: str, **options: float) -> DatasetSource:
    return open_source(placed(f"{site.address}/{kind}/", **options).path)  # type: ignore[arg-type]


def here(site: Website, kind: str) -> DatasetSource:
    return open_source(site.root / kind / "d.beton" if kind.endswith("-beton") else site.root / kind)


def require_equal(ours: DatasetSource, local: DatasetSource) -> None:
    assert (len(ours), ours.classes) == (len(local), local.classes)
    for index in range(len(local)):
        assert bytes(ours.encoded(index)) == bytes(local.encoded(index)), index
        for tell in ("label", "name", "size", "expected_hash", "recorded_size"):
            assert getattr(ours, tell)(index) == getattr(local, tell)(index)


def image_bytes(site: Website) -> int:
    return sum(len(here(site, "walked").encoded(index)) for index in range(SAMPLES))
