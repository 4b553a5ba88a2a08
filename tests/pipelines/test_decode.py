"""Decoding equals Pillow's, in pixels and in what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import encoded, photo
from PIL import Image

from fastvicreg.contracts import Fault
from fastvicreg.pipelines import decode
from fastvicreg.pipelines.decode import DecodeError, decode_rgb, image_size

PHOTO = photo(0, 61, 47)
KINDS = {
    "baseline 4:2:0": encoded(PHOTO, quality=85),
    "4:4:4": encoded(PHOTO, quality=95, subsampling=0),
    "progressive": encoded(PHOTO, progressive=True),
    "grey": encoded(PHOTO.convert("L")),
    "cmyk": encoded(PHOTO.convert("CMYK")),
    "rgb jpeg": encoded(PHOTO, keep_rgb=True),
    "restart markers": encoded(PHOTO, restart_marker_rows=1),
    "1x1": encoded(photo(1, 1, 1)),
    "png": encoded(PHOTO, "PNG"),
    "png alpha": encoded(PHOTO.convert("RGBA"), "PNG"),
    "png palette": encoded(PHOTO.convert("P"), "PNG"),
    "png 1 bit": encoded(PHOTO.convert("1"), "PNG"),
    "webp": encoded(PHOTO, "WEBP"),
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO.convert("P"), "GIF"),
    "ppm": encoded(PHOTO, "PPM"),
    "ppm and more": encoded(PHOTO, "PPM") + b"more",
    "ppm with a comment": encoded(PHOTO, "PPM").replace(b"\n", b"\n# of pixels\n", 1),
    "ppm of 16 bits": encoded(PHOTO, "PPM").replace(b"255", b"65535", 1) + bytes(61 * 47 * 3),
    "pgm": encoded(PHOTO.convert("L"), "PPM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_pillows(kind: str) -> None:
    data = KINDS[kind]
    image = Image.open(io.BytesIO(data))
    pixels = decode_rgb(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
    assert image_size(data) == image.size


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encoded(PHOTO, exif=exif, quality=85)
    assert image_size(rotated) == PHOTO.size
    np.testing.assert_array_equal(decode_rgb(rotated), decode_rgb(KINDS["baseline 4:2:0"]))


DAMAGED = {
    "empty": b"",
    "start marker only": b"\xff\xd8\xff",
    "random": bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8)),
    "jpeg cut": KINDS["baseline 4:2:0"][:900],
    "jpeg without its end": KINDS["baseline 4:2:0"][:-2],
    "png cut": KINDS["png"][:1000],
    "ppm cut": KINDS["ppm"][:-1],
    "ppm without pixels": b"P6\n0 5\n255\n",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_bytes_are_refused_with_a_reason(kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_rgb(DAMAGED[kind])
    assert caught.value.fault is Fault.UNDECODABLE
    assert str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_pillows_warnings_are_silent(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(PHOTO.convert("P"), "PNG", transparency=bytes(range(256))))
    code = "import sys, {}\nprint(len(decode_rgb(open(sys.argv[1], 'rb').read())))"
    loud = (
        "io, numpy\nfrom PIL import Image\ndef decode_rgb(x): return Image.open(io.BytesIO(x)).convert('RGB').tobytes()"
    )
    said = []
    for imports in (loud, "io\nfrom fastvicreg.pipelines.decode import decode_rgb"):
        command = [sys.executable, "-c", code.format(imports), str(tmp_path / "x.png")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
        assert ran.returncode == 0, ran.stderr
        said.append(ran.stderr)
    assert "UserWarning" in said[0]
    assert said[1] == ""


def test_whatever_libjpeg_warns_about_is_pillows_to_decide() -> None:
    whole = bytearray(KINDS["baseline 4:2:0"])
    # Bytes between two segments: libjpeg warns and goes on, and so does Pillow.
    at = whole.index(b"\xff\xdb")
    padded = bytes(whole[:at] + b"\x00\x00\x00" + whole[at:])
    try:
        expected = np.asarray(Image.open(io.BytesIO(padded)).convert("RGB"))
    except Exception:
        with pytest.raises(DecodeError):
            decode_rgb(padded)
    else:
        np.testing.assert_array_equal(decode_rgb(padded), expected)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 61 * 47 - 1)
    for kind in ("baseline 4:2:0", "png", "ppm"):
        with pytest.raises(DecodeError, match="61 x 47") as caught:
            decode_rgb(KINDS[kind])
        assert caught.value.fault is Fault.TOO_LARGE
