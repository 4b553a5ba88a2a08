"""The names under which every stage of a step appears in a trace, whichever engine or kernel is in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch.autograd.profiler as autograd_profiler
from torch.profiler import record_function

DATA_WAIT = "fv.data_wait"
H2D = "fv.h2d"
AUGMENT = "fv.augment"
FORWARD = "fv.forward"
LOSS = "fv.loss"
BACKWARD = "fv.backward"
OPTIMIZER = "fv.optimizer"
COMM = "fv.comm"

ALL = (DATA_WAIT, H2D, AUGMENT, FORWARD, LOSS, BACKWARD, OPTIMIZER, COMM)

DECODE = "fv.decode"
RESAMPLE = "fv.resample"

WORKERS = (DECODE, RESAMPLE)
"""In the engines' threads, beside the step: no stages of it."""

_NOTHING = nullcontext()


def in_worker(name: str) -> AbstractContextManager[object]:
    """``record_function(name)`` while a profiler runs, else nothing: a worker passes here for every image."""
    return record_function(name) if autograd_profiler._is_profiler_enabled else _NOTHING
