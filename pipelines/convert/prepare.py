"""One sample of a source to the bytes that are stored: kept as they are, re-encoded, as pixels, or skipped."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image
from xxhash import xxh3_64_intdigest

from fastvicreg.contracts import Fault, Source
from fastvicreg.pipelines import jpeg
from fastvicreg.pipelines.convert.settings import Settings
from fastvicreg.pipelines.decode import JPEG, MAX_PIXELS, DecodeError, decode_rgb, read_image_header
from fastvicreg.pipelines.formats.beton.layout import MAX_PAGE
from fastvicreg.pipelines.manifest import digest
from fastvicreg.pipelines.to_rgb import RANGE, ToRGB, rule_of

MAX_JPEG_SIDE = 65500
"""Pixels: what libjpeg encodes and decodes; a .beton's metadata would hold 65,535."""


class Stored(IntEnum):
    """How a sample came to be stored."""

    KEPT = 0  # the source's own bytes
    ENCODED = 1  # decoded, perhaps shrunk, and encoded as JPEG again
    RAW = 2  # height x width x 3 pixels
    SKIPPED = 3


class Sample(NamedTuple):
    """What a writer stores of one sample; of a skipped one only ``reason`` and ``label`` mean something."""

    stored: Stored
    payload: bytes | memoryview
    width: int
    height: int
    label: int  # -1: none
    hash: int  # XXH3-64 of the payload
    reason: str  # why it was skipped
    deep: str = ""  # what the source's image is where it has more than 8 bits a channel


def prepare(source: Source, index: int, settings: Settings) -> Sample:
    """Read sample ``index`` and bring it into its stored form; one that cannot be read or decoded is SKIPPED."""
    label, rule, deep = source.label(index), rule_of(source), ""
    try:
        encoded = source.encoded(index)
        if settings.raw or not is_jpeg_share(index, settings):
            pixels_HWC = shrink(decode_rgb(encoded, rule), settings.max_size)
            height, width = pixels_HWC.shape[:2]
            stored, payload = Stored.RAW, pixels_HWC.data.cast("B")
        else:
            stored, payload, width, height = as_jpeg(encoded, settings, rule)
        # The narrowest format's limits, so that a dataset has the same samples in all of them.
        if stored != Stored.KEPT and bytes(encoded[:2]) != JPEG:
            deep = read_image_header(encoded).deep
        if max(width, height) > MAX_JPEG_SIDE or len(payload) > MAX_PAGE:
            raise DecodeError(Fault.TOO_LARGE, _too_large(width, height, len(payload)))
    except OSError as error:
        return Sample(Stored.SKIPPED, b"", 0, 0, label, 0, error.strerror or str(error))
    except DecodeError as error:
        return Sample(Stored.SKIPPED, b"", 0, 0, label, 0, str(error))
    return Sample(stored, payload, width, height, label, digest(payload), "", deep)


def is_jpeg_share(index: int, settings: Settings) -> bool:
    """Whether the sample is of the share that ``proportion`` stores as JPEG: a function of seed and index alone."""
    if settings.proportion is None:
        return True
    return xxh3_64_intdigest(index.to_bytes(8, "little"), settings.seed) < settings.proportion * 2.0**64


def as_jpeg(
    encoded: bytes | memoryview, settings: Settings, rule: ToRGB = RANGE
) -> tuple[Stored, bytes | memoryview, int, int]:
    """(how, JPEG bytes, width, height): the bytes themselves where they are fit, else re-encoded at ``quality``, 4:2:0.

    ``DecodeError`` where they are no image that can be decoded.
    """
    size = None if settings.reencode else fit_size(encoded, settings.max_size)
    if size is not None and (not settings.decode or _decodes_cleanly(encoded)):
        return Stored.KEPT, encoded, *size
    pixels_HWC = shrink(decode_rgb(encoded, rule), settings.max_size)
    height, width = pixels_HWC.shape[:2]
    if max(width, height) > MAX_JPEG_SIDE:
        raise DecodeError(Fault.TOO_LARGE, _too_large(width, height))
    payload = simplejpeg.encode_jpeg(pixels_HWC, settings.quality, "RGB", "420")
    return Stored.ENCODED, payload, width, height


def fit_size(encoded: bytes | memoryview, max_size: int) -> tuple[int, int] | None:
    """(width, height) of a whole 8-bit baseline YCbCr or grey JPEG whose longest side is at most ``max_size``, or None.

    Such bytes decode to the same pixels in libjpeg-turbo, FFCV and DALI, hardware decoders included.
    """
    try:
        header = jpeg.read_header(encoded)
        if (
            header.process != "baseline"
            or header.precision != 8
            or header.colour not in ("YCbCr", "grey")
            or not header.complete
            or not 0 < header.width * header.height <= MAX_PIXELS
            or (max_size and max(header.width, header.height) > max_size)
        ):
            return None
        # The binding that FFCV decodes with refuses sampling factors which the markers allow.
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    size = header.width, header.height
    return size if (width, height) == size else None


def shrink(image_HWC: np.ndarray, max_size: int) -> np.ndarray:
    """The image with its longest side at most ``max_size`` pixels (0: as it is), by Pillow's antialiased bicubic.

    FFCV takes cv2's INTER_AREA here. The bicubic is the filter of the crops cut later, which it leaves nearer to those
    of the unshrunk image (mean difference 2.3 of 255 against a box filter's 3.1, 30 ImageNet photographs to 500 px).
    """
    height, width = image_HWC.shape[:2]
    longest = max(height, width)
    if not max_size or longest <= max_size:
        return image_HWC
    size = max(1, width * max_size // longest), max(1, height * max_size // longest)
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BICUBIC))


def _too_large(width: int, height: int, size: int = 0) -> str:
    stored = f" in {size} bytes" if size else ""
    return f"{width} x {height} pixels{stored} do not fit; --max-size shrinks it"


def _decodes_cleanly(encoded: bytes | memoryview) -> bool:
    try:
        simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
    except ValueError:
        return False
    return True
