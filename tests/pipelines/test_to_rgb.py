"""Images of more than 8 bits: scaled by a stated rule, the same in every engine, or refused by name; never clipped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from mixed import SMALL
from PIL import Image
from stored import epoch_of, training

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.convert import Settings, convert_dataset
from fastvicreg.pipelines.decode import DecodeError, decode_rgb, decode_sample, read_image_header
from fastvicreg.pipelines.sources.subset import SubsetSource
from fastvicreg.pipelines.to_rgb import COLOUR, parse_rule, scale
from fastvicreg.pipelines.verify import verify_dataset

RAMP = np.linspace(0, 1, 35, dtype=np.float64).reshape(5, 7)


def stored(array: np.ndarray, kind: str) -> bytes:
    return encoded(Image.fromarray(array), kind)


def big_endian_tiff(array: np.ndarray) -> bytes:
    """A TIFF of unsigned 16-bit grey in big-endian order, as microscopes write it; Pillow's mode is "I;16B"."""
    buffer = io.BytesIO()
    height, width = array.shape
    shorts = [(256, width), (257, height), (258, 16), (262, 1), (277, 1), (278, height)]
    entries = [(tag, 3, 1, value << 16) for tag, value in shorts] + [(273, 4, 1, 122), (279, 4, 1, 2 * array.size)]
    entries.sort()
    buffer.write(b"MM\0*" + (8).to_bytes(4, "big") + len(entries).to_bytes(2, "big"))
    for tag, kind, count, value in entries:
        buffer.write(b"".join(n.to_bytes(w, "big") for n, w in ((tag, 2), (kind, 2), (count, 4), (value, 4))))
    buffer.write(bytes(122 - buffer.tell()) + array.astype(">u2").tobytes())
    return buffer.getvalue()


DEEP: dict[str, tuple[str, bytes]] = {
    "uint16 PNG": ("16-bit grey", stored((RAMP * 51000 + 1000).astype(np.uint16), "PNG")),
    "12 bits in uint16": ("16-bit grey", stored((RAMP * 4095).astype(np.uint16), "TIFF")),
    "big-endian uint16": ("16-bit grey", big_endian_tiff((RAMP * 60000).astype(np.uint16))),
    "int32 TIFF": ("32-bit integers", stored((RAMP * 3000 - 1024).astype(np.int32), "TIFF")),
    "float in 0..1": ("32-bit floats", stored(RAMP.astype(np.float32), "TIFF")),
    "float in Kelvin": ("32-bit floats", stored((RAMP * 80 + 230).astype(np.float32), "TIFF")),
}


@pytest.mark.parametrize("kind", DEEP)
def test_by_default_an_image_is_scaled_by_its_own_range(kind: str) -> None:
    name, data = DEEP[kind]
    pixels = decode_rgb(data)
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (5, 7, 3), True)
    grey = pixels[..., 0]
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.abs(grey - RAMP * 255).max() <= 1
    assert np.array_equal(grey, pixels[..., 1])
    assert np.array_equal(grey, pixels[..., 2])
    assert read_image_header(data) == (7, 5, name)
    with pytest.raises(DecodeError, match=rf"{name} \(--to-rgb refuse\)"):
        decode_rgb(data, parse_rule("refuse"))


def test_a_window_is_the_same_for_all_images_and_clips_beyond_it() -> None:
    values = np.array([[0, 1000, 2000, 4000, 65535]], np.uint16)
    data = stored(values, "PNG")
    assert decode_rgb(data, parse_rule("1000:4000"))[0, :, 0].tolist() == [0, 0, 85, 255, 255]
    assert decode_rgb(data, parse_rule("0:65535"))[0, :, 0].tolist() == [0, 4, 8, 16, 255]
    hounsfield = stored(np.array([[-1000, -160, 240, 3000]], np.int32), "TIFF")
    assert decode_rgb(hounsfield, parse_rule("-160:240"))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_not_a_number_is_black_and_infinities_are_the_ends() -> None:
    values = np.array([[np.nan, -np.inf, 1.0, 2.0, 3.0, np.inf]], np.float32)
    assert scale(values, parse_rule("range")).tolist() == [[0, 0, 0, 128, 255, 255]]
    assert scale(values, parse_rule("0:4")).tolist() == [[0, 0, 64, 128, 191, 255]]
    with pytest.raises(DecodeError, match="no finite value"):
        decode_rgb(stored(np.full((3, 3), np.nan, np.float32), "TIFF"))


