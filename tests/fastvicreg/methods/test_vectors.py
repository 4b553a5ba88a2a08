"""Methods' whole losses in fp64 on the embeddings that the published losses' own code was run on: value, gradients.

Each method's file tests its loss function on them; here they go through ``Method.loss``, which a run takes. Of DINO and
VICRegL there are no such values: their files hold them to loops that write the loss out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import built
from torch import Tensor
from vectors import NEAR, assert_vector, embeddings

from fastvicreg.kernels.loss import vicreg_loss
from fastvicreg.methods.barlow_twins.config import BarlowTwinsConfig
from fastvicreg.methods.byol.config import BYOLConfig
from fastvicreg.methods.moco.config import MoCoConfig
from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.simsiam.config import SimSiamConfig
from fastvicreg.methods.swav.config import SwAVConfig
from fastvicreg.methods.two_views import Predictions, Projections
from fastvicreg.methods.vicreg.config import VICRegConfig
from fastvicreg.methods.vicreg.method import Embeddings
from fastvicreg.methods.wmse.config import WMSEConfig

HEAD = (8, 4)

VICREG = {
    "paper": (14.147347237160, 3.593565608680, 2.888730864092),
    "official": (7.750525337116, 2.179110380187, 1.564135837626),
}
TERMS = {"invariance": 0.04492827703197182, "variance": 0.5117457520035276, "covariance": 0.23049651127267445}
"""Of VICReg, unweighted: the paper's, whose hinge is not halved."""

Loss = Callable[[Tensor, Tensor], Tensor]


def byol() -> Loss:
    method = built(BYOLConfig(projector=HEAD, predictor_hidden=(8,)))
    return lambda za, zb: method.loss(Predictions(za, zb, za, zb), (za.detach(), zb.detach())).total


def simsiam() -> Loss:
    method = built(SimSiamConfig(projector=HEAD, predictor_hidden=(8,)))
    return lambda za, zb: method.loss(Predictions(za, zb, za, zb), None).total


def of_projections(config: Any) -> Loss:
    method = built(config)
    return lambda za, zb: method.loss(Projections(za, zb), None).total


def moco() -> Loss:
    method = built(MoCoConfig(projector=HEAD, queue=8)).double()
    k, j = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    method.queues[0].get_buffer("keys_KD").copy_(F.normalize((0.4 * j + 0.9 * k + 0.2 * j * k).cos(), dim=1))
    return lambda za, zb: method.loss([za], (zb.detach(),)).total


def swav() -> Loss:
    method = built(SwAVConfig(projector=HEAD, prototypes=6)).double()
    r, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    with torch.no_grad():
        method.prototypes.weight.copy_(F.normalize((0.3 * r + 1.1 * j).cos(), dim=1))
    return lambda za, zb: method.loss((za, zb), None).total


VECTORS: dict[str, tuple[Callable[[], Loss], tuple[float, float, float]]] = {
    "byol": (byol, (0.146266698141, 0.101078297022, 0.094336833363)),
    "simsiam": (simsiam, (-0.963433325465, 0.025269574256, 0.023584208341)),
    "barlow_twins": (
        lambda: of_projections(BarlowTwinsConfig(projector=HEAD)),
        (0.013699822920, 0.016009930494, 0.013973005700),
    ),
    "simclr": (
        lambda: of_projections(SimCLRConfig(projector=HEAD, temperature=0.2)),
        (1.152494644752, 0.224714191380, 0.186251177446),
    ),
    "simclr official": (
        lambda: of_projections(SimCLRConfig(projector=HEAD, temperature=0.2, loss_form="official")),
        (2 * 1.152494644752, 2 * 0.224714191380, 2 * 0.186251177446),
    ),
    "wmse": (
        lambda: of_projections(WMSEConfig(projector=HEAD, w_size=16)),
        (0.361640432134, 0.536745991094, 0.553612542736),
    ),
    "moco": (moco, (0.454020373844, 0.130172499516, 0.0)),
    "swav": (swav, (1.432893166458, 0.268458673267, 0.264992229132)),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_method_s_loss_has_the_published_form_s_value_and_gradients(name: str) -> None:
    made, expected = VECTORS[name]
    assert_vector(made(), *expected)


@pytest.mark.parametrize("form", VICREG)
def test_vicreg_s_loss_has_the_released_code_s_value_and_gradients(form: Any) -> None:
    """main_vicreg.py, whose hinge is halved, and the paper's equation 6, where it is not."""
    method = built(VICRegConfig(expander=HEAD, loss_form=form))

    def loss(za: Tensor, zb: Tensor) -> Tensor:
        return method.loss(Embeddings((za, zb), za.detach()), None).total

    assert_vector(loss, *VICREG[form])


@pytest.mark.parametrize("form", VICREG)
@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_the_kernels_have_the_same_value_terms_and_gradients(impl: str, form: Any) -> None:
    assert_vector(lambda za, zb: vicreg_loss(za, zb, form=form, impl=impl).total, *VICREG[form])
    terms = vicreg_loss(*(z.detach() for z in embeddings()), form=form, impl=impl)
    halves = {"variance": 0.5 if form == "official" else 1.0}
    for name, value in TERMS.items():
        assert float(getattr(terms, name)) == pytest.approx(halves.get(name, 1.0) * value, abs=NEAR), name


def test_the_hinge_of_unit_vectors_has_the_reference_value() -> None:
    """Paper D.5: gamma is 1/sqrt(D), here .5; what ``--regularize normalized`` stands in for."""
    unit = (F.normalize(z.detach(), dim=1) for z in embeddings())
    found = vicreg_loss(*unit, invariance=0.0, covariance=0.0, gamma=0.5, form="paper", impl="reference").variance
    assert float(found) == pytest.approx(0.0078371180, abs=NEAR)
