"""Forms in which a trained encoder leaves, by name. Importing this imports no torch."""

from __future__ import annotations

from typing import NamedTuple

TARGETS = {
    "safetensors": "fastvicreg.export.safetensors:write",
    "torchvision": "fastvicreg.export.torchvision:write",
    "timm": "fastvicreg.export.timm:write",
    "hf": "fastvicreg.export.hf:write",
    "onnx": "fastvicreg.export.onnx:write",
    "torchscript": "fastvicreg.export.torchscript:write",
    "detectron2": "fastvicreg.export.detectron2:write",
}
"""Names to ``write(trained, path) -> Written``, which writes ``path`` whole or not at all, reads it back, compares its
features with the encoder's, and raises ``UserError`` where that fails or the target has no such architecture."""


class Written(NamedTuple):
    """What was proved of an exported file, and how it is loaded."""

    proof: str
    """Who read it back, and the largest difference."""
    load: str
    """One line of Python."""
