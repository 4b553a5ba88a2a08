"""NVIDIA's compiler for the tests that need it."""

from __future__ import annotations

import os

import pytest

from fastvicreg.kernels.cuda.compiler import missing_compiler


def require_compiler() -> None:
    """Without it the test is skipped, and fails where CI is set."""
    if reason := missing_compiler():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
