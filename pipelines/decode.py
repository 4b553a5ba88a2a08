"""Encoded bytes to RGB pixels: as ``PIL.Image.open(...).convert("RGB")`` for 8 bits, by ``to_rgb``'s rule for more.

libjpeg-turbo (through simplejpeg, which releases the GIL) takes the JPEGs whose pixels equal Pillow's: YCbCr, grey and
RGB ones that decode without a warning. All else is Pillow's to accept or refuse. EXIF orientation is not applied.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from fastvicreg.contracts import Fault, Source
from fastvicreg.pipelines.to_rgb import RANGE, ToRGB, convert, deep_kind, rule_of

warnings.filterwarnings("ignore", module=r"PIL\.")  # a sample is delivered, or refused with a reason; nothing between
JPEG = b"\xff\xd8"
"""What every JPEG begins with."""
EMPTY = "an empty file"
PIXELS = re.compile(rb"P6\n([1-9]\d{0,5}) ([1-9]\d{0,5})\n255\n")
"""What begins the pixels of a ``.beton``, as its source gives them."""
SAME_AS_PILLOW = ("YCbCr", "Gray", "RGB")
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Above this Pillow itself refuses an image as a decompression bomb."""
MAX_BYTES = 1 << 30
"""Above this a file is no image: reading it would take the memory that it names."""


class DecodeError(Exception):
    """An image that cannot be delivered; ``fault`` is its cause."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


class ImageHeader(NamedTuple):
    """What an image file says before it is decoded."""

    width: int
    height: int
    deep: str  # what it is where it has more than 8 bits a channel, else ""


def decode_sample(source: Source, index: int) -> np.ndarray:
    """The pixels of one sample, by the source's own rule; ``OSError`` or ``DecodeError`` where there are none."""
    return decode_rgb(source.encoded(index), rule_of(source))


def decode_rgb(encoded: bytes | memoryview, rule: ToRGB = RANGE) -> np.ndarray:
    """Decode an image of any type that Pillow reads; ``rule`` is for those of more than 8 bits a channel.

    Returns (H, W, 3) uint8, C-contiguous. ``DecodeError`` where Pillow or ``rule`` would refuse the bytes.
    """
    _check_length(encoded)
    if bytes(encoded[:3]) == b"\xff\xd8\xff":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
            if colorspace in SAME_AS_PILLOW and int(height) * int(width) <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
        except ValueError:
            pass  # damaged, or merely unusual: Pillow decides
    elif head := PIXELS.match(bytes(encoded[:32])):
        width, height = map(int, head.groups())
        if len(encoded) - head.end() == width * height * 3 <= 3 * MAX_PIXELS:
            return np.frombuffer(encoded, np.uint8, offset=head.end()).reshape(height, width, 3).copy()
    return _decode_pillow(encoded, rule)


def image_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """(width, height) from the header alone. ``DecodeError`` where it has none."""
    header = read_image_header(encoded)
    return header.width, header.height


def read_image_header(encoded: bytes | memoryview) -> ImageHeader:
    """Size and depth, nothing decoded. ``DecodeError`` where the bytes are no image."""
    _check_length(encoded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(encoded))
            return ImageHeader(*image.size, deep_kind(image))
    except Exception as error:
        raise DecodeError(Fault.UNDECODABLE, _reason(error)) from error


def _check_length(encoded: bytes | memoryview) -> None:
    if not len(encoded):
        raise DecodeError(Fault.UNDECODABLE, EMPTY)
    if len(encoded) > MAX_BYTES:
        raise DecodeError(Fault.TOO_LARGE, f"{len(encoded):,} bytes, more than {MAX_BYTES:,}")


def _decode_pillow(encoded: bytes | memoryview, rule: ToRGB) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(encoded))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DecodeError(Fault.TOO_LARGE, f"{width} x {height} pixels, more than {MAX_PIXELS}")
        return convert(image, rule)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(Fault.TOO_LARGE, _reason(error)) from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ... on damaged bytes
        raise DecodeError(Fault.UNDECODABLE, _reason(error)) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # The message of an unknown type ends in the address of a BytesIO, which tells nobody anything.
    return "not an image of a known type" if text.startswith("cannot identify") else (text or type(error).__name__)
