"""Images of more than 8 bits as 8-bit RGB, by one rule that is stated and the same in every engine.

Pillow's own conversion clips: of 16-bit and 32-bit grey every value above 255 becomes white, of floats in 0..1 all
becomes black. Here an image's own smallest finite value becomes black and its largest white, linearly: files do not
say which of their bits the instrument filled (12 of 16, 0..1, Hounsfield units), so that the type's range would leave
many of them almost black. A constant image becomes black, NaN counts as the smallest value. ``LOW:HIGH`` takes two
fixed values instead, the same for all images, and clips beyond them: ``0:65535`` is the range of 16 bits, ``0:1`` that
of most floats. Colour images of 16 bits a channel come from Pillow as their upper 8 bits, whatever the rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from fastvicreg.contracts import Source
from fastvicreg.errors import UserError

GREY = {"I;16": "16-bit grey", "I": "32-bit integers", "F": "32-bit floats"}
"""What a person calls Pillow's modes; "I;16B" and the like are "I;16" in another byte order."""
COLOUR = "16 bits a channel, read as their upper 8"


@dataclass(frozen=True)
class ToRGB:
    """How values of more than 8 bits become 0..255."""

    window: tuple[float, float] | None = None  # values that become 0 and 255; None: the image's own range
    refuse: bool = False


RANGE = ToRGB()


def rule_of(source: Source) -> ToRGB:
    """The rule that ``source`` was opened with; asked for with every sample."""
    return getattr(source, "to_rgb", RANGE)


def parse_rule(text: str) -> ToRGB:
    """The rule that ``--to-rgb`` names: range, refuse or LOW:HIGH; ``UserError`` for anything else."""
    if text in ("range", "refuse"):
        return ToRGB(refuse=text == "refuse")
    low, _, high = text.partition(":")
    try:
        window = float(low), float(high)
    except ValueError:
        window = (0.0, 0.0)
    if not all(map(math.isfinite, window)) or window[0] >= window[1]:
        raise UserError(
            f"--to-rgb {text}: give range (each image's own), LOW:HIGH (two values, the smaller first, such as "
            "0:65535), or refuse."
        )
    return ToRGB(window)


def deep_kind(image: Image.Image) -> str:
    """What an image of more than 8 bits a channel is, in words; "" for one of 8. To be asked before it is loaded."""
    name = GREY.get("I;16" if image.mode.startswith("I;16") else image.mode, "")
    if name:
        return name
    raw = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    return COLOUR if isinstance(raw, str) and ";16" in raw else ""


def convert(image: Image.Image, rule: ToRGB) -> np.ndarray:
    """(H, W, 3) uint8, C-contiguous: Pillow's conversion for 8 bits, ``rule`` for more.

    ``ValueError`` where the rule refuses the image, or it has no finite value.
    """
    kind = deep_kind(image)
    if kind and rule.refuse:
        raise ValueError(f"more than 8 bits a channel: {kind} (--to-rgb refuse)")
    if kind == COLOUR and rule.window is not None:
        low, high = rule.window
        raise ValueError(f"{kind}, which --to-rgb {low:g}:{high:g} does not apply to")
    if not kind or kind == COLOUR:
        return np.ascontiguousarray(image.convert("RGB"))
    return np.repeat(scale(np.asarray(image), rule)[..., None], 3, axis=2)


def scale(value_HW: np.ndarray, rule: ToRGB) -> np.ndarray:
    """(H, W) uint8 of integers or floats; ``ValueError`` where no value is finite."""
    value_HW = value_HW.astype(np.float64)
    finite_HW = np.isfinite(value_HW)
    if not finite_HW.any():
        raise ValueError("no finite value in an image of floats")
    low, high = rule.window or (float(value_HW[finite_HW].min()), float(value_HW[finite_HW].max()))
    if low == high:
        return np.zeros(value_HW.shape, np.uint8)
    value_HW = np.nan_to_num(value_HW, copy=False, nan=low, posinf=high, neginf=low)
    return np.rint((value_HW.clip(low, high) - low) * (255.0 / (high - low))).astype(np.uint8)
