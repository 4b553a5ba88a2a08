"""The registry of all kernels: names their implementations, and chooses, logs and refuses them. Imports no torch.

A new implementation is its own file and one line in ``KERNELS``. Its module may define ``obstacle(device, dtype)``,
which says why it cannot run on tensors of that type of device and that dtype, or "". ``--kernel``, ``doctor``, the
machine code of a wheel and the benchmarks iterate over ``KERNELS``.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastvicreg.errors import UserError
from fastvicreg.registry import unknown

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class Implementation:
    """One implementation of a kernel, by name; nothing is imported before it is asked for."""

    name: str
    target: str
    """"package.module:function"; the loss's are modules (``kernels.loss.operators.Method``)."""
    auto_on: str = ""
    """The type of device on which "auto" considers it: "cpu", "cuda", "any", or "" for never."""
    auto_for: tuple[str, ...] = ()
    """The dtypes for which "auto" considers it; empty: all that it can run."""
    prebuilt: bool = False
    """Whether a wheel carries its machine code: its module then defines ``variants()``."""
    remedy: str = "a GPU from sm_80 on"
    """How to make it run where it cannot, for ``doctor``."""

    def module(self) -> ModuleType:
        """The module that holds it."""
        name, _, _ = self.target.partition(":")
        return sys.modules.get(name) or import_module(name)  # every call comes here; the import's own look-up is slower

    def function(self) -> Callable[..., Any]:
        """The function that ``target`` names."""
        module, _, function = self.target.partition(":")
        return getattr(sys.modules.get(module) or import_module(module), function)

    def obstacle(self, device: str, dtype: torch.dtype) -> str:
        """Why it cannot run on tensors of that type of device and dtype, or ""."""
        try:
            module = self.module()
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "fastvicreg":
                raise
            return f"{error.name} is not installed"
        ask = getattr(module, "obstacle", None)
        return ask(device, dtype) if ask else ""

    def considered(self, device: str, dtype: torch.dtype) -> bool:
        """Whether "auto" considers it there."""
        return self.auto_on in ("any", device) and (not self.auto_for or dtype_name(dtype) in self.auto_for)


class Kernel:
    """A kernel's implementations by name, in the order in which "auto" prefers them."""

    def __init__(self, name: str, implementations: Iterable[Implementation], *, trial: str) -> None:
        """``trial`` names a function (impl, device) -> str that runs an implementation once on data made there."""
        self.name = name
        self.implementations = {implementation.name: implementation for implementation in implementations}
        self._trial = trial
        # One log line for each distinct choice, and a dictionary's look-up for each later call.
        self.choose = functools.cache(self._choose)
        """(impl, device, dtype) -> ``Implementation``, logged once.

        Raises ``UserError`` for an unknown name, and for one that cannot run there, which is never replaced."""

    @property
    def names(self) -> tuple[str, ...]:
        """All implementations, without "auto"."""
        return tuple(self.implementations)

    def known(self, impl: str) -> None:
        """``UserError`` with the nearest name where ``impl`` is neither "auto" nor an implementation."""
        if impl != AUTO and impl not in self.implementations:
            raise UserError(unknown(f"{self.name} kernel", impl, (AUTO, *self.implementations)))

    def obstacle(self, impl: str, device: str, dtype: torch.dtype) -> str:
        """Why that implementation cannot run on tensors of that type of device and dtype, or ""."""
        self.known(impl)
        return self.implementations[impl].obstacle(device, dtype)

    def runnable(self, device: str, dtype: torch.dtype) -> list[str]:
        """The implementations without an obstacle there."""
        return [name for name, each in self.implementations.items() if not each.obstacle(device, dtype)]

    def trial(self, impl: str, device: str) -> str:
        """Run ``impl`` once on a little data; returns one line on the result."""
        module, _, function = self._trial.partition(":")
        return getattr(import_module(module), function)(impl, device)

    def _choose(self, impl: str, device: str, dtype: torch.dtype) -> Implementation:
        self.known(impl)
        where = f"{dtype_name(dtype)} on {device}"
        if impl == AUTO:
            chosen, passed_over = self._best(device, dtype)
            log.info("%s kernel for %s: %s (%s)", self.name, where, chosen.name, "; ".join(("auto", *passed_over)))
            return chosen
        if why := self.implementations[impl].obstacle(device, dtype):
            others = [each.name for each in self.implementations.values() if each.auto_on == "any"]
            way_out = " or ".join((AUTO, *others))
            raise UserError(f"the {self.name} kernel {impl!r} cannot run here: {why}; choose {way_out}.")
        log.info("%s kernel for %s: %s (as asked)", self.name, where, impl)
        return self.implementations[impl]

    def _best(self, device: str, dtype: torch.dtype) -> tuple[Implementation, list[str]]:
        """The first that "auto" considers and that can run, and why those before it cannot."""
        passed_over = []
        for implementation in self.implementations.values():
            if implementation.considered(device, dtype):
                why = implementation.obstacle(device, dtype)
                if not why:
                    return implementation, passed_over
                passed_over.append(f"not {implementation.name}: {why}")
        reasons = "; ".join(passed_over) or f"none is for {dtype_name(dtype)} on {device}"
        raise UserError(f"no {self.name} kernel can run here: {reasons}.")


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype without torch's prefix."""
    return str(dtype).removeprefix("torch.")


