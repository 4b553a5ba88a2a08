"""VICReg training with data loading, kernels and loop that are profiled and swapped independently."""

__version__ = "0.1.0"
