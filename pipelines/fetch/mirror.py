"""Remote files as a folder of their structure, which opens as the files themselves would; samples come by ranges.

``FOLDER/files`` holds, under the remote names, tar and ``.beton`` files with holes where the images are
(``structure``), and whole indices and manifests. A note beside it tells ``open_source`` whose structure that is.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_hexdigest

from fastvicreg.pipelines.fetch.copies import LOCK, Told, safe_place
from fastvicreg.pipelines.fetch.download import download
from fastvicreg.pipelines.fetch.kept import Kept, Store
from fastvicreg.pipelines.fetch.ranges import RangedSamples
from fastvicreg.pipelines.fetch.remote import Remote, RemoteFile
from fastvicreg.pipelines.fetch.structure import NestedError, write_structure
from fastvicreg.pipelines.fetch.wanted import BESIDE
from fastvicreg.pipelines.formats.beton.source import BetonSource
from fastvicreg.pipelines.formats.dataset import DatasetSource
from fastvicreg.pipelines.formats.listing import BETON_ENDINGS, TAR_ENDINGS
from fastvicreg.pipelines.formats.shards.source import ShardSource
from fastvicreg.pipelines.manifest import SUFFIX
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.stalls import NEVER

NOTE = ".remote.json"
FILES = "files"
CACHE_GB = 50.0
"""Of samples that are kept on this disk, unless told otherwise."""
ALL, ENDS = "all headers", "the first and last headers"
"""How much of a file's structure was written."""
AT_ONCE = 4
"""Files whose structure is read at once."""


def mirror(
    address: str,
    folder: Path,
    *,
    cache_gb: float = CACHE_GB,
    patience: float = 0.0,
    all_headers: bool = False,
    told: Told = lambda done, total, size: None,
) -> Path | None:
    """Bring the structure of the files at ``address`` to ``folder``; the path to open, or None where ranges do not do.

    They do not of compressed tar files, of tar files in tar files and of tables. Called again it goes on where it was
    stopped, and reads anew what has changed since; of several processes one works, and the others wait. At most
    ``cache_gb`` GB of samples are kept beside it. ``patience``: seconds after which what does not come is named; 0:
    after all repetitions. ``all_headers``: of every member, as a check of the files needs.
    ``UserError`` where there is nothing, or a file cannot be read.
    """
    remote = Remote(address, patience)
    files = remote.files()
    data = [file for file in files if _ending(file) not in BESIDE]
    if not data or any(_ending(file) not in TAR_ENDINGS | BETON_ENDINGS for file in data):
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = folder / FILES
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        places = [safe_place(file, root) for file in files]
        if any(_changed(place, file) for place, file in zip(places, files, strict=True)):
            _forget(folder, {*places})
        try:
            _write(remote, files, places, told, all_headers=all_headers)
        except NestedError:
            shutil.rmtree(folder)
            return None
        note = {
            "address": address,
            "cache_gb": cache_gb,
            "patience": patience,
            "files": [file._asdict() for file in files],
        }
        draft = folder / f"{NOTE}.part"
        draft.write_text(json.dumps(note))
        draft.replace(folder / NOTE)
    return places[files.index(data[0])] if len(data) == 1 else root


def attach(source: DatasetSource) -> None:
    """Let ``source`` read its samples by ranges where its files are a mirror's; ``UserError`` where they cannot be."""
    if not isinstance(source, BetonSource | ShardSource):
        return
    paths = [source.path] if isinstance(source, BetonSource) else [tar for tar, _ in source.layout.files]
    beside = (folder for folder in paths[0].parents if folder.name == FILES and (folder.parent / NOTE).is_file())
    root = next(beside, None)
    if root is None:
        return
    note = json.loads((root.parent / NOTE).read_text())
    file_of = {file["name"]: RemoteFile(**file) for file in note["files"]}
    files = [file_of[path.relative_to(root).as_posix()] for path in paths]
    file_N, start_N, size_N = source.places()
    limit = int(note["cache_gb"] * 1e9)
    kept = None
    if limit:
        what = f"{[(file.path, file.state) for file in files]}".encode("utf-8", "surrogateescape")
        key = xxh3_64_hexdigest(what + np.stack((file_N, start_N, size_N)).tobytes())
        kept = Kept(Store(root.parent, limit), key, size_N)
    remote = Remote(note["address"], note["patience"])
    source.elsewhere = RangedSamples(remote, files, file_N, start_N, size_N, kept, source.expected_hash)


def _write(
    remote: Remote, files: Sequence[RemoteFile], places: Sequence[Path], told: Told, *, all_headers: bool
) -> None:
    """Each file's structure, indices and manifests first."""
    index_of: dict[Path, bytes] = {}
    came = 0
    for file, place in zip(files, places, strict=True):
        if _ending(file) in BESIDE:
            came += _once(place, file, lambda file=file, place=place: _whole(remote, file, place))
    manifests = {place.parent for place in places if place.suffix == SUFFIX}
    for place in places:
        if place.suffix == ".idx" and place.parent in manifests and not all_headers:
            index_of[place.with_suffix(".tar")] = place.read_bytes()
    large = [at for at, file in enumerate(files) if _ending(file) not in BESIDE]

    def write(number: int) -> int:
        file, place = files[large[number]], places[large[number]]
        index = index_of.get(place)
        kind = ENDS if index is not None else ALL
        return _once(place, file, lambda: write_structure(remote, file, place, index), kind)

    sizes = in_order(write, range(len(large)), workers=AT_ONCE, chunk=1, name="fastvicreg-fetch", stall=NEVER)
    for done, size in enumerate(sizes, 1):
        came += size
        told(done, len(large), came)


def _whole(remote: Remote, file: RemoteFile, place: Path) -> int:
    download(remote, file, place, lambda size: None)
    return file.size


def _once(place: Path, file: RemoteFile, write: Callable[[], int], kind: str = "") -> int:
    """The bytes that came for ``place``: 0 where it was written before, from the same state of the file."""
    done, state = _noted(place), f"{file.state} {kind}".strip()
    if place.exists() and done.exists() and done.read_text() in (state, f"{file.state} {ALL}"):
        return 0
    size = write()
    done.write_text(state)
    return size


def _changed(place: Path, file: RemoteFile) -> bool:
    """Whether ``place`` was written from another state of the file."""
    done = _noted(place)
    return done.exists() and not done.read_text().startswith(file.state)


def _noted(place: Path) -> Path:
    return place.with_name(f".{place.name}.done")


def _forget(folder: Path, places: set[Path]) -> None:
    """Drop the samples that were kept, and files that are not there any more."""
    for path in (*folder.glob("entries-*"), folder / "samples", folder / "used"):
        path.unlink(missing_ok=True)
    for path in (folder / FILES).rglob("*"):
        if path.is_file() and path not in places:
            path.unlink()


def _ending(file: RemoteFile) -> str:
    return Path(file.name).suffix.lower()
