"""The folder of a run: who may write into it, and the settings that it keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fastvicreg import config_file
from fastvicreg.config import RESUMABLE, TrainConfig
from fastvicreg.errors import UserError
from fastvicreg.pipelines.formats.folder.source import FolderSource
from fastvicreg.pipelines.pairs.vocabulary import FILE as VOCABULARY
from fastvicreg.pipelines.pairs.vocabulary import Vocabulary

LOCK = ".lock"
PRESET = "preset.json"


def require_run(path: Path) -> None:
    """``UserError`` where ``path`` is not a run's folder, with what it is instead."""
    if (path / "config.json").is_file():
        return
    above = next((folder for folder in path.absolute().parents[:3] if (folder / "config.json").is_file()), None)
    if path.exists() and above is not None:
        step = next((part for part in path.absolute().parts if part.startswith("step-")), None)
        chosen = f"{above} --checkpoint {step}" if step else above
        raise UserError(f"{path} is a part of a run: give the run's folder, as in fastvicreg eval knn {chosen}")
    if path.is_file():
        raise UserError(f"{path} is a file, not a run: give the folder that fastvicreg train wrote (--out).")
    if path.is_dir():
        raise UserError(f"{path} is not the folder of a run, it has no config.json: give what was train's --out.")
    raise UserError(f"there is no run {path}: give what was train's --out, or a file of weights.")


def is_export(path: Path) -> bool:
    """Whether ``path`` is a folder that ``export --to hf`` wrote, and so weights to pass on, not a run."""
    return (path / "model.safetensors").is_file() and not (path / "state.json").exists()


class Lock:
    """Hold a run's folder against other processes until ``release``, or until this process ends, however it does.

    ``flock`` on a file in the folder: the operating system lets go of it, so that nothing stale is left behind. The
    file stays and holds who took it last. ``missing`` says where the file system keeps no locks; the run goes on.
    """

    def __init__(self, folder: Path) -> None:
        """``UserError`` naming the process that holds ``folder``; ``OSError`` where nothing can be written there."""
        self.missing = ""
        self._file: TextIO | None = (folder / LOCK).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self.release()
            raise UserError(f"{folder} is being written by {holder}: let it end, or give another --out.") from None
        except OSError as error:  # NFS without a lock service
            self.missing = (
                f"{folder} is not locked against a second run, its file system keeps no locks "
                f"({error.strerror or error}): start one run in it at a time."
            )
        try:
            self._file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=self._file, flush=True)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let another process write into the folder."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been told of; closing lets go all the same
                self._file.close()
            self._file = None


def claim(folder: Path, config: TrainConfig, *, resume: bool) -> Lock:
    """Make ``folder`` ready for the run and lock it.

    ``UserError`` where it holds another run, is being written by one, cannot be written, or has a name that is no text.
    """
    saved = folder / "config.json"
    lock = None
    if (shown := str(folder).encode("utf-8", "backslashreplace").decode()) != str(folder):
        raise UserError(f"--out {shown}: that name is no UTF-8 text, which TensorBoard's files need: choose another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        if saved.exists() and not resume:
            if lock.missing or _begun(folder):  # without locks another process may be at its start there
                raise UserError(f"{folder} already holds a run: continue it with --resume, or give another --out.")
            for name in (saved.name, PRESET):  # of a run that a mistake ended before its first step
                (folder / name).unlink(missing_ok=True)
        if saved.exists():
            _same_run(config_file.load(saved), config, folder)
        (folder / "checkpoints").mkdir(exist_ok=True)
    except (OSError, UserError) as error:
        if lock is not None:
            lock.release()
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write to --out {folder}: {error.strerror or error}.") from error
    return lock


def require_apart(folder: Path, *sources: object) -> None:
    """``UserError`` where ``folder`` would lie among a source's class folders, and be a class from then on."""
    own = folder.resolve()
    for source in sources:
        if not isinstance(source, FolderSource) or not source.classes:
            continue
        if (root := source.path.resolve()) in (own, *own.parents):
            raise UserError(
                f"--out {folder} lies in {root}, whose folders are the images' classes, and would be one of them: "
                "give a folder elsewhere."
            )


def _begun(folder: Path) -> bool:
    """Whether the run there has made a step that is left of it: a row of its log, or a checkpoint."""
    log, saved = folder / "metrics.jsonl", folder / "checkpoints"
    return (saved.is_dir() and any(saved.iterdir())) or (log.is_file() and log.stat().st_size > 0)


def save_config(folder: Path, config: TrainConfig, vocabulary: Vocabulary | None = None) -> None:
    """Write ``config.json`` whole or not at all, and the words of a run with captions.

    ``UserError`` where it cannot be written, and where the captions' words are not those of the run there.
    """
    if vocabulary is not None and (saved := vocabulary.differing(folder)):
        raise UserError(saved)
    _write(folder, "config.json", config_file.to_json(config))
    if vocabulary is not None:
        _write(folder, VOCABULARY, vocabulary.to_json())


def save_preset(folder: Path, name: str, divergences: Sequence[str]) -> None:
    """Write the preset that the run was made by, and where the run departs from its source; as ``save_config``."""
    _write(folder, PRESET, json.dumps({"preset": name, "divergences": list(divergences)}, indent=1))


def load_preset(folder: Path) -> tuple[str, list[str]]:
    """What ``save_preset`` wrote; "" and nothing where a run has none, as those without a preset."""
    try:
        content = json.loads((folder / PRESET).read_text())
        return str(content["preset"]), [str(text) for text in content["divergences"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def _write(folder: Path, name: str, text: str) -> None:
    draft = folder / f".{name}.tmp"
    try:
        draft.write_text(text + "\n")
        draft.rename(folder / name)
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror or error}.") from error


def _same_run(saved: TrainConfig, asked: TrainConfig, folder: Path) -> None:
    """``UserError`` for the first setting that a resumed run cannot change."""
    if saved.method.name != asked.method.name:
        _refuse(folder, "--method", saved.method.name, asked.method.name)
    for section in dataclasses.fields(TrainConfig):
        before, now = getattr(saved, section.name), getattr(asked, section.name)
        if section.name == "step" and before.name != now.name and _changes_values(before, now):
            _refuse(folder, "--step", before.name, now.name)
        for setting in dataclasses.fields(before):
            value = getattr(before, setting.name)
            other = getattr(now, setting.name, value if section.name == "step" else None)
            if other != value and not setting.metadata.get(RESUMABLE):
                _refuse(folder, "--" + setting.name.replace("_", "-"), value, other)


def _changes_values(*steps: Any) -> bool:
    """Whether one of these ways to run a step has a setting that changes what is computed."""
    return any(not field.metadata.get(RESUMABLE) for step in steps for field in dataclasses.fields(step))


def _refuse(folder: Path, flag: str, value: object, other: object) -> NoReturn:
    raise UserError(
        f"{folder} was started with {flag} {_flat(value)}, not {_flat(other)}: "
        f"resume with the same, or start a new run in another --out."
    )


def _flat(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
