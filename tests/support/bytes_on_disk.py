"""Damage to files."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, at: int) -> None:
    """Turn one byte into its complement."""
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
