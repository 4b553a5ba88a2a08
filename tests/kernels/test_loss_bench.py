"""The loss benchmark: its rows, its errors, and that its peer is the official form. Nothing here is timed.

Shape suffixes: N samples of the batch, D embedding width.
"""

from __future__ import annotations

import pytest
import torch

from fastvicreg.contracts import UserError
from fastvicreg.kernels.loss.ranks import Ranks
from fastvicreg.kernels.loss.reference import official_terms
from fastvicreg.profiles.bench import loss


def test_every_implementation_that_runs_has_a_row_with_its_errors():
    rows = loss.run(sizes=((16, 48), (48, 16)), dtype="bfloat16", repeats=1)
    assert [(row["impl"], row["n"], row["d"], row["dtype"]) for row in rows] == [
        (impl, n, d, dtype)
        for n, d, dtype in (
            *((*size, "float64") for size in loss.AGREEMENT),
            (16, 48, "bfloat16"),
            (48, 16, "bfloat16"),
        )
        for impl in ("official", "gram")
    ]
    for row in rows:
        assert row.keys() == set(loss.COLUMNS) - {"graph_ms"}  # a graph is a GPU's
        assert min(row[name] for name in ("ms", "floor_ms", "ratio", "peak_bytes")) > 0
        assert row["loss_error"] < (1e-12 if row["dtype"] == "float64" else 1e-2)
        assert row["grad_error"] < (1e-12 if row["dtype"] == "float64" else 1e-2)
    gram, official = rows[1], rows[0]
    assert gram["peak_bytes"] < official["peak_bytes"]


@pytest.mark.parametrize(("n", "d"), [(24, 40), (40, 24)])
def test_the_peer_under_autocast_is_the_same_loss(n: int, d: int):
    za_ND, zb_ND = loss.embeddings(n, d, 0, torch.bfloat16, "cpu")
    truth = loss.forward_backward(za_ND.double(), zb_ND.double(), "reference")()
    found = loss.official_call(za_ND, zb_ND, official_terms)()
    assert loss.relative_error(found[:1], truth[:1]) < 1e-2
    assert 0 < loss.relative_error(found[1:], truth[1:]) < 0.1  # its means and deviations are half types too


def test_the_peer_compiles_whole():
    za_ND, zb_ND = loss.embeddings(24, 40, 0, torch.float32, "cpu")
    compiled = torch.compile(official_terms, fullgraph=True, backend="aot_eager")
    arguments = za_ND, zb_ND, loss.OFFICIAL, Ranks()
    torch.testing.assert_close(compiled(*arguments), official_terms(*arguments))


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match="unknown dtype 'bfloat8'; did you mean 'bfloat16'"):
        loss.run(dtype="bfloat8")
