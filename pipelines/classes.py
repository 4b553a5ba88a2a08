"""Class names where a dataset has numbers alone."""

from __future__ import annotations

import numpy as np


def numbered(label_N: np.ndarray) -> tuple[str, ...]:
    """Classes named by number, where the labels can be class numbers at all."""
    low, high = int(np.min(label_N)), int(np.max(label_N))
    return tuple(map(str, range(high + 1))) if low >= 0 and high < len(label_N) else ()
