"""The feed on a GPU: what a late reader finds there is what a CPU makes of the same batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.kernels.augment import choose
from fastvicreg.pipelines import build_engine, open_source
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe

pytestmark = pytest.mark.gpu

SLEEP = 20_000_000
"""Cycles: longer than a batch takes to be decoded, so that the host has later ones before this one is read."""


@pytest.mark.parametrize("recipe", ["official", "multicrop"])
@pytest.mark.parametrize("impl", ["cuda", "reference"])
def test_views_are_a_cpu_s_however_late_they_are_read(make_folder, impl: str, recipe: str) -> None:
    """Page-locked crops, views and the stream of copies are used again meanwhile: nobody may write over this batch."""
    try:
        choose(impl, "cuda", torch.float32)
    except UserError as error:
        pytest.skip(str(error))
    source = open_source(make_folder(train=96, val=0, name="flat"))
    plan = train_plan(
        len(source), seed=0, recipe=named_recipe(recipe, small_size=24 if recipe == "multicrop" else 0), image_size=48
    )

    def views(device: str) -> list[Tensor]:
        engine = build_engine("native", source, plan, batch_size=8, device=device)
        feed = AugmentedFeed(engine, plan, device=device, impl=impl if device == "cuda" else "reference")
        found = []
        for epoch in range(2):
            for fed in feed.epoch(Cursor(epoch, 0)):
                if device == "cuda":
                    torch.cuda._sleep(SLEEP)
                found += [view.clone() for view in fed.batch.views]
        engine.close()
        return [view.cpu() for view in found]

    there, here = views("cuda"), views("cpu")
    assert len(there) == len(here) == 2 * 12 * plan.views
    for view, wanted in zip(there, here, strict=True):
        assert view.is_contiguous(memory_format=torch.channels_last)
        if impl == "cuda":
            assert torch.equal(view, wanted)
        else:  # where a rounding at one half falls on the other side
            assert float((view != wanted).float().mean()) < 2e-3
