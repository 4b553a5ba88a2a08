"""A linear classifier that learns from the features of a run's own steps while it trains, and never speaks back.

Shape suffixes: B rows of a step (views one after another), F feature width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Terms
from fastvicreg.train.device import sent

NAME = "probe"
"""Under which a checkpoint holds its tensors."""
MOMENTUM = 0.9
COLUMN = Column("probe_accuracy", "probe %")


class OnlineProbe(nn.Module):
    """Logistic regression on detached features by SGD: no forward pass of its own, no gradient into the encoder.

    Weights and momenta are buffers, and its gradient is written out, so that neither autograd, the optimizer nor
    DistributedDataParallel knows of it, while checkpoints hold it. Over several processes gradients are averaged. A
    step whose features are not finite does not move it.
    """

    weight_CF: Tensor
    bias_C: Tensor
    moment_CF: Tensor
    moment_C: Tensor

    def __init__(self, features: int, classes: int, *, processes: int = 1) -> None:
        super().__init__()
        self._processes = processes
        self._seen: list[Tensor] = []
        for name, shape in (("weight_CF", (classes, features)), ("bias_C", (classes,))):
            self.register_buffer(name, torch.zeros(shape))
            self.register_buffer(name.replace("weight", "moment").replace("bias", "moment"), torch.zeros(shape))

    def listen(self, encoder: nn.Module) -> None:
        """Take the features of every training pass of ``encoder`` from now on."""

        def take(module: nn.Module, _: object, result: Tensor | tuple[Tensor, Tensor]) -> None:
            if module.training:
                features_BF = result[0] if isinstance(result, tuple) else result
                self._seen.append(features_BF.detach())

        encoder.register_forward_hook(take)

    @torch.no_grad()
    def learn(self, terms: Terms, label_B: Tensor, lr: float) -> Terms:
        """One update by what was heard since the last; ``terms`` with ``probe_loss`` and ``probe_accuracy`` in percent.

        ``label_B`` are the classes of one view's rows, -1 where there is none. Both figures are of the classifier as it
        was before the update, over all processes' rows.
        """
        features_BF = torch.cat(self._seen).to(self.weight_CF.dtype)
        self._seen.clear()
        label_B = sent(label_B, features_BF.device)
        label_B = label_B.repeat(len(features_BF) // len(label_B))
        known_B = label_B >= 0
        count = known_B.sum().clamp_min(1)
        logits_BC = F.linear(features_BF, self.weight_CF, self.bias_C)
        loss = F.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum") / count
        accuracy = (logits_BC.argmax(1) == label_B).sum() * 100 / count
        one_hot_BC = F.one_hot(label_B.clamp_min(0), logits_BC.shape[1])
        error_BC = (logits_BC.softmax(1) - one_hot_BC) * (known_B / count)[:, None]
        grad_CX = torch.cat([error_BC.T @ features_BF, error_BC.sum(0)[:, None]], 1)
        if self._processes > 1:  # the figures go along with the gradient
            sent_X = torch.cat([grad_CX.flatten(), torch.stack([loss, accuracy.to(loss.dtype)])])
            dist.all_reduce(sent_X)
            sent_X /= self._processes
            grad_CX, (loss, accuracy) = sent_X[:-2].view_as(grad_CX), sent_X[-2:].unbind()
        self._update(grad_CX, lr)
        return Terms(terms.total, {**terms.parts, "probe_loss": loss, "probe_accuracy": accuracy})

    def _update(self, grad_CX: Tensor, lr: float) -> None:
        finite = grad_CX.isfinite().all()
        width = self.weight_CF.shape[1]
        for value, moment, grad in (
            (self.weight_CF, self.moment_CF, grad_CX[:, :width]),
            (self.bias_C, self.moment_C, grad_CX[:, width]),
        ):
            moved = MOMENTUM * moment + grad
            moment.copy_(torch.where(finite, moved, moment))
            value.copy_(torch.where(finite, value - lr * moved, value))

    @torch.no_grad()
    def predict(self, features_BF: Tensor) -> Tensor:
        """Classes of features, int64."""
        return F.linear(features_BF.to(self.weight_CF.dtype), self.weight_CF, self.bias_C).argmax(1)


def without_probe(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors but the probe's: those of the method alone."""
    return {name: value for name, value in tensors.items() if not name.startswith(f"{NAME}.")}
