"""Libraries that read and write the same weights, where they import."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch


def peer(name: str) -> Any:
    """The library, or a skip that says why it does not import."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(
            f"{name} does not import beside torch {torch.__version__} ({type(error).__name__}): make test-peers"
        )
