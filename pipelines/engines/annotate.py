"""Names for what an engine's threads do, in a trace; next to nothing where no profiler runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch.autograd.profiler as autograd_profiler
from torch.profiler import record_function

_NOTHING = nullcontext()


def in_worker(name: str) -> AbstractContextManager[object]:
    """``record_function(name)`` while a profiler runs, else nothing: a worker passes here for every image."""
    return record_function(name) if autograd_profiler._is_profiler_enabled else _NOTHING