def test_extremes_neither_overflow_nor_divide_by_zero() -> None:
    with np.errstate(all="raise"):
        for values in (
            np.array([[np.finfo(np.float32).min, 0, np.finfo(np.float32).max]], np.float32),
            np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
        ):
            assert scale(values, parse_rule("range")).tolist()[0] in ([0, 127, 255], [0, 128, 255])
        assert scale(np.full((2, 2), 40000, np.uint16), parse_rule("range")).tolist() == [[0, 0], [0, 0]]


def colour_16(width: int, height: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    import struct
    import zlib

    rows = np.random.default_rng(0).integers(0, 65536, (height, width * 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_colour_of_16_bits_a_channel_keeps_its_upper_8_and_says_so() -> None:
    data = colour_16(6, 4)
    assert read_image_header(data).deep == COLOUR
    rng = np.random.default_rng(0).integers(0, 65536, (4, 18)).reshape(4, 6, 3)
    assert np.array_equal(decode_rgb(data), rng >> 8)
    for rule in ("0:4095", "refuse"):
        with pytest.raises(DecodeError, match="16 bits a channel"):
            decode_rgb(data, parse_rule(rule))


@pytest.mark.parametrize("rule", ["range", "0:10", "refuse"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_8_bits_are_pillows_whatever_the_rule(mode: str, rule: str) -> None:
    image = photo(1, 31, 23).convert(mode)
    data = encoded(image, "TIFF")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, parse_rule(rule)), expected)
    assert read_image_header(data).deep == ""


@pytest.mark.parametrize("text", ["", "scale", "5", "5:", "9:3", "3:3", "nan:1", "0:inf", "0:1:2"])
def test_a_rule_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match=rf"--to-rgb {text}: give range"):
        parse_rule(text)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Twelve 16-bit grey images with 12 bits in use, in two classes."""
    rng = np.random.default_rng(3)
    for number in range(12):
        path = tmp_path / "deep" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored(rng.integers(100, 4096, (40, 48)).astype(np.uint16), "PNG"))
    return tmp_path / "deep"


@pytest.mark.parametrize("rule", ["range", "0:4095"])
def test_every_engine_sees_the_same_pixels(deep: Path, tmp_path: Path, rule: str) -> None:
    source = open_source(deep, to_rgb=rule)
    convert_dataset(deep, tmp_path / "deep.beton", Settings(raw=True, to_rgb=rule, page_size=SMALL.page_size))
    expected = [decode_sample(source, index) for index in range(12)]
    converted = open_source(tmp_path / "deep.beton")
    for index, pixels in enumerate(expected):
        assert pixels.std() > 60
        assert np.array_equal(decode_sample(converted, index), pixels)
    part = SubsetSource(source, [3, 5])
    assert np.array_equal(decode_sample(part, 1), expected[5])
    plan, batches = training(12), []
    for engine, data in (("native", source), ("native", converted), ("ffcv", converted)):
        if engine == "ffcv":
            pytest.importorskip("ffcv")
        batches.append(epoch_of(build_engine(engine, data, plan, batch_size=6, workers=1), Cursor(0, 0)))
    for other in batches[1:]:
        for mine, theirs in zip(batches[0], other, strict=True):
            assert np.array_equal(mine.crops_BVHWC, theirs.crops_BVHWC)


def test_refused_images_are_skipped_and_faults(deep: Path, tmp_path: Path) -> None:
    (deep / "a" / "eight.png").write_bytes(encoded(photo(0, 40, 40), "PNG"))
    summary = convert_dataset(deep, tmp_path / "x.beton", Settings(to_rgb="refuse", page_size=SMALL.page_size))
    assert (summary.images, len(summary.skipped)) == (1, 12)
    assert not any("16-bit" in note for note in summary.notes)
    scaled = convert_dataset(deep, tmp_path / "y.beton", SMALL)
    assert "12 images of 16-bit grey, scaled by --to-rgb range" in scaled.notes
    assert summary.skipped[0].reason == "more than 8 bits a channel: 16-bit grey (--to-rgb refuse)"


@pytest.mark.parametrize("decode", [False, True])
def test_verify_reports_them(deep: Path, decode: bool, make_folder: Callable[..., Path]) -> None:
    report = verify_dataset(deep, decode=decode)
    assert report.findings == ()
    assert report.deep == (("16-bit grey", 12, "a/00.png"),)
    assert verify_dataset(make_folder(train=4, val=0), decode=decode).deep == ()
