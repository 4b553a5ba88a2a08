"""A .beton written field by field, as no converter of ours would."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastvicreg.pipelines.convert import Settings
from fastvicreg.pipelines.formats.beton.layout import ALLOCATION, HEADER, field_descriptors

PAGE = 1 << 21
SMALL = Settings(page_size=PAGE)


def write_by_hand(path: Path, fields: list[tuple[str, int]], rows: np.ndarray, data: list[list[bytes]]) -> None:
    """A file as FFCV's writer lays it out; ``data`` is each sample's allocations, rows hold indices as pointers."""
    prefix = HEADER.itemsize + len(field_descriptors(fields))
    at = start = -(-(prefix + rows.nbytes) // PAGE) * PAGE
    table, pages = [], bytearray()
    for sample, parts in enumerate(data):
        for part in parts:
            table.append((sample, at, len(part)))
            pages += part
            at += len(part)
    end = -(-at // PAGE) * PAGE
    content = bytearray(end)
    header = np.array((2, len(fields), PAGE, len(rows), end), HEADER)
    content[:prefix] = header.tobytes() + field_descriptors(fields)
    content[prefix : prefix + rows.nbytes] = rows.tobytes()
    content[start : start + len(pages)] = pages
    path.write_bytes(bytes(content) + np.array(table[::-1], ALLOCATION).tobytes())
