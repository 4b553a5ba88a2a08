"""Batch norm with the addition and the ReLU that follow it: a function, and the module that calls it."""

from fastvicreg.kernels.norm.functional import batch_norm_act, choose, known
from fastvicreg.kernels.norm.module import BatchNorm, JointViews, SecondPass, activated
from fastvicreg.kernels.norm.options import Options
from fastvicreg.kernels.norm.recompute import forget, recomputing

__all__ = [
    "BatchNorm",
    "JointViews",
    "Options",
    "SecondPass",
    "activated",
    "batch_norm_act",
    "choose",
    "forget",
    "known",
    "recomputing",
]
