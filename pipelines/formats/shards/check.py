"""Whether a tar file is what its index says, and its classes are those recorded."""

from __future__ import annotations

from collections.abc import Iterator

from fastvicreg.pipelines.formats.dataset import DatasetSource, Finding
from fastvicreg.pipelines.formats.shards import tarfiles
from fastvicreg.pipelines.formats.shards.labels import class_name
from fastvicreg.pipelines.formats.shards.layout import ShardLayout


def check_shard(source: DatasetSource, layout: ShardLayout, shard: int, first: int) -> Iterator[Finding]:
    """The faults of the shard numbered ``shard``, whose first sample is ``first``: index against tar file, classes."""
    tar, index = layout.files[shard]
    if index is None:
        return  # walked when it was opened: nothing that could differ
    mapped = layout.mapped[shard]
    listed: list[tarfiles.Component] = []
    tables = tarfiles.read_index(index, index.read_bytes())
    places = layout.place_N[layout.shard_N == shard].tolist()
    sample_of = {place: first + at for at, place in enumerate(places)}
    own = layout.members.label == tarfiles.LABEL
    for table in tables:
        for place, components in table.samples():
            listed += components
            sample = sample_of.get(place, -1)  # one that was left out is none
            label = source.label(sample) if sample >= 0 and own else None
            for component in components:
                if fault := _member_fault(mapped, component, label, source.classes):
                    yield Finding(sample, source.name(sample) if sample >= 0 else str(tar), fault)
    others = list(tarfiles.unlisted(mapped, listed))
    for at in (at for at, name in others if not name):
        yield Finding(-1, str(tar), f"{tar}: the {tarfiles.BLOCK} bytes at {at} are no tar header")
    if names := [name for _, name in others if name]:
        yield Finding(-1, str(tar), f"{tar}: {len(names):,} members (such as {names[0]}) are not in {index.name}")


def _member_fault(tar: memoryview, component: tarfiles.Component, label: int | None, classes: tuple[str, ...]) -> str:
    """What is wrong with a member that an index lists, of a sample of class ``label``; or ""."""
    extension, start, size, name = component
    if not tarfiles.is_member(tarfiles.member_at(tar, start), name, size):
        return f"no regular member {name} of {size} bytes begins at byte {start}, where its index says"
    if extension not in tarfiles.LABEL or label is None:
        return ""
    try:
        found: int | str = tarfiles.read_label(tar[start : start + size], extension)
    except ValueError as error:
        name = class_name(tar[start : start + size])
        # Of numbers that are no classes there are no names.
        found = label if 0 <= label < len(classes) and name == classes[label] else str(error)
    return "" if found == label else f"its .{extension} is {found}, recorded is {label}"
