"""VICReg: an expander on both views' features, and the variance, invariance and covariance terms on its embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from fastvicreg import stages
from fastvicreg.config import ObjectiveConfig
from fastvicreg.contracts import Terms
from fastvicreg.kernels.loss import expected_covariance, known, vicreg_loss
from fastvicreg.model import expander


class VICReg(nn.Module):
    """Paper Algorithm 1; official main_vicreg.py."""

    def __init__(self, features: int, widths: tuple[int, ...], config: ObjectiveConfig, *, impl: str = "auto") -> None:
        """``UserError`` where ``impl`` names no implementation of the loss."""
        super().__init__()
        known(impl)
        self.expander = expander(features, widths)
        self._config = config
        self._impl = impl
        self.process_group: dist.ProcessGroup | None = None
        """Processes whose rows make the batch; None: all of the run's."""

    def forward(self, views: tuple[Tensor, ...], encoder: nn.Module) -> Terms:
        """Two views, each (B, C, H, W), to the terms.

        Beside the loss's own terms ``parts`` holds what tells a healthy run from a collapsing one:
        ``embedding_std`` and ``representation_std``, the mean over dimensions of the standard deviation over the
        batch, and the covariance term's value for independent embeddings and its true minimum, both at the
        embeddings' measured variances. Among several processes the loss's terms are the global batch's; the
        deviations and variances of the others are of this process's own samples.
        """
        if len(views) != 2:
            raise ValueError(f"VICReg takes 2 views, not {len(views)}: choose a recipe of two.")
        with record_function(stages.FORWARD):
            # One view at a time, as the official code: each gets its own batch statistics.
            features = [encoder(view) for view in views]
            za_BD, zb_BD = (self.expander(feature_BF) for feature_BF in features)
        with record_function(stages.LOSS):
            config = self._config
            loss = vicreg_loss(
                za_BD,
                zb_BD,
                invariance=config.invariance,
                variance=config.variance,
                covariance=config.covariance,
                form=config.loss_form,
                impl=self._impl,
                group=self.process_group or (dist.group.WORLD if _processes() > 1 else None),
            )
        parts = {"invariance": loss.invariance, "variance": loss.variance, "covariance": loss.covariance}
        return Terms(loss.total, parts | _health(features[0], za_BD, zb_BD))

    def after_step(self, schedule: Mapping[str, float]) -> None:
        """VICReg has no target network to move."""


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def _health(features_BF: Tensor, za_BD: Tensor, zb_BD: Tensor) -> dict[str, Tensor]:
    var_a_D, var_b_D = za_BD.float().var(0), zb_BD.float().var(0)
    independent, minimum = expected_covariance(len(za_BD) * _processes(), var_a_D, var_b_D)
    return {
        "covariance_independent": independent,
        "covariance_minimum": minimum,
        "embedding_std": (var_a_D.sqrt().mean() + var_b_D.sqrt().mean()) / 2,
        "representation_std": features_BF.float().std(0).mean(),
    }
