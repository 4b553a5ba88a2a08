"""What a conversion may choose, and the formats it may write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastvicreg.errors import UserError
from fastvicreg.pipelines.formats.beton.layout import MAX_PAGE, MIN_PAGE, check_page_size
from fastvicreg.pipelines.to_rgb import parse_rule
from fastvicreg.registry import unknown

FORMATS = {
    "beton": "fastvicreg.pipelines.formats.beton.writer:BetonWriter",
    "shards": "fastvicreg.pipelines.formats.shards.writer:ShardWriter",
}
"""Writers by format, as ``convert.writer.Writer`` describes them."""
PIPELINES = {"beton": "ffcv", "shards": "dali"}
"""The pipeline that each format is made for, whose name stands for the format too."""


@dataclass(frozen=True)
class Settings:
    """Everything but the source that decides the written bytes."""

    format: str = "beton"
    """A key of ``FORMATS``, or the pipeline it is made for."""
    max_size: int = 0
    """Longest side in pixels (FFCV's ``max_resolution``); a larger image is shrunk. 0: no limit."""
    quality: int = 90
    """JPEG quality of what is re-encoded."""
    reencode: bool = False
    """Encode every image again, also one whose bytes could be kept."""
    raw: bool = False
    """Store pixels instead of JPEGs."""
    proportion: float | None = None
    """Share of the samples stored as JPEG, the rest as pixels."""
    decode: bool = False
    """Decode every image, also one whose bytes are kept."""
    to_rgb: str = "range"
    """How images of more than 8 bits become 8, as ``pipelines.to_rgb`` tells: range, LOW:HIGH or refuse."""
    image: str = ""
    """What holds a sample's image where it has several: a member of tar shards, a field of a ``.beton``."""
    label: str = ""
    """What holds the classes: a field of a ``.beton``, or a member of tar shards; "": by its name."""
    page_size: int = 8 << 20
    """Bytes a page; doubled where a sample does not fit."""
    shard_size: int = 256 << 20
    """Most bytes a tar file has; one sample at least is in each."""
    seed: int = 0
    """The order in shards; in a ``.beton``, which samples ``proportion`` takes."""

    def __post_init__(self) -> None:
        named = {pipeline: name for name, pipeline in PIPELINES.items()}
        object.__setattr__(self, "format", named.get(self.format, self.format))

    @property
    def pipeline(self) -> str:
        """The pipeline that the format is made for."""
        return PIPELINES[self.format]

    def recorded(self) -> dict[str, Any]:
        """The settings as a manifest and an unfinished conversion hold them, the format under its pipeline's name."""
        settings = {**asdict(self), "format": self.pipeline}
        if not self.image:  # which earlier versions do not have
            del settings["image"]
        return settings

    def check(self) -> None:
        """``UserError`` for a value that no conversion can have."""
        if self.max_size < 0:
            raise UserError(f"--max-size {self.max_size}: give the longest side in pixels, or 0 for no limit.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: give 1 to 100.")
        if self.proportion is not None and not 0 <= self.proportion <= 1:
            raise UserError(f"--proportion {self.proportion}: give the share stored as JPEG, 0 to 1.")
        if self.raw and self.proportion is not None:
            raise UserError(
                f"--raw stores no sample as JPEG, --proportion {self.proportion} a share: give one of them."
            )
        if self.raw and self.reencode:
            raise UserError("--raw stores no sample as JPEG, --reencode all of them: give one of them.")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed {self.seed}: give 0 to 2^64 - 1.")
        if self.shard_size <= 0:
            raise UserError(f"--shard-size {self.shard_size / (1 << 20):g}: give the MiB of a shard, 1 or more.")
        parse_rule(self.to_rgb)
        self._check_format()
        try:
            check_page_size(self.page_size)
        except ValueError:
            raise UserError(
                f"--page-size {self.page_size / (1 << 20):g}: give a power of two from {MIN_PAGE >> 20} to "
                f"{MAX_PAGE >> 20} MiB."
            ) from None

    def _check_format(self) -> None:
        """``UserError`` for an unknown format, or an option that it does not have."""
        if self.format not in FORMATS:
            raise UserError(unknown("format", self.format, (*FORMATS, *PIPELINES.values())))
        if self.format == "shards":
            pixels = {"--raw": self.raw, f"--proportion {self.proportion}": self.proportion is not None}
            for option in (option for option, given in pixels.items() if given):
                raise UserError(f"{option}: shards hold JPEGs, never pixels; leave it out, or give --format beton.")
            if self.page_size != Settings.page_size:
                raise UserError(
                    f"--page-size {self.page_size / (1 << 20):g}: shards have no pages; give --shard-size, or "
                    "--format beton."
                )
        elif self.format == "beton" and self.shard_size != Settings.shard_size:
            raise UserError(
                f"--shard-size {self.shard_size / (1 << 20):g}: a .beton is one file; leave it out, or give "
                "--format shards."
            )
