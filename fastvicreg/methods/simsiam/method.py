"""SimSiam: a predictor on one view's projection is trained to give the other view's, which no gradient reaches.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, ParamGroup, Terms, by_dimension
from fastvicreg.methods.embeddings import wide
from fastvicreg.methods.heads import mlp
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.two_views import Predicting, Predictions


class SimSiam(Predicting):
    """As facebookresearch/simsiam's builder.py; each part can be left out, for the rows of VICReg's Table 4."""

    title = "SimSiam"

    def __init__(self, encoder: Encoder, config: SimSiamConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        width, norm = config.projector[-1], config.batch_norm
        projector = mlp(encoder.features, config.projector, hidden_bias=False, last_bias=not norm, batch_norm=norm)
        if norm:
            projector.append(nn.BatchNorm1d(width, affine=False))
        predictor: nn.Module = nn.Identity()
        if config.predictor:
            widths = (*config.predictor_hidden, width)
            predictor = mlp(width, widths, hidden_bias=False, last_bias=True, batch_norm=norm)
        super().__init__(encoder, projector, predictor, config, Column("similarity", "cos"), impl=impl)

    def likely_cause(self) -> str:
        config = self.config
        if config.variance:
            return ""
        if not config.stop_gradient:
            return "--no-stop-gradient leaves nothing against it: --variance 1 does without one"
        if not config.predictor:
            return "--no-predictor leaves nothing against it: --variance 1 does without one"
        return "" if config.batch_norm else "--no-batch-norm makes it likely: --variance 1 does without it"

    def loss(self, embeddings: Predictions, targets: tuple[Tensor, Tensor] | None) -> Terms:
        """Minus the mean of both directions' cosines: -1 where each prediction is the other view's projection."""
        pa_BD, pb_BD, za_BD, zb_BD = embeddings
        ta_BD, tb_BD = targets or (za_BD, zb_BD)
        constant = self.config.stop_gradient
        similarity = (
            mean_cosine(pa_BD, tb_BD, stop_gradient=constant) + mean_cosine(pb_BD, ta_BD, stop_gradient=constant)
        ) / 2
        return self.terms(-similarity, {"similarity": similarity.detach()}, za_BD, zb_BD, targets)

    def param_groups(self) -> list[ParamGroup]:
        """The predictor's learning rate is constant (main_simsiam.py, --fix-pred-lr), unless told otherwise."""
        constant = self.config.predictor_constant_lr
        predictor = [group._replace(constant_lr=constant) for group in by_dimension(self.predictor)]
        return [*self.encoder.param_groups(), *by_dimension(self.projector), *predictor]


def mean_cosine(prediction_BD: Tensor, target_BD: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Mean over the batch of the cosine between rows (eps 1e-8); the target is a constant to the gradient."""
    target_BD = wide(target_BD.detach() if stop_gradient else target_BD)
    return F.cosine_similarity(wide(prediction_BD), target_BD, dim=1).mean()
