"""One training step: forward, backward, finite gate, update; nothing in it waits for the device but fp16's scaler."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.contracts import Terms

AUTOCAST = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Joint(nn.Module):
    """Encoder and objective as one module, whose gradients DistributedDataParallel averages."""

    def __init__(self, encoder: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective

    def forward(self, views: tuple[Tensor, ...]) -> Terms:
        return self.objective(views, self.encoder)


class TrainStep:
    """Joins encoder, objective and optimizer.

    No non-finite loss or gradient reaches the weights: with fp16 the gradient scaler, which reads one flag back, skips
    the step and lowers its scale; else an optimizer that skips by a flag on the device does so, and the step's total
    is NaN; else the step raises ``RuntimeError`` before the update (on CUDA the device does, and the host learns of it
    at its next synchronisation).
    """

    def __init__(
        self,
        encoder: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: str = "cpu",
        precision: str = "off",
        world_size: int = 1,
    ) -> None:
        self.encoder = encoder
        self.objective = objective
        self._forward: nn.Module = Joint(encoder, objective)
        if world_size > 1:
            # The batch norms are synchronised already: their buffers are the same everywhere.
            options: dict[str, Any] = {_buffers_option(): False, "gradient_as_bucket_view": True}
            self._forward = DistributedDataParallel(self._forward, **options)
        self.optimizer = optimizer
        self._device = torch.device(device).type
        self._dtype = AUTOCAST[precision]
        self.scaler = torch.amp.GradScaler(self._device, enabled=precision == "fp16")

    def __call__(self, views: tuple[Tensor, ...], schedule: Mapping[str, float]) -> Terms:
        """``schedule["lr"]`` is this step's learning rate."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(schedule["lr"])  # where a captured step reads it
            else:
                group["lr"] = schedule["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, self._dtype) if self._dtype else nullcontext():
            terms: Terms = self._forward(views)
        with record_function(stages.BACKWARD):
            self.scaler.scale(terms.total).backward()
        total = self.update(terms.total.detach())
        self.objective.after_step(schedule)  # type: ignore[operator]
        return Terms(total, terms.parts)

    def update(self, total: Tensor) -> Tensor:
        """The finite gate on ``total`` and the gradients, then the optimizer; returns the total to record."""
        with record_function(stages.OPTIMIZER):
            if self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
                return total
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            finite = torch.isfinite(total + torch.nn.utils.get_total_norm(gradients))
            if not getattr(self.optimizer, "_step_supports_amp_scaling", False):
                torch._assert_async(finite, NON_FINITE)  # pyright: ignore[reportPrivateImportUsage]
                self.optimizer.step()
                return total
            # As torch.amp.GradScaler hands it over. An assertion on the device would cost all that is on it.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            try:
                self.optimizer.step()
            finally:
                del self.optimizer.found_inf  # type: ignore[attr-defined]
            return torch.where(finite, total, torch.nan)


NON_FINITE = "the loss or its gradient is not finite"


def _buffers_option() -> str:
    """DistributedDataParallel's, which torch 2.13 renamed."""
    known = signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
