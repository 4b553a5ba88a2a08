"""What ``torch.save`` wrote, read without importing or calling anything that it names outside of torch.

``torch.load(weights_only=True)`` interprets the pickle with a list of its own of what may be called. Official full
checkpoints name more than that: LARS keeps its filter functions in ``param_groups``. Such names become placeholders,
classes made here that hold nothing; what they stand for is never imported. A name that the pickle would *call* is
refused, but for containers of settings, of which a placeholder's instance is made.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from fastvicreg.errors import UserError

KNOWN = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.set",
    "builtins.bytearray",
    "builtins.complex",
}
"""Names outside of torch that torch's own reader takes as they are."""

SETTINGS = (
    "argparse.Namespace",
    "pathlib.",
    "omegaconf.",
    "ml_collections.",
    "yacs.",
    "easydict.",
    "addict.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "pytorch_lightning.",
    "mmengine.config.",
    "mmcv.utils.config.",
    "collections.defaultdict",
    "datetime.",
    "functools.partial",
    "builtins.dict",
    "builtins.list",
    "builtins.object",
    "copyreg._reconstructor",
    "numpy.",
)
"""Beginnings of the names of containers of settings and of single numbers: instances become empty placeholders."""

DICTIONARIES = ("Dict", "dict", "CfgNode")
"""Endings of those that are filled as a dictionary is."""

BLOCKED = ("os", "posix", "nt", "sys")
"""Modules of which torch's reader takes no name at all, a placeholder's neither."""

MAGIC = 0x1950A86A20F9469CFC6C
"""First value of the files of torch before 1.6."""


class Loaded(NamedTuple):
    """A file's content, and the names in it that placeholders stand for."""

    content: Any
    foreign: tuple[str, ...]


class _CalledError(Exception):
    """The pickle would call this name."""


class _Inert:
    """Stands for a foreign object; takes whatever state it is given, and keeps none."""

    def __setstate__(self, state: Any) -> None:
        """Drop ``state``."""


def load(path: Path) -> Loaded:
    """Read a file of ``torch.save``, of any version since 0.4, onto the CPU.

    ``UserError`` where it is none, is damaged, holds a program (TorchScript) or a whole pickled network, or would
    call something that is neither torch's nor a container of settings, which it names.
    """
    names = _names(path)
    foreign = sorted(name for name in names if name not in KNOWN and name.partition(".")[0] != "torch")
    if blocked := [name for name in foreign if name.partition(".")[0] in BLOCKED]:
        raise _refused(path, ", ".join(blocked))
    # Of torch's names too: those that its reader knows are taken before any placeholder.
    placeholders: list[Any] = [(_placeholder(name), name) for name in names - KNOWN]
    try:
        with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storages as torch once had them
            mapped = zipfile.is_zipfile(path)  # a full checkpoint's optimizer is then never read from the disk
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _CalledError as error:
        raise _refused(path, str(error)) from None
    except pickle.UnpicklingError as error:
        raise _refused(path, _wanted(error, names)) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged, or no checkpoint of torch ({_first_line(error)}).") from None
    return Loaded(content, tuple(foreign))


def _placeholder(name: str) -> type[Any]:
    """A class of its own for ``name``. To be named is harmless; to be called only where it holds settings."""

    def __new__(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if not name.startswith(SETTINGS):
            raise _CalledError(name)
        # Torch's reader fills these and no other dictionaries; __init__ is not called on what is no instance of cls.
        return OrderedDict() if name.endswith(DICTIONARIES) else object.__new__(cls)

    return type("Placeholder", (_Inert,), {"__new__": __new__})


def _names(path: Path) -> set[str]:
    """Every name that the file's pickle would import, as "module.name"; nothing is run to find them."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if any(member.endswith("/constants.pkl") for member in members):
                    raise UserError(
                        f"{path} is a TorchScript program, no weights: save its state_dict() by torch.save."
                    )
                pickles = [member for member in members if member.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise UserError(f"{path} is an archive, but none of torch.save's: it holds no data.pkl.")
                with archive.open(pickles[0]) as stream:
                    return set(_named(stream))  # pyright: ignore[reportArgumentType]
        with path.open("rb") as stream:
            return _names_of_old(path, stream)
    except (OSError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged, or no checkpoint of torch ({_first_line(error)}).") from None


def _names_of_old(path: Path, stream: BinaryIO) -> set[str]:
    """Of the format before torch 1.6: five pickles in a row, the fourth of which is the content, then the values."""
    first = list(pickletools.genops(stream))
    if not any(value == MAGIC for _, value, _ in first):
        stream.seek(0)
        named = ", ".join(sorted(set(_named(stream)))) or "nothing but plain values"
        raise UserError(
            f"{path} is a plain pickle, which runs code when it is read, and is not read here; it names {named}. "
            f"Save the weights by torch.save(model.state_dict(), FILE) or as safetensors."
        )
    return {name for _ in range(4) for name in _named(stream)}


def _named(stream: BinaryIO) -> Iterator[str]:
    """The names in the pickle that begins at the stream's position."""
    texts: list[str] = []
    for code, value, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield _today(*str(value).split(" ", 1))
        elif code.name == "STACK_GLOBAL":  # protocol 4: of the last two strings, unless they come from the memo
            yield ".".join(texts[-2:])
        elif isinstance(value, str):
            texts.append(value)


def _today(module: str, name: str) -> str:
    """A name in Python 2's terms, which pickle's second protocol keeps, as torch's reader translates it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _wanted(error: pickle.UnpicklingError, names: set[str]) -> str:
    """What torch's reader refused: by its name where the message holds one, else in its words."""
    text = str(error)
    found = [name for name in sorted(names, key=len, reverse=True) if name in text]
    if found:
        return found[0]
    return text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]


def _refused(path: Path, wanted: str) -> UserError:
    network = wanted.startswith("torch.nn.modules")
    what = "is a whole pickled network, which" if network else "would run code of its own when it is read: it"
    return UserError(
        f"{path} {what} asks for {wanted}, and nothing of it was run. Where you trust it, load it with the program "
        f"that wrote it, and save torch.save(model.state_dict(), FILE) or safetensors; give that file."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
