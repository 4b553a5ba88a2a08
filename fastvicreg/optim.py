"""The optimizer and its schedule: LARS and the learning rate's warm-up and cosine, as the official code has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from fastvicreg.errors import UserError
from fastvicreg.kernels.lars import choose_for, lars_update, reads_device_scalars
from fastvicreg.kernels.lars.forms import FORMS
from fastvicreg.registry import unknown

BOOKKEEPING = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def spare_the_compiler() -> None:
    """Let the first optimizer be made without importing torch._dynamo, which takes two seconds of a processor.

    torch imports it at the first call of an optimizer's bookkeeping, only to mark that as not to be traced. No
    optimizer is traced here: a compiled step compiles the network and the loss. The mark is set as torch would set it,
    to the function itself; where torch no longer looks for it, nothing changes.
    """
    for name in BOOKKEEPING:
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), step for step as VICReg's main_vicreg.py.

    One-dimensional parameters (biases, norms) are neither decayed nor adapted, nor are those of a group with
    ``"adapted": False``, whatever their shape (a transformer's tokens; they must be contiguous).

    ``lr`` may be changed in ``param_groups`` before each step. ``capturable`` (as torch's own optimizers call it) makes
    a step that can be recorded once and replayed: ``lr`` is then an fp32 scalar on the device, changed in place, and
    the update is skipped there where ``found_inf`` says so; ``impl`` must be "cuda" or "foreach". "cuda" always takes
    the gradients as torch.amp.GradScaler scaled them, and unscales and skips on the device. State per parameter:
    ``momentum_buffer``, shaped as the parameter; the state dict holds tensors and floats alone. ``impl`` names an
    implementation of ``fastvicreg.kernels.lars``; it is a property of this object, not of its state.

    ``form`` names another LARS in place of the official: "clipped" (solo-learn's), "tensorflow" (SimCLR's) or "larc"
    (apex's), see ``fastvicreg.kernels.lars.forms``. These are plain torch: ``impl`` must be "auto" or "foreach".

    Raises ``ValueError`` for a hyper-parameter outside its range, ``UserError`` for an ``impl`` or ``form`` that is
    unknown or cannot be captured, and for an ``impl`` that has the official form alone.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
        impl: str = "auto",
        form: str = "official",
        capturable: bool = False,
    ) -> None:
        rate = 0.0 if isinstance(lr, Tensor) else lr  # a scalar on the device is not read back
        for name, value in (("lr", rate), ("weight_decay", weight_decay), ("eta", eta)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"LARS: {name} must be a finite number of at least 0, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"LARS: momentum must lie in [0, 1), got {momentum}")
        if form != "official" and form not in FORMS:
            raise UserError(unknown("LARS form", form, ("official", *FORMS)))
        if form != "official" and impl not in ("auto", "foreach"):
            raise UserError(
                f"the lars kernel {impl!r} computes the official form alone, not {form!r}: "
                "choose auto or foreach, or --lars-form official."
            )
        self.impl, self.form, self.capturable = impl, form, capturable
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta, "adapted": True}
        spare_the_compiler()
        super().__init__(params, defaults)
        chosen = choose_for(impl if form == "official" else "foreach", self._params())
        if capturable and form != "official":
            raise UserError(f"--lars-form {form} cannot be captured: give --lars-form official, or --step eager.")
        if capturable and not reads_device_scalars(chosen):
            raise UserError(f"LARS by {chosen.name!r} cannot be captured: give --kernel lars=cuda or lars=foreach.")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "impl": self.impl, "form": self.form, "capturable": self.capturable}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what ``closure``, if given, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs: list[tuple[Tensor, Tensor]] = [
                (param, grad) for param in group["params"] if (grad := param.grad) is not None
            ]
            params, grads = [param for param, _ in pairs], [grad for _, grad in pairs]
            buffers = [self._momentum_buffer(param) for param in params]
            if self.form != "official":
                self._by_form(group, params, grads, buffers)
                continue
            if not group["adapted"]:
                # The kernels tell by the dimensions: seen as a vector, a tensor is left alone.
                params, grads, buffers = ([tensor.view(-1) for tensor in part] for part in (params, grads, buffers))
            lars_update(
                params,
                grads,
                buffers,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                eta=group["eta"],
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                impl=self.impl,
            )
        return loss

    def _by_form(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
        """The update of a form without kernels: what it adapts, and what it leaves alone."""
        options = {name: group[name] for name in ("weight_decay", "momentum", "eta")} | {"lr": float(group["lr"])}
        for adapted in (True, False):
            chosen = [i for i, p in enumerate(params) if self._adapts(group, p) == adapted]
            if chosen:
                own = ([part[i] for i in chosen] for part in (params, grads, buffers))
                FORMS[self.form](*own, adapted=adapted, **options)

    def _adapts(self, group: dict[str, Any], param: Tensor) -> bool:
        return group["adapted"] and (param.ndim != 1 or self.form == "larc")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch.amp.GradScaler leaves unscaling to ``step``: it then sets ``grad_scale`` and ``found_inf``."""
        if self.form != "official":
            return False
        chosen = choose_for(self.impl, self._params())
        return reads_device_scalars(chosen) and (self.capturable or chosen.name == "cuda")

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _momentum_buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def lars_groups(adapted: Sequence[Tensor], plain: Sequence[Tensor], *, form: str = "official") -> list[dict[str, Any]]:
    """Parameter groups in as few updates as can be: vectors go with the adapted, since LARS leaves them alone anyway.

    The form "larc" leaves no parameter alone: all are adapted. ``ValueError`` where an adapted parameter has one
    dimension in another form.
    """
    if form == "larc":
        return [{"params": [*adapted, *plain]}]
    if narrow := [tuple(param.shape) for param in adapted if param.ndim <= 1]:
        raise ValueError(f"LARS does not adapt parameters of one dimension, such as one of shape {narrow[0]}")
    vectors, others = [p for p in plain if p.ndim <= 1], [p for p in plain if p.ndim > 1]
    groups = [{"params": [*adapted, *vectors]}, {"params": others, "adapted": False}]
    return [group for group in groups if group["params"]]


def with_momenta(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """``sgd`` whose momenta begin as zeros where its kernel may skip a step, which changes no other step.

    torch makes them in the first step, and if that is skipped (fp16's first one mostly is) they are never written.
    """
    for group in sgd.param_groups:
        for param in group["params"] if group["fused"] and group["momentum"] else ():
            sgd.state[param]["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    return sgd


def half_cosine(step: int, *, start: float, end: float, steps: int) -> float:
    """``end`` - (``end`` - ``start``) (1 + cos(pi step / steps)) / 2: ``start`` at step 0, ``end`` at ``steps``."""
    return end - (end - start) * (1.0 + math.cos(math.pi * step / steps)) / 2.0


def cosine_schedule(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    base_lr: float,
    batch_size: int,
    final: float = 0.001,
) -> float:
    """Learning rate of ``step`` (counted from 0) out of ``steps``: main_vicreg.py's adjust_learning_rate.

    The peak is ``base_lr * batch_size / 256``, where ``batch_size`` is the total over all devices. It is reached
    linearly from 0 over ``warmup_steps``, then falls by half a cosine to ``final`` times the peak at ``steps``.

    Raises ``ValueError`` where the step lies outside the run or the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit a run of {steps}: 0 <= warm-up < steps")
    if not 0 <= step <= steps:
        raise ValueError(f"step {step} lies outside a run of {steps} steps")
    peak = base_lr * batch_size / 256
    if step < warmup_steps:
        return peak * step / warmup_steps
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
    return peak * cosine + peak * final * (1 - cosine)
