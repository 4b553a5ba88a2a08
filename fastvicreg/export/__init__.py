"""Forms in which a trained encoder leaves, by name. Importing this imports no torch."""

from __future__ import annotations

TARGETS = {
    "safetensors": "fastvicreg.export.safetensors:write",
}
"""Names to ``write(trained, path)``, which writes ``path``, reads it back and raises ``UserError`` where that fails."""
