"""BYOL: a predictor on the online projection is trained to give the target network's projection of the other view.

Shape suffixes: B batch, D projection width.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastvicreg.contracts import Column, Encoder, Terms
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.embeddings import unit
from fastvicreg.methods.heads import expander
from fastvicreg.methods.two_views import Predicting, Predictions


class BYOL(Predicting):
    """As deepmind-research's byol_experiment.py, but that the target begins as a copy of the online network.

    Each part of it can be left out, for the rows of VICReg's Table 4: without momentum encoder the targets are the
    online projections of the other view, without predictor the projection itself is the prediction.
    """

    title = "BYOL"

    def __init__(self, encoder: Encoder, config: BYOLConfig, *, impl: str = "auto") -> None:
        """``impl`` names the loss kernel of the variance and covariance terms."""
        projector = expander(encoder.features, config.projector, batch_norm=config.batch_norm)
        width = config.projector[-1]
        predictor: nn.Module = nn.Identity()
        if config.predictor:
            predictor = expander(width, (*config.predictor_hidden, width), batch_norm=config.batch_norm)
        super().__init__(encoder, projector, predictor, config, Column("prediction", "pred"), impl=impl)

    def likely_cause(self) -> str:
        config = self.config
        if not config.predictor and not config.variance:
            return "--no-predictor leaves nothing against it: --variance 1 does without one"
        if config.momentum_encoder and config.momentum < 0.9:
            return f"--momentum {config.momentum:g} lets the target run after its follower: .97 to .996 is published"
        if not config.stop_gradient and not config.variance:
            return "--no-stop-gradient leaves nothing against it: --variance 1 does without one"
        return ""

    def loss(self, embeddings: Predictions, targets: tuple[Tensor, Tensor] | None) -> Terms:
        """Squared distance of unit vectors, each view's prediction to the other's target: summed, 0 to 8."""
        config = self.config
        pa_BD, pb_BD, za_BD, zb_BD = embeddings
        ta_BD, tb_BD = targets or (za_BD, zb_BD)
        total = byol_loss(pa_BD, tb_BD, stop_gradient=config.stop_gradient)
        total = total + byol_loss(pb_BD, ta_BD, stop_gradient=config.stop_gradient)
        return self.terms(total, {"prediction": total.detach()}, za_BD, zb_BD, targets)


def byol_loss(prediction_BD: Tensor, target_BD: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Mean over the batch of ``|n(p) - n(t)|^2`` for unit vectors ``n``; the target is a constant to the gradient."""
    p_BD, t_BD = unit(prediction_BD), unit(target_BD.detach() if stop_gradient else target_BD)
    return (p_BD - t_BD).square().sum(1).mean()
