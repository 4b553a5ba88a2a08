"""Stages of an encoder whose blocks are computed again in backward, so that of each its input alone is kept.

The second pass of a block is to give what the first gave, and to leave no trace: each view's statistics are its own
again, stochastic depth leaves out the same, and running statistics, which the first pass has moved, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastvicreg.contracts import Method
from fastvicreg.encoders.blocks import Blocks
from fastvicreg.encoders.drop_path import Drops
from fastvicreg.kernels.norm import BatchNorm, JointViews, SecondPass, forget
from fastvicreg.methods.views import counted


def recompute_stages(method: Method, stages: Sequence[int]) -> None:
    """Let these stages, from 1, of each of ``method``'s encoders that has them be computed again, block by block.

    After ``replace_norms`` and ``drop_path.install``, whose work it reads. A compiled step has no use for it.
    """
    for encoder in method.encoders.values():
        again = _Again(getattr(encoder, "joint_views", None), getattr(encoder, "drops", None), SecondPass())
        for blocks in blocks_of(encoder, stages):
            blocks.again = again
            for part in blocks.modules():
                if isinstance(part, BatchNorm):
                    part.second_pass = again.second_pass


def blocks_of(encoder: nn.Module, stages: Sequence[int]) -> list[Blocks]:
    """Those of ``stages``, from 1, that it has."""
    found = [part for part in encoder.modules() if isinstance(part, Blocks)]
    return [found[number - 1] for number in stages if number <= len(found)]


@dataclass(frozen=True)
class _Again:
    joint: JointViews | None
    drops: Drops | None
    second_pass: SecondPass

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        # No block draws from torch's generators, which would otherwise be read from the device.
        y = checkpoint(self._passes(block), x, use_reentrant=False, preserve_rng_state=False)
        return forget(y)  # the next block's input is kept, and not what this one made it from

    def _passes(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """``block``, whose passes after the first run in what the first finds, wherever backward comes to them."""
        views = self.joint.count if self.joint else 1
        drawn = (self.drops.factor_VKB, self.drops.view) if self.drops else None
        passed = False

        def run(x: Tensor) -> Tensor:
            nonlocal passed
            with self._second(views, drawn) if passed else nullcontext():
                passed = True
                return block(x)

        return run

    @contextmanager
    def _second(self, views: int, drawn: tuple[Tensor | None, int] | None) -> Iterator[None]:
        with counted(self.joint, views) if self.joint else nullcontext():
            before = self.drops and (self.drops.factor_VKB, self.drops.view)
            if self.drops and drawn:
                self.drops.factor_VKB, self.drops.view = drawn
            self.second_pass.runs = True
            try:
                yield
            finally:
                self.second_pass.runs = False
                if self.drops and before:
                    self.drops.factor_VKB, self.drops.view = before
