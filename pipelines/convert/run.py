"""The conversion itself: samples prepared by threads, written in the format's order, journalled, then published."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from xxhash import xxh3_64_hexdigest

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError
from fastvicreg.pipelines.convert.changes import KIT, names_of
from fastvicreg.pipelines.convert.conversion import Conversion, MostSkipped, Progress, Summary, versions
from fastvicreg.pipelines.convert.journal import Journal
from fastvicreg.pipelines.convert.settings import FORMATS, Settings
from fastvicreg.pipelines.convert.workspace import Workspace, refuse_target
from fastvicreg.pipelines.convert.writer import Writer
from fastvicreg.pipelines.draws import permutation
from fastvicreg.pipelines.manifest import manifest_path, read_manifest, to_bytes
from fastvicreg.pipelines.sources import one_dataset, open_source
from fastvicreg.pipelines.sources.labelled import LabelledSource, label_by_file, numbered_as
from fastvicreg.registry import resolve
from fastvicreg.stalls import LIMIT


@runtime_checkable
class Spooled(Protocol):
    """A source whose samples are read fast in their order alone, unless they have been written out."""

    random: bool

    def spool(self, path: Path) -> Iterator[int]: ...


BEFORE_TRAINING = -1
"""The epoch whose permutation shuffles a dataset as it is written: the same seed's epochs shuffle it otherwise."""


def convert_dataset(
    source_path: str | Path,
    target: str | Path,
    settings: Settings | None = None,
    *,
    workers: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    commit_seconds: float = 5.0,
    max_skipped: str = "",
    numbered_like: Path | None = None,
    label_file: Path | None = None,
    stall: float = LIMIT,
) -> Summary:
    """Write the dataset ``source_path`` to ``target``, with its manifest beside the file or in the folder.

    The bytes depend on source and settings alone. Interrupted, an identical call continues, having lost at most
    ``commit_seconds`` of work; ``target`` appears only when it is complete and on the disk. Memory: a few dozen
    encoded samples, of raw ones 4 a thread. Parquet's images are written out first where the format shuffles them.
    ``max_skipped`` ends it once more samples are skipped than that number, or share such as "1%". Continued, it tries
    skipped samples again.
    Classes whose names the converted dataset ``numbered_like`` has too get its numbers; ``label_file`` labels images
    whose names do not (``label_by_file``).
    ``UserError`` for a mistake or a full disk; ``StalledError`` where samples give nothing for ``stall`` seconds.
    """
    settings, most = settings or Settings(), MostSkipped(max_skipped)
    settings.check()
    source_path, target = Path(source_path), Path(target)
    build = cast("type[Writer]", resolve("format", settings.format, FORMATS))
    refuse_target(source_path, target, build.ending)
    source_path = one_dataset(source_path, "convert")
    source, spool = opened(source_path, settings, numbered_like, label_file)
    order_N = shuffled(settings.seed, len(source)) if build.shuffled else np.arange(len(source))
    names = names_of(source)
    command = command_of(names, len(source), source_path, settings, labelled_by(source, label_file))
    try:
        with closing(Workspace(target, command, names)) as work:
            if spool is not None and build.shuffled:
                for size in spool(work.folder / "spool"):
                    on_progress(Progress(0, len(source), size, 0))
            with closing(build(work.data, len(source), settings)) as writer, closing(Journal(work.journal)) as journal:
                conversion = Conversion(source, order_N, settings, writer, journal, commit_seconds, most)
                conversion.run(workers, on_progress, stall)
                index_hash = writer.finish(conversion.stored())
            work.publish(to_bytes(conversion.manifest(index_hash)))
    except OSError as error:
        raise refused(error, target) from error
    return conversion.summary(target)


def opened(
    path: Path, settings: Settings, numbered_like: Path | None, label_file: Path | None
) -> tuple[Source, Callable[[Path], Iterator[int]] | None]:
    """(the source, how its images are written out where they are read fast in their order alone)."""
    source = open_source(path, to_rgb=settings.to_rgb, image=settings.image, label=settings.label, sequential=True)
    spool = source.spool if isinstance(source, Spooled) and not source.random else None
    classes = read_manifest(manifest_path(numbered_like)).classes if numbered_like else ()
    if label_file is not None:
        return label_by_file(source, label_file, classes), spool
    return numbered_as(source, classes) if numbered_like else source, spool


def labelled_by(source: Source, file: Path | None) -> dict[str, str]:
    """What a command says of the labels that ``file``, and a development kit beside it, give ``source``."""
    said = {} if file is None else {"val_labels": xxh3_64_hexdigest(file.read_bytes())}
    return said | ({KIT: source.kit} if isinstance(source, LabelledSource) and source.kit else {})


def command_of(names: bytes, samples: int, path: Path, settings: Settings, labelled: dict[str, str]) -> dict[str, Any]:
    """All that decides the written bytes, the source's content excepted; ``labelled`` as ``labelled_by`` gives it."""
    return labelled | {
        "source": str(path.resolve()),
        "samples": samples,
        "names": xxh3_64_hexdigest(names),
        **settings.recorded(),
        **versions(),
    }


def shuffled(seed: int, samples: int) -> np.ndarray:
    """index_N: an order of the source that depends on the seed alone."""
    same_bits = int(np.uint64(seed).astype(np.int64))
    return permutation(same_bits, BEFORE_TRAINING, samples)


def refused(error: OSError, target: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"no room for {target} ({error.strerror}): make some, then run the same command again, which continues; "
            f"or delete {target.with_name(target.name + '.partial')}."
        )
    return UserError(f"cannot write {target}: {error.strerror or error}.")
