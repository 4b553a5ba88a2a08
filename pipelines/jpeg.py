"""What a JPEG says of itself before it is decoded: its markers from SOI to the first SOS, and where its EOI is."""

from __future__ import annotations

from typing import Literal, NamedTuple

Process = Literal["baseline", "extended", "progressive", "lossless", "hierarchical"]
Colour = Literal["grey", "YCbCr", "RGB", "CMYK", "YCCK", "unknown"]

SOI, EOI, SOS, DNL, TEM = 0xD8, 0xD9, 0xDA, 0xDC, 0x01
APP0, APP14 = 0xE0, 0xEE
RESTARTS = range(0xD0, 0xD8)
# ITU-T T.81 table B.1: C4, C8 and CC lie among the frame headers but are DHT, JPG and DAC.
FRAMES: dict[int, Process] = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "extended",
    0xCA: "progressive",
    0xCB: "lossless",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
}
FIRST_ARITHMETIC = 0xC9
ADOBE_COLOURS: dict[tuple[int, int], Colour] = {
    (3, 0): "RGB",
    (3, 1): "YCbCr",
    (4, 0): "CMYK",
    (4, 2): "YCCK",
}


class JpegError(ValueError):
    """Bytes that are no JPEG, or one whose header is damaged or cut short."""


class JpegHeader(NamedTuple):
    """The frame header, the colours that libjpeg would assume, and the extent of the file's first image."""

    width: int  # pixels, EXIF orientation not applied
    height: int  # 0 where a DNL marker after the scan gives it
    precision: int  # bits a component
    components: int
    process: Process
    arithmetic: bool  # arithmetic instead of Huffman coding
    colour: Colour
    scan: int  # offset of the first SOS marker
    end: int  # offset after the EOI marker; 0 where there is none

    @property
    def complete(self) -> bool:
        """Whether an EOI marker ends the image."""
        return self.end > 0


def read_header(data: bytes | memoryview) -> JpegHeader:
    """Walk the markers of ``data`` up to the first scan, then look for the EOI; the scan itself is not decoded.

    Marker syntax: ITU-T T.81 annex B. ``JpegError`` where a marker, a frame header or the first scan is missing.
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] != SOI:
        raise JpegError("no JPEG: it does not begin with the SOI marker")
    frame: tuple[int, int, int, int, int, bytes] | None = None
    jfif, transform = False, -1
    at, total = 2, len(data)
    while True:
        if at + 4 > total:
            raise JpegError(f"cut short in its header, after {total} bytes")
        if data[at] != 0xFF:
            raise JpegError(f"no marker where one must be, at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in RESTARTS or marker == TEM:  # markers without a segment
            at += 2
            continue
        if marker in (0x00, SOI, EOI):
            raise JpegError(f"marker {marker:02X} in its header, at byte {at}")
        length = data[at + 2] << 8 | data[at + 3]
        body, following = at + 4, at + 2 + length
        if length < 2 or following > total:
            raise JpegError(f"cut short in its header: the segment of marker {marker:02X} ends at byte {following}")
        if marker in FRAMES:
            if frame is not None:
                raise JpegError("two frame headers before the first scan")
            frame = _frame(marker, data[body:following])
        elif marker == APP0:
            jfif = jfif or (length >= 16 and bytes(data[body : body + 5]) == b"JFIF\0")
        elif marker == APP14:
            if length >= 14 and bytes(data[body : body + 5]) == b"Adobe":
                transform = data[body + 11]
        elif marker == SOS:
            break
        at = following
    if frame is None:
        raise JpegError("its scan begins before a frame header")
    kind, precision, height, width, components, identifiers = frame
    return JpegHeader(
        width,
        height,
        precision,
        components,
        FRAMES[kind],
        kind >= FIRST_ARITHMETIC,
        _colour(components, identifiers, jfif=jfif, transform=transform),
        at,
        _end(data, following),
    )


def _frame(marker: int, body: bytes | memoryview) -> tuple[int, int, int, int, int, bytes]:
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or body[5] == 0:
        raise JpegError("a frame header whose length does not fit its components")
    height, width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    if width == 0:
        raise JpegError("a frame header of width 0")
    return marker, body[0], height, width, body[5], bytes(body[6::3])


def _colour(components: int, identifiers: bytes, *, jfif: bool, transform: int) -> Colour:
    """As libjpeg's ``default_decompress_parms`` decides; "unknown" where it would decide with a warning."""
    if components == 1:
        return "grey"
    if components == 3 and jfif:
        return "YCbCr"
    if transform >= 0:
        return ADOBE_COLOURS.get((components, transform), "unknown")
    if components == 3:
        return "RGB" if identifiers == b"RGB" else "YCbCr" if identifiers == b"\1\2\3" else "unknown"
    return "CMYK" if components == 4 else "unknown"


def _end(data: bytes | memoryview, scan: int) -> int:
    """Offset after the EOI; the file's last two bytes where they are one, else the first one after ``scan``.

    Inside entropy-coded data every FF is followed by 00 or a restart number, so FF D9 is an EOI.
    """
    total = len(data)
    if total >= scan + 2 and data[total - 2] == 0xFF and data[total - 1] == EOI:
        return total
    found = bytes(data[scan:]).find(b"\xff\xd9")
    return scan + found + 2 if found >= 0 else 0
