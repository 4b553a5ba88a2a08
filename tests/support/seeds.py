"""Small files that each of ``parsers.PARSERS`` accepts, made by this program: what fuzzing begins with."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from betons import PAGE
from images import encoded, photo
from parsers import small
from safetensors.numpy import load
from safetensors.numpy import save as save_arrays
from tars import index_by_tarfile, members, write_tar
from traces import device_trace

from fastvicreg import config_file
from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.pipelines.convert.journal import ENTRY, Journal
from fastvicreg.pipelines.formats.beton.layout import ALLOCATION, HEADER, IMAGE, field_descriptors, metadata_dtype
from fastvicreg.pipelines.manifest import KEY, UNSIGNED, Manifest, Skipped, to_bytes
from fastvicreg.presets import PRESETS
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.checkpoint import Progress

KINDS = {"beton": [("image", 2), ("label", 1)], "text": [("image", 2), ("text", 5), ("x", 4), ("score", 0)]}
"""Fields of the .beton seeds: with a class, and with bytes of other kinds."""


def jpegs(folder: Path) -> list[bytes]:
    grey = photo(3, 12, 9).convert("L")
    return [
        encoded(photo(1, 16, 12), quality=50),
        encoded(photo(2, 20, 9), progressive=True, quality=50),
        encoded(grey, quality=50),
        encoded(photo(4, 9, 9).convert("CMYK"), quality=50),
        encoded(photo(5, 16, 16), quality=50, restart_marker_blocks=1),
    ]


def betons(folder: Path) -> list[bytes]:
    """Two samples each, not padded to pages, so that nothing of them is idle."""
    image = encoded(photo(1, 4, 4), quality=30)
    return [_beton(fields, [image[:40], bytes(range(36))]) for fields in KINDS.values()]


def _beton(fields: list[tuple[str, int]], images: list[bytes]) -> bytes:
    """The first image is stored encoded, the second as 4 x 3 pixels."""
    row = metadata_dtype([kind for _, kind in fields])
    at = HEADER.itemsize + len(field_descriptors(fields)) + len(images) * row.itemsize
    rows, table, body = np.zeros(len(images), row), [], b""
    for sample, content in enumerate(images):
        for place, (_, kind) in enumerate(fields):
            if kind in (0, 1):
                rows[f"f{place}"][sample] = sample
                continue
            part = content if kind == 2 else b"some text" + bytes([sample])
            value = np.array((sample, 4, 3, at), IMAGE) if kind == 2 else (at, len(part)) if kind == 5 else at
            rows[f"f{place}"][sample] = value
            table.append((sample, at, len(part)))
            body += part
            at += len(part)
    header = np.array((2, len(fields), PAGE, len(images), at), HEADER)
    return header.tobytes() + field_descriptors(fields) + rows.tobytes() + body + np.array(table, ALLOCATION).tobytes()


def tars(folder: Path) -> list[bytes]:
    """ustar, GNU and pax; a long name, and a tar file within a tar file."""
    image = encoded(photo(1, 4, 4), quality=30)
    long = "folder/" + "n" * 120
    entries = [("a.jpg", image), ("a.cls", b"1"), ("b.jpg", image), ("b.cls", b"0")]
    found = [_tar(folder, entries)]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found.append(_tar(folder, [(f"{long}.jpg", image), (f"{long}.json", b'{"label": 3}')], kind))
    return [*found, _tar(folder, [("n01.tar", found[0]), ("n02.tar", found[0])])]


def _tar(folder: Path, entries: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """Without the empty blocks that fill a tar file up, but for the two that end it."""
    path = folder / "x.tar"
    write_tar(path, entries, kind)
    content = path.read_bytes().rstrip(b"\0")
    return content + bytes(-len(content) % 512 + 1024)


def indices(folder: Path) -> list[bytes]:
    tar, index = folder / "y.tar", folder / "y.idx"
    write_tar(tar, members(2))
    index_by_tarfile(tar, index)
    content = tar.read_bytes().rstrip(b"\0")
    return [index.read_bytes() + b"\n" + content + bytes(-len(content) % 512 + 1024)]


def images(folder: Path) -> list[bytes]:
    picture = photo(1, 8, 6)
    alpha, palette, deep = picture.convert("RGBA"), picture.convert("P"), picture.convert("I").convert("I;16")
    return [
        *jpegs(folder)[:2],
        encoded(picture, "PNG"),
        encoded(alpha, "PNG"),
        encoded(palette, "PNG"),
        encoded(deep, "PNG"),
        encoded(picture, "WEBP"),
        encoded(picture, "BMP"),
        encoded(picture, "GIF"),
        encoded(picture, "TIFF"),
    ]


def manifests(folder: Path) -> list[bytes]:
    """One of today's, and one of the version before, which has no digest that would refuse all that is changed."""
    whole = Manifest(
        np.arange(3, dtype=np.uint64),
        np.full(3, 9, np.uint64),
        np.array([0, 1, 0]),
        np.full(3, 4, np.uint32),
        np.full(3, 5, np.uint32),
        ["a/0.jpg", "b/1.jpg", "a/\udcff.jpg"],
        ("a", "b"),
        (Skipped("a/2.jpg", "an empty file"),),
        {"format": "ffcv", "quality": 90},
        7,
    )
    signed = to_bytes(whole)
    return [signed, save_arrays(load(signed), {KEY: UNSIGNED})]


