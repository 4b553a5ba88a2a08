"""What every study does: open data and folder in all processes, run what has no figures yet, stop where told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fastvicreg.config import TrainConfig
from fastvicreg.datasets import Datasets
from fastvicreg.errors import UserError
from fastvicreg.provenance import write_json
from fastvicreg.show.display import Display
from fastvicreg.study.folder import StudyFolder
from fastvicreg.study.runs import Stopped, labelled_data
from fastvicreg.train.device import resolve_device
from fastvicreg.train.distributed import Processes, device_of, gather, join, launched, leave, together
from fastvicreg.train.signals import exit_code


class Job(NamedTuple):
    """One run of a study: its folder's name, and what gives its figures, in every process."""

    name: str
    carry: Callable[[], dict[str, Any] | Stopped]


class Session:
    """An open study, in one of its processes; ``folder`` is the main process's."""

    def __init__(self, folder: StudyFolder | None, data: Datasets, display: Display, processes: Processes) -> None:
        """Made by ``opened``."""
        self.folder, self.data, self.display = folder, data, display
        self._processes = processes

    @property
    def settings(self) -> dict[str, Any]:
        """Those that a continued study must have as before; in the main process."""
        assert self.folder is not None
        return self.folder.kept["settings"]

    def plan(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the study settles once: as kept in its folder, else by ``make``, which every process calls.

        ``UserError`` for a folder with runs of another plan: those of a version that kept it otherwise.
        """
        kept: dict[str, Any] = gather(self.folder.kept if self.folder else {}, self._processes)[0]
        if "plan" in kept:
            return kept["plan"]
        together(self._require_no_runs, self._processes)
        made = gather(make(), self._processes)[0]  # times differ between processes: the main one's count
        if self.folder:
            self.folder.keep(plan=made)
        return made

    def _require_no_runs(self) -> None:
        if self.folder and self.folder.begun():
            raise UserError(
                f"--out {self.folder.path} holds runs of another version of fastvicreg, which lasted otherwise: go on "
                "with that one, or give another --out."
            )

    def carry_out(self, jobs: Sequence[Job], in_words: Callable[[Mapping[str, Any]], str]) -> int | None:
        """Run the jobs that have no figures; the exit code where a signal stopped one, else None."""
        for number, job in enumerate(jobs, 1):
            if gather(self.folder is not None and self.folder.result(job.name) is not None, self._processes)[0]:
                continue
            figures = job.carry()
            if isinstance(figures, Stopped):
                self.display.note(f"stopped in {job.name}; the same command goes on from there")
                return exit_code(figures.signal)
            together(partial(self.folder.finish, job.name, figures) if self.folder else lambda: None, self._processes)
            self.display.note(f"{number}/{len(jobs)} {job.name}: {in_words(figures)}")
        return None

    def figures(self) -> dict[str, list[dict[str, Any]]]:
        """What all finished runs of the folder gave, seed after seed, by their names without ``-seedN``.

        Also those that this command did not ask for: an earlier one did, with more rows or seeds. In the main process.
        """
        assert self.folder is not None
        parted = [name.rpartition("-seed") for name in self.folder.finished()]
        found: dict[str, list[dict[str, Any]]] = {}
        for row, seed in sorted((row, int(seed)) for row, _, seed in parted if row and seed.isdecimal()):
            found.setdefault(row, []).append(self.folder.result(f"{row}-seed{seed}") or {})
        return found

    def publish(self, stem: str, content: dict[str, Any], also: str | None, table: Table) -> None:
        """Write the figures to ``stem``.json in the folder, and to ``also``, and show them; in the main process."""
        assert self.folder is not None
        for path in (self.folder.path / f"{stem}.json", also):
            if path:
                write_json(path, content)
        # A pipe has no width: wide enough that no figure is cut.
        Console(width=None if self.display.console.is_terminal else 200).print(table)


@contextmanager
def opened(name: str, out: str, settings: Mapping[str, Any], config: TrainConfig) -> Iterator[Session]:
    """The study ``name`` in the folder ``out``, with the data and the device of ``config``.

    ``settings`` are those that a continued study must have as before. ``UserError`` as ``StudyFolder`` and
    ``labelled_data``.
    """
    processes = launched()
    join(processes, device_of(processes, resolve_device(config.run.device)))
    display = Display(Console(quiet=not processes.main))
    folder = None
    try:
        data = together(lambda: labelled_data(config), processes)
        folder = together(lambda: StudyFolder(Path(out), name, settings) if processes.main else None, processes)
        yield Session(folder, data, display, processes)
    finally:
        if folder is not None:
            folder.close()
        leave()
