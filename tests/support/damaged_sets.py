"""Datasets of a few small images, damaged by a seed: in their images, or in the files that hold them.

Each takes the folder to work in and gives (the dataset, how many mutations it holds). In that folder "whole",
"whole.beton", "other" and "other.beton" are converted datasets of other images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from images import encoded, photo
from mutating import bombs, mutated
from tars import index_by_tarfile, write_tar

from fastvicreg.pipelines import open_source
from fastvicreg.pipelines.manifest import manifest_path


def images(chance: Random, count: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of small images of three kinds."""
    for number in range(count):
        kind = ("JPEG", "JPEG", "PNG", "WEBP")[number % 4]
        picture = photo(chance.randrange(10**6), 30 + number % 9, 40 - number % 7)
        options = {"progressive": number % 8 == 4} if kind == "JPEG" else {}
        yield f"{number:02d}.{kind.lower()}", encoded(picture, kind, **options)


def files(work: Path, chance: Random) -> tuple[Path, int]:
    """A folder of images, two thirds of them damaged, with bombs."""
    made = list(images(chance, 12))
    (work / "images" / "a").mkdir(parents=True)
    (work / "images" / "b").mkdir(parents=True)
    for number, (name, content) in enumerate(made):
        if number >= 4:
            content, _ = mutated(content, chance, made[chance.randrange(12)][1])
        (work / "images" / "ab"[number % 2] / name).write_bytes(content)
    for name, content in bombs().items():
        (work / "images" / "b" / name).write_bytes(content)
    return work / "images", 8


def members(work: Path, chance: Random) -> tuple[Path, int]:
    """A tar shard of others' making, with damaged members; with an index or without."""
    made = list(images(chance, 12))
    entries = []
    for number, (name, content) in enumerate(made):
        if number >= 4:
            content, _ = mutated(content, chance, made[chance.randrange(12)][1])
        entries += [(name, content), (f"{number:02d}.cls", b"%d" % (number % 2))]
    (work / "tars").mkdir()
    write_tar(work / "tars" / "x.tar", entries)
    if chance.random() < 0.5:
        index_by_tarfile(work / "tars" / "x.tar", work / "tars" / "x.idx")
    return work / "tars", 8


def stored(work: Path, chance: Random) -> tuple[Path, int]:
    """A .beton without its manifest, whose samples' bytes are damaged where they lie."""
    source = open_source(work / "whole.beton")
    data = bytearray((work / "whole.beton").read_bytes())
    rows = source.layout.image_N["data_ptr"].tolist()  # type: ignore[attr-defined]
    for index in chance.sample(range(len(source)), 8):
        payload = bytes(source.encoded(index))
        changed, _ = mutated(payload, chance, bytes(source.encoded(chance.randrange(len(source)))))
        data[rows[index] : rows[index] + len(payload)] = changed[: len(payload)].ljust(len(payload), b"\0")
    (work / "x.beton").write_bytes(data)
    return work / "x.beton", 8


def structure(work: Path, chance: Random, kind: str, *, manifest: bool) -> tuple[Path, int]:
    """One file of a converted dataset damaged: a .beton, a shard's tar or .idx, or the manifest."""
    shards = kind in ("tar", "idx", "shards.manifest")
    origin = work / "whole" if shards else work / "whole.beton"
    target = work / ("x" if shards else "x.beton")
    if shards:
        shutil.copytree(origin, target)
    else:
        shutil.copy(origin, target)
        shutil.copy(manifest_path(origin), manifest_path(target))
    ending = kind.rpartition(".")[2]
    tars = {"tar": "shard-000000.tar", "idx": "shard-000000.idx"}
    victim = manifest_path(target) if ending == "manifest" else target / tars[kind] if shards else target
    donor = work / "other" if shards else work / "other.beton"
    other = manifest_path(donor) if ending == "manifest" else donor / victim.name if shards else donor
    changed, _ = mutated(victim.read_bytes(), chance, other.read_bytes())
    victim.write_bytes(changed)
    if not manifest:
        manifest_path(target).unlink()
    return target, 1
