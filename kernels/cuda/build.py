"""The archive of machine code that a wheel carries: ``python -m fastvicreg.kernels.cuda.build ARCHIVE``."""

from __future__ import annotations

import itertools
import os
import sys
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastvicreg.errors import UserError
from fastvicreg.kernels.cuda.compiler import compile_cubin, compiler_version
from fastvicreg.kernels.cuda.cubin import ARCHITECTURES, Cubin, Variant, file_name, identity
from fastvicreg.kernels.dispatch import prebuilt

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that the format knows


def variants() -> list[Variant]:
    """Every source with every set of macros that the kernels can ask for."""
    return [variant for module in prebuilt() for variant in module.variants()]


def write(path: Path, of: Iterable[Variant]) -> int:
    """Compile ``of`` for ``ARCHITECTURES`` into one archive, and return the number of its files.

    The same code gives the same bytes. Raises as ``compile_cubin``, and then leaves no file.
    """

    def compiled(job: tuple[Variant, str]) -> tuple[str, Cubin]:
        (source, defines), arch = job
        return file_name(source, arch, identity(source, arch, defines)), compile_cubin(source, arch, defines=defines)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        cubins = dict(threads.map(compiled, itertools.product(of, ARCHITECTURES)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = str(compiler_version()[0]).encode()  # drivers for an older CUDA do not load its code
        for name in sorted(cubins):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, wherever it is made
            archive.writestr(entry, cubins[name].packed(), zipfile.ZIP_DEFLATED, 9)
    return len(cubins)


def main(arguments: Sequence[str]) -> int:
    """Write the archive, exit 2 with one line where there is no compiler."""
    path = Path(arguments[0])
    try:
        count = write(path, variants())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path.name}: {count} files of machine code for {', '.join(ARCHITECTURES)}, {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
