"""What the ``meta.mat`` of ImageNet's development kit beside a file of labels says: the class behind each number."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from fastvicreg.errors import UserError

PLACES = ("meta.mat", "data/meta.mat", "../data/meta.mat")
"""Where it is looked for, from the folder of the file."""


class DevelopmentKit:
    """Reads ``meta.mat`` once it is asked for what it says."""

    def __init__(self, labels: Path) -> None:
        """``labels``: the file that counts from 1, beside which it is looked for."""
        self._labels = labels
        self.path = next((labels.parent / name for name in PLACES if (labels.parent / name).is_file()), None)

    @cached_property
    def names(self) -> dict[int, str]:
        """{ILSVRC2012_ID: WordNet id}; ``UserError`` where there is no meta.mat, or it cannot be read."""
        if self.path is None:
            raise UserError(
                f"--val-labels {self._labels} counts from 1, and class numbers count from 0: give the classes' names, "
                "or put the development kit's meta.mat beside it."
            )
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise UserError(f"{self.path} needs scipy, which does not import ({error}): pip install scipy.") from error
        try:
            synsets = loadmat(str(self.path), squeeze_me=True)["synsets"]
            return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
        except Exception as error:  # scipy's reader meets a damaged file with errors of any kind
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"cannot read {self.path} ({why}): take it from the development kit again.") from error

    def digest(self) -> str:
        """XXH3-64 of what it said; "" where it was not asked."""
        if "names" not in self.__dict__:
            return ""
        said = "".join(f"{number} {name}\n" for number, name in sorted(self.names.items()))
        return xxh3_64_hexdigest(said.encode())
