"""A compressed tar file as a plain one, whose samples can be read one by one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fastvicreg.errors import DamagedError, UserError

COPY = 4 << 20
"""Bytes at once."""


def unpack(archive: Path, place: Path) -> None:
    """Write what ``archive`` holds to ``place``, which appears when it is whole.

    ``DamagedError`` where it is cut short or no such archive, ``UserError`` where a package is missing.
    """
    draft = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(archive) as packed, draft.open("wb") as plain:
            shutil.copyfileobj(packed, plain, COPY)
            plain.flush()
            os.fsync(plain.fileno())
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is None:  # not the disk: bz2's and pyarrow's word for damaged bytes
            raise _damaged(archive, error) from error
        raise
    os.replace(draft, place)


def _opened(archive: Path) -> IO[bytes] | Any:
    openers: dict[str, Callable[[Path], Any]] = {
        ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard,
    }  # fmt: skip
    return openers[archive.suffix.lower()](archive)


def _zstandard(archive: Path) -> Any:
    try:
        import pyarrow as pa  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"{archive} needs pyarrow, which does not import ({error}): pip install 'fastvicreg[parquet]', or unzstd "
            f"{archive}."
        ) from error
    return pa.input_stream(str(archive), compression="zstd")


def _damaged(archive: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{archive} is cut short or damaged ({str(error).splitlines()[0]}): copy it again.")
