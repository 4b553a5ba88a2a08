"""Addresses of files on other machines (https://, s3://, gs://, hf:// ...): what is one, and what one must name."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from fastvicreg.errors import UserError

WEB, GOOGLE, HUB = ("http", "https"), ("gs", "gcs"), ("hf",)
BUCKETS = (*GOOGLE, "s3", "s3a")
_REPOSITORIES = ("datasets", "models", "spaces")
"""Kinds of the hub's, a part of the path before a repository's name."""
_ADDRESS = re.compile(rf"(?!file:)[a-z][a-z0-9+.-]+:/.|(?:{'|'.join((*WEB, *BUCKETS, *HUB))}):/?$", re.IGNORECASE)


def is_remote(source: str | Path) -> bool:
    """Whether ``source`` is an address on another machine, if an incomplete one; a ``Path`` has lost a slash of it."""
    return _ADDRESS.match(str(source)) is not None


def require_complete(address: str) -> None:
    """``UserError`` where an address has no ``//``, or names no host, bucket or repository."""
    protocol, _, rest = address.partition(":")
    if not rest.startswith("//"):
        whole = f"{protocol}://{rest.lstrip('/')}"
        said = f"give {whole}" if rest.strip("/") else f"give {_example(protocol)}"
        raise UserError(f"{address} has fewer slashes than an address: {said}, as text (a Path drops one of them).")
    protocol = protocol.lower()
    if protocol in WEB and not _host(address):
        raise UserError(f"{address} names no host: give {_example(protocol)}.")
    if protocol in BUCKETS and not rest[2:].partition("/")[0].strip():
        raise UserError(f"{address} names no bucket: give {_example(protocol)}.")
    if protocol in HUB:
        parts = rest[2:].split("/")
        user, _, name = "/".join(parts[1:] if parts[0] in _REPOSITORIES else parts).partition("/")
        if not user.strip() or not name.strip("/ "):
            raise UserError(f"{address} names no repository: give {_example(protocol)}.")


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as https://[
        return None


def _example(protocol: str) -> str:
    if protocol in HUB:
        return f"{protocol}://datasets/USER/NAME[@REVISION]/PATH"
    return f"{protocol}://{'BUCKET' if protocol in BUCKETS else 'HOST'}/PATH"
