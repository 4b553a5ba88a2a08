"""Which engine reads which formats, and the command that makes one it reads."""

from __future__ import annotations

import shlex

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.formats.dataset import DatasetSource, StoredSource

TARGETS = {"beton": ".beton", "shards": "-shards"}
"""What the name of a converted dataset ends in, where we propose one."""
KINDS = {"beton": "a .beton file", "shards": "shards"}


def require_format(pipeline: str, source: Source, *formats: str) -> StoredSource:
    """``source`` where it is of one of ``formats``, the one that is made for ``pipeline`` first.

    ``UserError`` with the command that converts it where it is not.
    """
    if isinstance(source, StoredSource) and source.format in formats:
        return source
    reads = f"--pipeline {pipeline} reads {' or '.join(KINDS[one] for one in formats)}"
    if not isinstance(source, DatasetSource):
        kind = getattr(source, "kind", f"a {type(source).__name__}")
        raise UserError(f"{reads}, not {kind}: give --pipeline native.")
    path, target = (shlex.quote(str(p)) for p in (source.path, f"{source.path.absolute()}{TARGETS[formats[0]]}"))
    raise UserError(
        f"{reads}, and {source.path} is {source.kind}: give --pipeline native, or convert it once with fastvicreg "
        f"convert {path} {target} --format {formats[0]}"
    )
