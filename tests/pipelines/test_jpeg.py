"""The marker walk: what it reads of sound JPEGs, and that damaged ones are refused, never misread."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from images import encoded, photo
from PIL import Image

from fastvicreg.pipelines.jpeg import JpegError, JpegHeader, read_header

WIDTH, HEIGHT = 53, 34


def segment(data: bytes, marker: int) -> tuple[int, int]:
    """(start, end) of the first segment with ``marker``, found independently by hopping over lengths."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def without(data: bytes, marker: int) -> bytes:
    start, end = segment(data, marker)
    return data[:start] + data[end:]


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def adobe(transform: int) -> bytes:
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


@pytest.mark.parametrize(
    ("mode", "options", "process", "colour", "components"),
    [
        ("RGB", {}, "baseline", "YCbCr", 3),
        ("RGB", {"progressive": True}, "progressive", "YCbCr", 3),
        ("RGB", {"restart_marker_blocks": 2}, "baseline", "YCbCr", 3),
        ("RGB", {"keep_rgb": True}, "baseline", "RGB", 3),
        ("L", {}, "baseline", "grey", 1),
        ("CMYK", {}, "baseline", "CMYK", 4),
    ],
)
def test_it_reads_what_pillow_wrote(
    mode: str, options: dict[str, Any], process: str, colour: str, components: int
) -> None:
    data = encoded(photo(1, WIDTH, HEIGHT).convert(mode), **options)
    header = read_header(data)
    assert (header.width, header.height, header.precision) == (WIDTH, HEIGHT, 8)
    assert (header.process, header.colour, header.components) == (process, colour, components)
    assert not header.arithmetic
    assert data[header.scan : header.scan + 2] == b"\xff\xda"
    assert header.end == len(data)
    assert read_header(memoryview(data)) == header


def test_colours_are_those_that_libjpeg_assumes() -> None:
    plain = encoded(photo(2, WIDTH, HEIGHT))
    bare = without(plain, 0xE0)
    frame = segment(bare, 0xC0)[0]
    # T.81 B.2.2: marker, length, precision, height, width, count, then (id, sampling, table) for each component.
    first_id = frame + 10

    def identified(names: bytes) -> bytes:
        data = bare
        for number, name in enumerate(names):
            data = replaced(data, first_id + 3 * number, bytes([name]))
        return data

    cases = {
        plain: "YCbCr",
        bare: "YCbCr",
        identified(b"RGB"): "RGB",
        bare[:2] + adobe(0) + bare[2:]: "RGB",
        bare[:2] + adobe(1) + bare[2:]: "YCbCr",
        plain[:20] + adobe(0) + plain[20:]: "YCbCr",  # JFIF outweighs Adobe
    }
    for data, colour in cases.items():
        assert read_header(data).colour == colour
        # The scan names the components as well, so libjpeg can only confirm those whose ids were left alone.
        if data != identified(b"RGB"):
            assert simplejpeg.decode_jpeg_header(data)[2] == colour
    for unusual in (bare[:2] + adobe(2) + bare[2:], identified(b"\5\6\7")):
        assert read_header(unusual).colour == "unknown"


def test_the_frame_decides_precision_and_process() -> None:
    data = encoded(photo(3, WIDTH, HEIGHT))
    frame = segment(data, 0xC0)[0]
    for marker, process, arithmetic in (
        (0xC1, "extended", False),
        (0xC3, "lossless", False),
        (0xC5, "hierarchical", False),
        (0xC9, "extended", True),
        (0xCA, "progressive", True),
    ):
        header = read_header(replaced(data, frame + 1, bytes([marker])))
        assert (header.process, header.arithmetic) == (process, arithmetic)
    assert read_header(replaced(data, frame + 4, b"\x0c")).precision == 12
    assert read_header(replaced(data, frame + 5, b"\0\0")).height == 0


def test_fill_bytes_and_markers_without_length_are_stepped_over() -> None:
    data = encoded(photo(4, WIDTH, HEIGHT))
    frame = segment(data, 0xC0)[0]
    padded = data[:frame] + b"\xff\xff\xff\x01\xff" + data[frame:]
    assert read_header(padded)[:7] == read_header(data)[:7]


def test_the_end_is_the_images_own_not_the_thumbnails() -> None:
    thumbnail = encoded(photo(5, 16, 12))
    exif = b"Exif\0\0" + thumbnail
    plain = encoded(photo(6, WIDTH, HEIGHT))
    data = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    header = read_header(data)
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    assert header.end == len(data)
    assert not read_header(data[:-2]).complete
    assert read_header(data + b"\0junk").end == len(data)
    assert read_header(data + thumbnail[:-2]).end == len(data)
    assert read_header(data[:-2] + b"\xff\xff\xff\xd9").complete


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_anywhere_is_an_error_or_incomplete(progressive: bool) -> None:
    data = encoded(photo(7, WIDTH, HEIGHT), progressive=progressive)
    scan_data = segment(data, 0xDA)[1]
    for length in range(len(data)):
        if length < scan_data:
            with pytest.raises(JpegError):
                read_header(data[:length])
        else:
            assert not read_header(data[:length]).complete
    assert read_header(data).complete


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data, frame: b"\x89PNG" + data[4:], "SOI"),
        (lambda data, frame: replaced(data, frame, b"\0"), "no marker"),
        (lambda data, frame: replaced(data, frame + 1, b"\xd9"), "marker D9"),
        (lambda data, frame: replaced(data, frame + 2, b"\0\1"), "segment of marker C0"),
        (lambda data, frame: replaced(data, frame + 7, b"\0\0"), "width 0"),
        (lambda data, frame: replaced(data, frame + 9, b"\4"), "does not fit"),
        (lambda data, frame: data[:frame] + data[segment(data, 0xC0)[1] :], "before a frame header"),
        (lambda data, frame: data[:frame] + data[frame : segment(data, 0xC0)[1]] + data[frame:], "two frame headers"),
    ],
)
def test_a_damaged_header_is_refused_with_its_reason(damage: Any, says: str) -> None:
    data = encoded(photo(8, WIDTH, HEIGHT))
    with pytest.raises(JpegError, match=says):
        read_header(damage(data, segment(data, 0xC0)[0]))


def test_no_flipped_bit_makes_it_fail_otherwise_or_differ_from_libjpeg() -> None:
    data = encoded(photo(9, WIDTH, HEIGHT))
    scan_data = segment(data, 0xDA)[1]
    agreed = 0
    for bit in range(scan_data * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            header = read_header(bytes(flipped))
        except JpegError:
            continue
        assert isinstance(header, JpegHeader)
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(bytes(flipped))
        except ValueError:
            continue
        agreed += 1
        assert (width, height) == (header.width, header.height)
        assert header.colour in ("unknown", "grey" if colour == "Gray" else colour)
    assert agreed > scan_data


def test_random_bytes_after_an_soi_raise_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        noise = b"\xff\xd8\xff" + rng.integers(0, 256, int(rng.integers(0, 60)), np.uint8).tobytes()
        with pytest.raises(JpegError):
            read_header(noise)


def test_sizes_agree_with_pillow_for_every_shape() -> None:
    for width, height in ((1, 1), (1, 300), (300, 1), (255, 256), (257, 65)):
        data = encoded(Image.new("RGB", (width, height), (9, 80, 200)))
        assert read_header(data)[:2] == Image.open(io.BytesIO(data)).size
