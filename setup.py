"""A wheel's build: beside what pyproject.toml says, the kernels' machine code where NVIDIA's compiler is at hand."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ARCHIVE = "fastvicreg/kernels/cuda/cubins.zip"
COMMIT = "fastvicreg/commit.txt"
NEEDED = ("torch", "numpy", "platformdirs")  # to import the kernels; an isolated build has none of them
NO_COMPILER = 2  # as every command's for what the user can mend


class BuildWithMachineCode(build_py):
    """Compiles the sources that were just laid out for the wheel, in a process that imports them from there."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # An earlier build's, whose modules may have moved since: they would be packed with the rest.
        shutil.rmtree(Path(self.build_lib, "fastvicreg"), ignore_errors=True)
        super().run()
        if commit := self._commit():
            Path(self.build_lib, COMMIT).write_text(f"{commit}\n")
        print(self._made())

    def _commit(self) -> str:
        """The checkout's, as figures name it; "" where it is built from something else."""
        command = [sys.executable, "-B", "-c", "from fastvicreg.provenance import commit; print(commit())"]
        found = subprocess.run(command, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 and "installed" not in found.stdout else ""

    def _made(self) -> str:
        """Make the archive where that is possible, and say what became of it."""
        none = "fastvicreg: no machine code in this build, kernels are compiled at first use"
        if absent := next((name for name in NEEDED if importlib.util.find_spec(name) is None), ""):
            return f"{none}: {absent} is not installed where it is built; `make wheel` builds where all of it is"
        # -B: what it imports lies in the wheel's own folder.
        command = [sys.executable, "-B", "-m", "fastvicreg.kernels.cuda.build", str(self._archive())]
        made = subprocess.run(command, cwd=self.build_lib, capture_output=True, text=True)
        if made.returncode not in (0, NO_COMPILER):
            raise RuntimeError(f"the kernels' machine code was not made:\n{made.stderr}")
        return f"{none}: {made.stderr.strip()}" if made.returncode else made.stdout.strip()

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """With the archive and the commit, which are in no list of sources."""
        made = [path for path in (self._archive(), Path(self.build_lib, COMMIT).resolve()) if path.is_file()]
        return [*super().get_outputs(include_bytecode), *map(str, made)]

    def _archive(self) -> Path:
        return Path(self.build_lib, ARCHIVE).resolve()


setup(cmdclass={"build_py": BuildWithMachineCode})
