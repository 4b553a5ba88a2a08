"""A kernel implementation that a test adds to the registry, as a new file and a new line in it would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from fastvicreg.kernels.dispatch import KERNELS, Implementation


@contextmanager
def registered(kernel: str, implementation: Implementation, module: ModuleType) -> Iterator[None]:
    """``implementation`` of ``kernel``, held in ``module``, is known inside; choices made inside are forgotten."""
    known = KERNELS[kernel].implementations
    assert implementation.name not in known
    known[implementation.name] = implementation
    sys.modules[module.__name__] = module
    KERNELS[kernel].choose.cache_clear()
    try:
        yield
    finally:
        del known[implementation.name], sys.modules[module.__name__]
        KERNELS[kernel].choose.cache_clear()
