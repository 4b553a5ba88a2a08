"""The seams between data loading, kernels and the training loop: what crosses them, and in which shape.

Shape suffixes used throughout the project: N samples, B batch (this rank's share), V views, H height, W width,
C channels (RGB), P photometric parameters, D embedding width, F feature width.
"""

from __future__ import annotations

from fastvicreg.contracts.data import (
    JITTER_ORDERS,
    Batch,
    Crops,
    Cursor,
    Engine,
    Fault,
    FaultReport,
    Fed,
    Feed,
    Photometric,
    Plan,
    ReadAhead,
    Source,
    Support,
    Waited,
    photometric_identity,
)
from fastvicreg.contracts.learning import (
    SIDE_ROWS,
    BuildContext,
    Column,
    Encoder,
    Horizon,
    MapEncoder,
    Method,
    ParamGroup,
    Schedule,
    Spread,
    Step,
    Terms,
    by_dimension,
)
from fastvicreg.errors import UserError

__all__ = [
    "JITTER_ORDERS",
    "SIDE_ROWS",
    "Batch",
    "BuildContext",
    "Column",
    "Crops",
    "Cursor",
    "Encoder",
    "Engine",
    "Fault",
    "FaultReport",
    "Fed",
    "Feed",
    "Horizon",
    "MapEncoder",
    "Method",
    "ParamGroup",
    "Photometric",
    "Plan",
    "ReadAhead",
    "Schedule",
    "Source",
    "Spread",
    "Step",
    "Support",
    "Terms",
    "UserError",
    "Waited",
    "by_dimension",
    "photometric_identity",
]
