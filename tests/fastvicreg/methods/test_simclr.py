"""SimCLR: the published loss's values, its two scales, and its head."""

from __future__ import annotations

import pytest
import torch
from methods import encoder
from torch import nn
from vectors import assert_vector, embeddings

from fastvicreg.methods.simclr.config import SimCLRConfig
from fastvicreg.methods.simclr.method import SimCLR, nt_xent
from fastvicreg.methods.two_views import Projections


@pytest.mark.parametrize(
    ("temperature", "value", "norm_a", "norm_b"),
    [
        (0.1, 0.561842989299, 0.331608886115, 0.302061814167),
        (0.2, 1.152494644752, 0.224714191380, 0.186251177446),
        (0.5, 2.043225262708, 0.104321099539, 0.083881342393),
    ],
)
def test_the_loss_has_the_published_form_s_value_and_gradients(
    temperature: float, value: float, norm_a: float, norm_b: float
) -> None:
    """The mean over both views' anchors, as solo-learn and lightly compute it."""
    assert_vector(lambda za, zb: nt_xent(za, zb, temperature), value, norm_a, norm_b)


def test_the_official_form_is_twice_the_mean() -> None:
    """google-research/simclr's objective.py: softmax cross-entropy of view a plus that of view b."""
    za, zb = (z.detach() for z in embeddings())
    torch.manual_seed(0)
    settings = {"projector": (8, 4), "temperature": 0.5}
    mean, official = (
        SimCLR(encoder(), SimCLRConfig(loss_form=form, **settings)).loss(Projections(za, zb), None)  # type: ignore[arg-type]
        for form in ("mean", "official")
    )
    assert float(official.total) == pytest.approx(2 * 2.043225262708, abs=1e-9)
    assert float(mean.total) == pytest.approx(2.043225262708, abs=1e-9)
    assert official.parts["contrast"] == mean.parts["contrast"]


def test_anchors_written_out_one_by_one_give_the_same() -> None:
    za, zb = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    views = [*torch.nn.functional.normalize(torch.cat((za, zb)), dim=1)]
    losses = []
    for anchor in range(10):
        others = [other for other in range(10) if other != anchor]
        logits = torch.stack([views[anchor] @ views[other] / 0.3 for other in others])
        losses.append(-logits.log_softmax(0)[others.index((anchor + 5) % 10)])
    torch.testing.assert_close(nt_xent(za, zb, 0.3), torch.stack(losses).mean())


def test_the_head_ends_in_a_scale_without_an_offset() -> None:
    method = SimCLR(encoder(), SimCLRConfig(projector=(24, 8)))
    layers = list(method.projector)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    last = layers[-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert (last.weight.requires_grad, last.bias.requires_grad) == (True, False)
    trained = {id(param) for group in method.param_groups() for param in group.params}
    assert id(last.weight) in trained
    assert id(last.bias) not in trained
    bare = list(SimCLR(encoder(), SimCLRConfig(projector=(24, 8), batch_norm=False)).projector)
    assert [type(layer) for layer in bare] == [nn.Linear, nn.ReLU, nn.Linear]


def test_half_types_are_reduced_in_fp32() -> None:
    za, zb = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    found = nt_xent(za, zb, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nt_xent(za.double(), zb.double(), 0.1).float(), rtol=1e-5, atol=1e-5)
