"""Parquet and arrow files as Hugging Face's datasets library writes them, for the tests; needs pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from images import encoded, photo


def image(number: int) -> bytes:
    """JPEGs, and a PNG for every fifth."""
    return encoded(photo(number, 40 + number % 7, 30), "PNG" if number % 5 == 4 else "JPEG")


def hub_table(numbers: range, names: list[str] | None, **columns: Any) -> pa.Table:
    """Rows of an image struct and an int label, n % 3; ``names`` are a ClassLabel's in the schema's metadata."""
    rows = {
        "image": pa.array(
            [{"bytes": image(n), "path": f"n{n:03d}.jpg"} for n in numbers],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([n % 3 for n in numbers], pa.int64()),
        **columns,
    }
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    table = pa.table(rows)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, table: pa.Table, group: int = 100, compression: str = "snappy") -> Path:
    """``table`` with row groups of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, compression=compression)
    return path


def write_arrow(path: Path, table: pa.Table, *, stream: bool = True) -> Path:
    """``table`` as datasets' save_to_disk writes it, or as an IPC file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path
