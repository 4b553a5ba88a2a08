"""The update that ends a step: loss scale, finite gate, clipping, optimizer; one that is not finite leaves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.train.clipping import Clipping

NON_FINITE = "the loss or its gradient is not finite"


class Update(NamedTuple):
    """A step's total, detached, and whether its update took place: a bool on the host, or a scalar on the device."""

    total: Tensor
    finite: bool | Tensor
    norm: Tensor | None = None
    """Of all gradients before they were clipped, where they are."""


class UpdaterState(NamedTuple):
    """Everything that a checkpoint keeps of an updater."""

    tensors: dict[str, Tensor]
    """Optimizer state by "PARAMETER/KEY"."""
    scaler: dict[str, Any]


class Updater:
    """Owns the optimizer and fp16's gradient scaler, and decides whether a step counts.

    A step whose loss or gradient is not finite changes neither weights nor the running statistics of batch norms,
    which its forward pass has moved already:

    - fp16: the gradient scaler, which reads one flag back, skips the step and lowers its scale;
    - an optimizer that reads ``found_inf`` on the device (LARS by "cuda", any that is made for a captured step) skips
      there, and the step's total is NaN;
    - else the step raises ``RuntimeError`` (on CUDA the device does; the host learns of it at its next
      synchronisation).
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: str = "cpu",
        precision: str = "off",
        clipping: Clipping | None = None,
    ) -> None:
        """``module`` holds the optimizer's parameters and all running statistics, and stays where it is.

        ``clipping`` is of the gradients as the optimizer gets them: of all processes, without the loss scale.
        """
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=precision == "fp16")
        self.clipping = clipping
        self._module = module
        self._decayed = [group for group in optimizer.param_groups if group.get("weight_decay")]
        self._statistics = RunningStatistics(module)
        self._took_place: bool | Tensor = False
        optimizer.register_step_post_hook(self._note)

    def set_rates(self, scalars: Mapping[str, float]) -> None:
        """On the host, before a step: the learning rate of every group, and the weight decay of those that have one.

        The former is ``scalars["lr"]``, or a group's own "constant_lr", times the group's "lr_scale" where it has one;
        the latter ``scalars["weight_decay"]`` where it varies over the run.
        """
        if "weight_decay" in scalars:
            for group in self._decayed:
                group["weight_decay"] = scalars["weight_decay"]
        for group in self.optimizer.param_groups:
            lr = group.get("constant_lr", scalars["lr"]) * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)  # where a captured step reads it
            else:
                group["lr"] = lr

    def begin(self) -> None:
        """Before the forward pass: drop gradients, keep the running statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.keep()

    def backward(self, total: Tensor) -> None:
        """Gradients of ``total``, times the loss scale where there is one."""
        with record_function(stages.BACKWARD):
            self.scaler.scale(total).backward()

    def __call__(self, total: Tensor) -> Update:
        """The finite gate on ``total`` and the gradients, clipping where there is any, then the optimizer."""
        with record_function(stages.OPTIMIZER):
            clipped: Tensor | None = None
            if self.scaler.is_enabled():
                self._took_place = False
                if self.clipping:
                    self.scaler.unscale_(self.optimizer)  # and notes what is not finite
                    clipped = self.clipping(self._gradients())
                self.scaler.step(self.optimizer)  # calls the optimizer, and so ``_note``, where it does not skip
                self.scaler.update()
                self._statistics.restore_unless(self._took_place)
                return Update(total, self._took_place, clipped)
            if self.clipping:
                norm = clipped = self.clipping(self._gradients())
            else:
                norm = torch.nn.utils.get_total_norm(self._gradients())
            finite: bool | Tensor = torch.isfinite(total + norm)
            on_device = getattr(self.optimizer, "_step_supports_amp_scaling", False)
            if total.device.type == "cpu" and not on_device:
                finite = bool(finite)
            self._statistics.restore_unless(finite)
            if not on_device:
                self._demand(finite)
                self.optimizer.step()
                return Update(total, finite, clipped)
            # As torch.amp.GradScaler hands it over. An assertion on the device would cost all that is on it.
            self.optimizer.found_inf = (~torch.as_tensor(finite)).float()  # type: ignore[attr-defined]
            try:
                self.optimizer.step()
            finally:
                del self.optimizer.found_inf  # type: ignore[attr-defined]
            return Update(torch.where(torch.as_tensor(finite), total, torch.nan), finite, clipped)

    def state(self) -> UpdaterState:
        """Optimizer state under its parameters' names, and the scaler's."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._module.named_parameters()}
        tensors = {
            f"{names[parameter]}/{key}": value.detach()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        return UpdaterState(tensors, self.scaler.state_dict())

    def load(self, state: UpdaterState) -> None:
        """The inverse of ``state``."""
        parameters = dict(self._module.named_parameters())
        # Where the optimizer counts steps on the device: its kernel reads the count there, a graph at every replay.
        counting = {
            id(parameter)
            for group in self.optimizer.param_groups
            if group.get("capturable") or group.get("fused")
            for parameter in group["params"]
        }
        for entry, value in state.tensors.items():
            name, _, key = entry.rpartition("/")
            parameter = parameters[name]
            # A scalar step count goes where the optimizer keeps it; a moment takes its parameter's place and layout.
            if value.ndim:
                value = torch.empty_like(parameter).copy_(value)
            elif id(parameter) in counting:
                value = value.to(parameter.device)
            self.optimizer.state[parameter][key] = value
        if self.scaler.is_enabled() and state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The optimizer stepped, unless it read otherwise on the device."""
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        self._took_place = True if found_inf is None else found_inf == 0

    def _demand(self, finite: bool | Tensor) -> None:
        if isinstance(finite, Tensor):
            torch._assert_async(finite, NON_FINITE)  # pyright: ignore[reportPrivateImportUsage]
        elif not finite:
            raise RuntimeError(NON_FINITE)


class RunningStatistics:
    """The running statistics of a module's batch norms, kept over a step at the cost of one copy a dtype."""

    def __init__(self, module: nn.Module) -> None:
        found = [b for part in module.modules() if isinstance(part, _NormBase) for b in part.buffers(recurse=False)]
        by_dtype = groupby(sorted(found, key=lambda buffer: str(buffer.dtype)), lambda buffer: buffer.dtype)
        self._groups = [list(buffers) for _, buffers in by_dtype]
        self._sizes = [[buffer.numel() for buffer in buffers] for buffers in self._groups]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """As they are now."""
        self._kept = [_flat(buffers) for buffers in self._groups]

    def restore_unless(self, finite: bool | Tensor) -> None:
        """What ``keep`` kept, where the step did not count. A flag on the device is not waited for."""
        if finite is True:
            return
        for buffers, sizes, kept in zip(self._groups, self._sizes, self._kept, strict=True):
            wanted = torch.where(finite, _flat(buffers), kept) if isinstance(finite, Tensor) else kept
            pieces = [p.view_as(b) for p, b in zip(wanted.split(sizes), buffers, strict=True)]
            torch._foreach_copy_(buffers, pieces)  # pyright: ignore[reportPrivateImportUsage]


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