HALF = ("bfloat16", "float16")
LOSS, LARS, AUGMENT, RESAMPLE, NORM = (
    f"fastvicreg.kernels.{name}" for name in ("loss", "lars", "augment", "resample", "norm")
)
APEX = "NVIDIA's apex, built from its repository with its CUDA extensions, and a GPU"

KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "loss",
            (
                Implementation("reference", f"{LOSS}.reference"),
                Implementation("cuda", f"{LOSS}.cuda", auto_on="cuda", prebuilt=True),
                # Triton's fp32 products are slower than cuBLAS's, which "gram" calls.
                Implementation("triton", f"{LOSS}.triton_impl", auto_on="cuda", auto_for=HALF),
                Implementation("gram", f"{LOSS}.gram", auto_on="any"),
            ),
            trial=f"{LOSS}.trial:trial",
        ),
        Kernel(
            "lars",
            (
                Implementation("reference", f"{LARS}.reference:update"),
                Implementation("cuda", f"{LARS}.cuda:update", auto_on="cuda", prebuilt=True),
                Implementation("apex", f"{LARS}.apex:update", remedy=APEX),
                Implementation("foreach", f"{LARS}.foreach:update", auto_on="any"),
            ),
            trial=f"{LARS}.trial:trial",
        ),
        Kernel(
            "augment",
            (
                Implementation("numba", f"{AUGMENT}.parallel:augment", auto_on="cpu"),
                Implementation("cuda", f"{AUGMENT}.cuda:augment", auto_on="cuda", prebuilt=True),
                Implementation("reference", f"{AUGMENT}.reference:augment", auto_on="any"),
            ),
            trial=f"{AUGMENT}.trial:trial",
        ),
        Kernel(
            "resample",
            (
                Implementation("reference", f"{RESAMPLE}.reference:resample"),
                Implementation("torch", f"{RESAMPLE}.torch_impl:resample"),
                Implementation("numba", f"{RESAMPLE}.numba_impl:resample", auto_on="any"),
            ),
            trial=f"{RESAMPLE}.trial:trial",
        ),
        Kernel(
            "norm",
            (
                Implementation("reference", f"{NORM}.reference:batch_norm_act"),
                Implementation("triton", f"{NORM}.triton_impl:batch_norm_act", auto_on="cuda"),
                Implementation("native", f"{NORM}.native:batch_norm_act", auto_on="any"),
            ),
            trial=f"{NORM}.trial:trial",
        ),
    )
}


def prebuilt() -> list[ModuleType]:
    """The modules whose machine code a wheel carries."""
    return [each.module() for kernel in KERNELS.values() for each in kernel.implementations.values() if each.prebuilt]


def parse_choices(entries: Sequence[str]) -> dict[str, str]:
    """``--kernel part=impl ...`` as a mapping from every kernel to a name; those not given are "auto".

    ``UserError`` for a malformed entry, an unknown kernel or implementation, or a kernel given twice.
    """
    chosen = dict.fromkeys(KERNELS, AUTO)
    given: dict[str, str] = {}
    for entry in entries:
        part, equals, impl = entry.partition("=")
        if not equals or not impl:
            raise UserError(f"--kernel {entry!r} is no part=implementation; the parts are {', '.join(KERNELS)}.")
        if part not in KERNELS:
            raise UserError(f"--kernel {entry!r}: {unknown('kernel', part, KERNELS)}")
        KERNELS[part].known(impl)
        if given.setdefault(part, entry) != entry:
            raise UserError(f"--kernel names {part} twice, {given[part]!r} and {entry!r}: give one of them.")
        chosen[part] = impl
    return chosen
