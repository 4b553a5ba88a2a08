"""W-MSE: the published loss's values, whitening that whitens, slices, and cuts that a counter decides."""

from __future__ import annotations

import pytest
import torch
from methods import encoder
from torch import Tensor
from vectors import assert_vector

from fastvicreg.contracts import Horizon
from fastvicreg.errors import UserError
from fastvicreg.methods.two_views import Projections
from fastvicreg.methods.wmse.config import WMSEConfig
from fastvicreg.methods.wmse.method import WMSE, permutation, whiten, whitened_mse


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wmse(**settings: object) -> WMSE:
    torch.manual_seed(0)
    return WMSE(encoder(), WMSEConfig(projector=(24, 3), w_size=6, **settings))  # type: ignore[arg-type]


def test_the_loss_has_the_published_form_s_value_and_gradients() -> None:
    """htdt/self-supervised's w_mse.py: one slice of 16, eps 0, gradients into both views."""
    expected = 0.361640432134, 0.536745991094, 0.553612542736
    assert_vector(lambda za, zb: whitened_mse(za, zb, 16), *expected)


def test_whitened_rows_have_the_identity_as_covariance() -> None:
    z = 5 + noise(40, 6) @ noise(6, 6)
    torch.testing.assert_close(whiten(z).T.cov(), torch.eye(6, dtype=torch.float64))
    assert float(whiten(z).mean(0).abs().max()) < 1e-12


def test_eps_mixes_the_identity_in() -> None:
    z = noise(40, 6) @ noise(6, 6)
    centred = z - z.mean(0)
    lower = torch.linalg.cholesky(0.7 * z.T.cov() + 0.3 * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(whiten(z, 0.3), torch.linalg.solve(lower, centred.T).T)


def test_slices_are_whitened_by_themselves_and_an_incomplete_one_is_left_out() -> None:
    za, zb = noise(2, 20, 4).unbind()
    expected = (whitened_mse(za[:8], zb[:8], 8) + whitened_mse(za[8:16], zb[8:16], 8)) / 2
    torch.testing.assert_close(whitened_mse(za, zb, 8), expected)


def test_a_singular_slice_is_nan_and_no_exception() -> None:
    z = noise(16, 4).requires_grad_()
    collapsed = torch.zeros(16, 4, dtype=torch.float64)
    assert whitened_mse(z, collapsed, 16).isnan()


def test_cuts_are_permutations_that_the_counter_decides() -> None:
    seen = [permutation(50, torch.tensor(step), cut) for step in (0, 1, 10**12) for cut in (1, 2)]
    for order in seen:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in seen}) == len(seen)
    assert torch.equal(seen[3], permutation(50, torch.tensor(1), 2))
    places = torch.stack([permutation(50, torch.tensor(step), 1) for step in range(400)]).double()
    # Uniform: the mean place of a row over 400 permutations is 24.5 with a standard error of 14.4 / 20.
    assert float((places.mean(0) - 24.5).abs().max()) < 5 * 14.43 / 20


def test_more_cuts_are_a_mean_over_other_slices() -> None:
    za, zb = noise(2, 12, 3).unbind()
    method = wmse(w_iter=2)
    order = permutation(12, method.cuts, 1)
    expected = (whitened_mse(za, zb, 6) + whitened_mse(za[order], zb[order], 6)) / 2
    torch.testing.assert_close(method.loss(Projections(za, zb), None).total, expected)
    before = method.loss(Projections(za, zb), None).total
    method.after_update({}, torch.tensor(False))
    assert method.loss(Projections(za, zb), None).total == before
    method.after_update({}, True)
    assert method.loss(Projections(za, zb), None).total != before


def test_a_slice_above_the_batch_or_below_twice_the_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"--w-size 6 is above the batch of 4 .* give --w-size 4"):
        wmse().schedules(Horizon(100, 10, 4))
    with pytest.raises(UserError, match="--w-size 100 is below twice the projection's width, 64"):
        WMSEConfig(w_size=100).check()
