"""Machine code of one CUDA source: what is known of it, how it lies in a file, and what identifies it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fastvicreg.errors import UserError

KERNELS = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
"""What every kernel is tested to compile for: A100, H100 and H200, B200, RTX 50; others from sm_80 on compile alike."""

OLDEST = 8  # bfloat16 in hardware, asynchronous copies
OPTIONS = {"std": "c++17", "ptxas_options": ["-v"], "device_as_default_execution_space": True}
"""The compiler's, for every source. Before 13.5 NVRTC takes a generic lambda for a host's function without the last."""

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
ELF = b"\x7fELF"
Defines = Mapping[str, str | int]


class Variant(NamedTuple):
    """A source, as a path below ``kernels/``, and the preprocessor macros that it is compiled with."""

    source: str
    defines: Defines


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor: registers and local memory a thread, static shared memory a block."""

    registers: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Cubin:
    """Machine code of one source file for one architecture; ``usage`` by kernel name, as the assembler reported it.

    ``origin`` tells where it comes from: "compiled" here, now or before, or "prebuilt".
    """

    source: str
    arch: str
    code: bytes = field(repr=False)
    usage: Mapping[str, Usage]
    origin: str = field(default="compiled", compare=False)

    def packed(self) -> bytes:
        """One line of JSON, the usage by kernel, then the machine code: one file, so that both appear together."""
        usage = {name: dataclasses.asdict(figures) for name, figures in sorted(self.usage.items())}
        return json.dumps(usage).encode() + b"\n" + self.code


def unpacked(content: bytes, source: str, arch: str, origin: str = "compiled") -> Cubin | None:
    """What ``Cubin.packed`` made; None where it holds no code, such as a file cut short by a full disk."""
    usage, _, code = content.partition(b"\n")
    if not code.startswith(ELF):
        return None
    return Cubin(source, arch, code, {name: Usage(**figures) for name, figures in json.loads(usage).items()}, origin)


def check_architecture(arch: str) -> None:
    """``UserError`` unless ``arch`` is written as "sm_90" and no older than the kernels need."""
    number = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if number is None or int(number[1]) < 10 * OLDEST:
        raise UserError(f"no CUDA kernels for architecture {arch!r}: they need sm_80 (A100) or later.")


def identity(source: str, arch: str, defines: Defines) -> str:
    """A digest of the source, the files that it includes in quotes, options, architecture and macros, in hexadecimal.

    Not of the compiler: code that another version made of the same does the same.
    """
    digest = hashlib.sha256(repr((sorted(OPTIONS.items()), arch, macros(defines))).encode())
    for text in _texts(KERNELS / source):
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def file_name(source: str, arch: str, digest: str) -> str:
    """What that source's machine code is called on disk."""
    return f"{Path(source).stem}-{arch}-{digest}.cubin"


def macros(defines: Defines) -> list[tuple[str, str]]:
    """``defines`` in the order and form that the compiler is given."""
    return [(name, str(value)) for name, value in sorted(defines.items())]


def _texts(path: Path) -> list[str]:
    """The source and, in order, every file of this package that it includes."""
    texts: list[str] = []
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        if file in seen:
            continue
        seen.add(file)
        texts.append(file.read_text())
        for name in INCLUDE.findall(texts[-1]):
            found = [folder / name for folder in (file.parent, KERNELS) if (folder / name).is_file()]
            waiting.extend(folder.resolve() for folder in found[:1])
    return texts
