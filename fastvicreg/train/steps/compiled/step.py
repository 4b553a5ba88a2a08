"""The step whose forward pass and loss, with their gradients, are compiled; the stages stay visible in a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, Unsupported
from torch._dynamo.exc import UserError as UntraceableError  # a branch on a value of the device
from torch._inductor.exc import InductorError

from fastvicreg.contracts import Batch, Method, Terms
from fastvicreg.errors import UserError
from fastvicreg.train.steps.eager.step import EagerStep, Embed, Loss
from fastvicreg.train.updater import Updater

GRAPHS = 256
"""Of one function that a process may hold: one for each size of a run's views, and of each run of a study."""


class CompiledStep(EagerStep):
    """Two graphs, each of a whole function: embeddings and targets, and the loss.

    Not one, so that a trace tells the two apart, and a measurement can replace the loss. The finite gate and the
    optimizer are few launches as they are (``kernels.lars``).
    """

    def __init__(
        self, method: Method, updater: Updater, *, mode: str = "default", backend: str = "inductor", **common: Any
    ) -> None:
        """``mode`` and ``backend`` are torch.compile's, ``common`` ``EagerStep``'s."""
        self._mode, self._backend = mode, backend
        super().__init__(method, updater, **common)

    def _settings(self) -> dict[str, Any]:
        return {"mode": self._mode, "backend": self._backend}

    def _functions(self) -> tuple[Embed, Loss]:
        embed, loss = super()._functions()
        limits = torch._dynamo.config  # 8 of one function, at the ninth of which a whole graph is refused
        limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, GRAPHS)
        mode = self._mode if self._backend == "inductor" else None  # the others know none

        def whole(function):  # type: ignore[no-untyped-def]
            # A size is a graph of its own: a run has one, or one an epoch.
            return torch.compile(function, fullgraph=True, dynamic=False, backend=self._backend, mode=mode)

        return whole(embed), loss if self._replacement else whole(loss)

    def __call__(self, batch: Batch, scalars: Mapping[str, float]) -> Terms:
        """As ``EagerStep``; ``UserError`` where there is no compiler, or the method cannot be compiled whole."""
        try:
            return super().__call__(batch, scalars)
        except (BackendCompilerFailed, InductorError, Unsupported, UntraceableError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            what = f"{type(self.method).__name__} cannot be compiled here ({reason})"
            raise UserError(f"--step compiled: {what}: give --step eager.") from error
