"""The command line: finds the command, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fastvicreg import __version__
from fastvicreg.errors import UserError
from fastvicreg.registry import unknown
from fastvicreg.stalls import leave

COMMANDS = {
    "convert": "write images in a form that is read fast: FFCV's .beton, or tar shards for DALI",
    "verify": "check a dataset: structure, checksums, and with --decode every image",
    "advise": "which format and size of a dataset feeds a GPU on this machine, measured in a minute",
    "train": "train an encoder by VICReg or another method, on a folder of images or on the embedded ones",
    "eval": "what a trained encoder is worth: knn, linear, semi, finetune, retrieval, svm",
    "inspect": "what a run's features are like without labels: rank, spectrum, dead dimensions, neighbours; CKA of two",
    "export": "an encoder as a file that others load",
    "demo": "the whole story on embedded images, in minutes on two CPU cores, with a report",
    "study": "many runs for one question: table4 (VICReg's terms in other methods), cifar10 (methods at equal cost)",
    "bench": "measure plan, convert, loader, loss, lars, augment, knn, step and more; swap tells what holds a run back",
    "profile": "a trace of a run, or of one of its parts alone, where TensorBoard finds it",
    "trace": "what a profiler trace says held a run back, and what changed between two",
    "doctor": "what works here, what does not, and how to get it",
}


def usage() -> str:
    """The text of ``fastvicreg --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"fastvicreg {__version__}: VICReg training whose data loading, kernels and loop are swapped independently",
            "",
            "usage: fastvicreg COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "fastvicreg COMMAND --help shows a command's options.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 where a check failed, 2 for a user's mistake, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that no text has
    try:
        try:
            code = _answer(list(sys.argv[1:] if argv is None else argv))
        except SystemExit:  # a command's --help
            _flush()
            raise
        _flush()
        return code
    except UserError as error:
        if not _told_by_another(str(error)):
            print("fastvicreg:", error, file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("fastvicreg: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away
        _drop_output()
        return 0


def entry() -> None:
    """``main`` as a program: the process ends with its exit code, and without threads that are stuck."""
    leave(main())


def _told_by_another(line: str) -> bool:
    """Whether another of several processes tells of the same mistake: each comes to it by itself."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from fastvicreg.train.distributed import told_by_another  # torch: not for a mistake of one process

    return told_by_another(line)


def _flush() -> None:
    """Write what is buffered while a failure still is one line; a reader or terminal that went away is none."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise UserError(f"cannot write the output: {error.strerror}.") from error


def _drop_output() -> None:
    # What is still buffered would be written, and fail again, when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"fastvicreg {__version__}")
        return 0
    command, *rest = arguments
    if command.startswith("-"):
        raise UserError(f"unknown option {command} before a command: fastvicreg COMMAND [OPTIONS]; see --help.")
    if command not in COMMANDS:
        raise UserError(unknown("command", command, COMMANDS))
    module = import_module(f"fastvicreg.commands.{command}")
    return int(module.main(rest))
