"""Whether pairs are whole: every member of every pair read and decoded, partners that are missing, faults by kind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastvicreg.pipelines.ahead import reading_in_order
from fastvicreg.pipelines.decode import DecodeError
from fastvicreg.pipelines.formats.dataset import Finding
from fastvicreg.pipelines.ordered import in_order
from fastvicreg.pipelines.pairs.config import PairConfig
from fastvicreg.pipelines.pairs.source import MemberSource, open_pairs
from fastvicreg.pipelines.pairs.text import Text
from fastvicreg.pipelines.passed import left_out, notes_of
from fastvicreg.pipelines.verify import Report, image_size
from fastvicreg.stalls import LIMIT


def verify_pairs(
    path: str | Path,
    config: PairConfig,
    *,
    label: str = "",
    decode: bool = False,
    workers: int = 0,
    stall: float = LIMIT,
    on_progress: Callable[[int, int, int, int], None] = lambda done, total, size, faults: None,
) -> Report:
    """Check the pairs at ``path``, of which ``config`` says what they are; see ``verify.verify_dataset``.

    Captions and sounds are decoded, images by their markers or, with ``decode``, in full. Samples without a partner
    are faults, one a kind, as a run would refuse them; where ``config`` skips them they are counted alone.
    ``UserError`` where there is no pair at all.
    """
    started = time.monotonic()
    source = open_pairs(path, replace(config, unpaired="skip"), label=label)
    words = [side.modality for side in config.parsed()]
    findings: list[Finding] = []
    if config.unpaired == "refuse":
        first = source.passed.first
        for kind, count in source.passed.counts.items():
            findings.append(Finding(-1, first[kind], f"{path}: {count:,} x {kind} ({first[kind]})"))
    total, size = len(source), 0
    broken: Counter[str] = Counter()

    def check(index: int) -> list[tuple[int, str]]:
        return [_checked(member, index, decode=decode) for member in source.members]

    ahead = [reading_in_order(member) for member in source.members]
    checked = in_order(check, range(total), workers=workers, name="fastvicreg-verify", stall=stall)
    for index, members in enumerate(checked):
        for go_on in ahead:
            go_on(index)
        for word, member, (read, fault) in zip(words, source.members, members, strict=True):
            size += read
            if fault:
                broken[word] += 1
                findings.append(Finding(index, member.name(index), f"{word}: {fault}"))
        on_progress(index + 1, total, size, len(findings))
    kinds = ", ".join(f"{count:,} x {word}" for word, count in sorted(broken.items()))
    notes = (
        f"{total:,} pairs of {' and '.join(words)}" + (f"; not readable: {kinds}" if kinds else ""),
        *notes_of(source),
        *(left_out(source) if config.unpaired == "skip" else ()),
    )
    seconds = time.monotonic() - started
    return Report(Path(path), total, len(source.classes), size, False, decode, tuple(findings), seconds, notes)


def _checked(member: MemberSource, index: int, *, decode: bool) -> tuple[int, str]:
    """(bytes read, the fault or "")."""
    try:
        encoded = member.encoded(index)
    except OSError as error:
        return 0, error.strerror or str(error)
    try:
        if member.modality is None:
            image_size(encoded, decode=decode)
        elif isinstance(member.modality, Text):
            member.modality.captions(encoded)
        else:
            member.modality.views(encoded)
    except DecodeError as error:
        return len(encoded), str(error)
    return len(encoded), ""
