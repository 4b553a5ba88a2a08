"""The rows of one parquet or arrow file: the small columns at once, the images as they come."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastvicreg.errors import DamagedError, UserError
from fastvicreg.pipelines.formats.tables.window import Window

BATCH = 64
"""Rows that are decoded together."""
BUFFER = 1 << 20
"""Bytes that are read of a column at once: a row group may hold more images than the memory."""


class Images(Protocol):
    """A column of bytes."""

    def __getitem__(self, row: int) -> pa.Scalar: ...


class TableFile(Protocol):
    """One file of a table."""

    path: Path
    schema: pa.Schema
    rows: int
    random: bool
    """Whether one row can be read without those before it."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column; ``a.b`` is the field b of the struct a."""
        ...

    def images(self, name: str) -> Images:
        """The bytes in a column by row, of a struct those in its field "bytes"."""
        ...


class ParquetFile:
    """One whose images are read in the rows' order, ``BATCH`` rows at a time."""

    random = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self.schema, self.rows = file.schema_arrow, file.metadata.num_rows
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts))]

    def column(self, name: str) -> pa.ChunkedArray:
        with pq.ParquetFile(self.path) as file:
            return file.read(columns=[name]).flatten().column(0)

    def images(self, name: str) -> Images:
        return Window(lambda first: self._batches(name, first))

    def _batches(self, name: str, first: int) -> Iterator[tuple[int, Any]]:
        """(row of its first value, values) of the column from a row not after ``first`` on."""
        begin = max(at for at, start in enumerate(self._starts) if start <= first)
        with pq.ParquetFile(self.path, buffer_size=BUFFER, pre_buffer=False) as file:
            for group in range(begin, len(self._starts)):
                row, end = self._starts[group], [*self._starts, self.rows][group + 1]
                try:
                    for batch in file.iter_batches(BATCH, row_groups=[group], columns=[name], use_threads=False):
                        yield row, _bytes(batch.column(0))
                        row += batch.num_rows
                except (OSError, pa.ArrowException) as error:
                    yield (
                        row,
                        _Damaged(end - row, f"row group {group} is damaged after row {row} ({_first_line(error)})"),
                    )


class _Damaged:
    """Values that cannot be read; those after them may be."""

    def __init__(self, rows: int, reason: str) -> None:
        self._rows, self._reason = rows, reason

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> pa.Scalar:
        raise OSError(self._reason)


class ArrowFile:
    """One in memory, of which the system reads what is asked for."""

    random = True

    def __init__(self, path: Path) -> None:
        self.path = path
        mapped = pa.memory_map(str(path))
        try:
            self._table = pa.ipc.open_stream(mapped).read_all()  # as the datasets library writes
        except pa.ArrowInvalid:
            mapped.seek(0)
            self._table = pa.ipc.open_file(mapped).read_all()
        self.schema, self.rows = self._table.schema, self._table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        outer, _, inner = name.partition(".")
        column = self._table.column(outer)
        return pa.chunked_array([pc.struct_field(chunk, inner) for chunk in column.chunks]) if inner else column

    def images(self, name: str) -> Images:
        return _Chunks([_bytes(values) for values in self._table.column(name).chunks])


class _Chunks:
    def __init__(self, chunks: list[pa.Array]) -> None:
        self._chunks = chunks
        self._ends = list(itertools.accumulate(map(len, chunks)))

    def __getitem__(self, row: int) -> pa.Scalar:
        at = bisect.bisect_right(self._ends, row)
        return self._chunks[at][row - self._ends[at] + len(self._chunks[at])]


def open_file(path: Path) -> TableFile:
    """The file by its ending; ``DamagedError`` where it is none, or cut short."""
    try:
        return ArrowFile(path) if path.suffix == ".arrow" else ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DamagedError(f"{path} is cut short or damaged ({_first_line(error)}): copy it again.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or _first_line(error)}.") from error


def _bytes(values: pa.Array) -> pa.Array:
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
