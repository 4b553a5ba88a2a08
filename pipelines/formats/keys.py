"""What a person names of a dataset whose samples have several parts: the one that is the image, and the label's."""

from __future__ import annotations

from typing import NamedTuple


class Keys(NamedTuple):
    """ "" leaves the choice to the format; else a member of tar shards, a field of a ``.beton``, a table's column."""

    image: str = ""
    label: str = ""

    def options(self) -> str:
        """As they were given on the command line; "" where none was."""
        given = (("--image", self.image), ("--label", self.label))
        return " ".join(f"{option} {value}" for option, value in given if value)


ANY = Keys()