def traces(folder: Path) -> list[bytes]:
    writer = device_trace(1)
    text = json.dumps({**writer.header, "traceEvents": writer.events}).encode()
    return [text, json.dumps(writer.events[:8]).encode(), gzip.compress(text, mtime=0)]


def configs(folder: Path) -> list[bytes]:
    first = {"model": {"arch": "resnet18", "expander": [8, 8]}, "objective": {"loss_form": "paper"}, "data": {}}
    return [
        *(config_file.to_json(PRESETS[name]().config).encode() for name in ("demo", "imagenet-fast")),
        config_file.to_json(TrainConfig()).encode(),
        json.dumps({"version": 1, **first}).encode(),
    ]


def npzs(folder: Path) -> list[bytes]:
    named: dict[str, Any] = {**_features(), "classes": np.array(["a", "b"])}
    np.savez(folder / "f.npz", **named)
    del named["classes"]
    np.savez_compressed(folder / "g.npz", **named)
    return [(folder / name).read_bytes() for name in ("f.npz", "g.npz")]


def safetensors(folder: Path) -> list[bytes]:
    return [save_arrays(_features()), save_arrays(_features(), {"classes": '["a", "b"]'})]


def _features() -> dict[str, np.ndarray]:
    features = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
    labels = np.array([0, 1, 0])
    return {
        "train_features": features,
        "train_labels": labels,
        "val_features": features[:2].astype(np.float16),
        "val_labels": labels[:2].astype(np.int32),
    }


def journals(folder: Path) -> list[bytes]:
    path = folder / "journal"
    journal = Journal(path)
    for number in (2, 1):
        journal.append(np.zeros(number, ENTRY), [f"reason {number}"])
    journal.close()
    return [path.read_bytes()]


def states(folder: Path) -> list[bytes]:
    """With a digest, and as before there was one; the checkpoint's other files are left in the folder."""
    path = checkpoints.save(folder, Progress(Cursor(0, 1), 1, 100), *small(), keep=2)
    state = json.loads((path / "state.json").read_text())
    older = {key: value for key, value in state.items() if key not in ("digest", "digests")}
    return [json.dumps(state).encode(), json.dumps(older | {"format": 2}).encode()]


def optimizers(folder: Path) -> list[bytes]:
    """Beside a state that records no digests."""
    path = checkpoints.save(folder, Progress(Cursor(0, 1), 1, 100), *small(), keep=2)
    (path / "state.json").write_bytes(states(folder)[1])
    return [(path / "optimizer.safetensors").read_bytes()]


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "beton": betons,
    "tar": tars,
    "tar-summed": tars,
    "idx": indices,
    "jpeg": jpegs,
    "image": images,
    "manifest": manifests,
    "trace": traces,
    "config": configs,
    "npz": npzs,
    "safetensors": safetensors,
    "journal": journals,
    "state": states,
    "optimizer": optimizers,
}
"""Each is given a folder, where what the parser reads beside the bytes is left."""
