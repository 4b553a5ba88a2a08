"""Remote data as a path to open, in the cache folder: by ranges of its files where that can be done, else copied."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64_hexdigest

from fastvicreg.caches import cache_folder
from fastvicreg.pipelines.fetch.copies import Told, local_copy
from fastvicreg.pipelines.fetch.mirror import CACHE_GB, mirror


class Placed(NamedTuple):
    """What ``open_source`` and ``splits_of`` take for an address, and a line on it for a person."""

    path: Path
    note: str


def placed(
    address: str,
    *,
    whole: bool = False,
    cache_gb: float = CACHE_GB,
    patience: float = 0.0,
    all_headers: bool = False,
    told: Told = lambda done, total, size: None,
) -> Placed:
    """The files at ``address``: see ``mirror.mirror``; copied where they are to be ``whole``, or ranges do not do.

    ``UserError`` where there is nothing, no room for a copy, or a file cannot be read.
    """
    name = xxh3_64_hexdigest(address.encode("utf-8", "surrogateescape"))
    if not whole:
        folder = cache_folder() / "ranges" / name
        path = mirror(address, folder, cache_gb=cache_gb, patience=patience, all_headers=all_headers, told=told)
        if path is not None:
            stays = f"up to {cache_gb:g} GB of them stay in {folder}" if cache_gb else "none of them stays here"
            return Placed(path, f"{address}: samples are read by ranges as they are needed; {stays}")
    folder = cache_folder() / "remote" / name
    return Placed(local_copy(address, folder, told), f"{address} was copied to {folder}")
