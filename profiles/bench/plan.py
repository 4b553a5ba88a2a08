"""The plan's cost: an ImageNet epoch's order, and one large batch's boxes and photometric parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import named_recipe
from fastvicreg.profiles.bench.registry import Benchmark
from fastvicreg.profiles.measure import interleaved

COLUMNS = ("part", "samples", "ms", "spread", "n")

IMAGENET = 1_281_167
BATCH = 4096


def run(repeats: int = 7, seed: int = 0) -> list[dict[str, Any]]:
    """One row a part; the two peers' permutations beside the plan's."""
    recipe = named_recipe("official")
    full = train_plan(IMAGENET, seed=seed, recipe=recipe, image_size=224)
    blocks = train_plan(IMAGENET, seed=seed, recipe=recipe, image_size=224, shuffle="blocks")
    index_B = full.order(0)[:BATCH]
    wh_B2 = torch.tensor([[500, 375]]).expand(BATCH, 2).contiguous()
    parts = {
        ("order, full", IMAGENET): lambda: full.order(1),
        ("order, blocks", IMAGENET): lambda: blocks.order(1),
        ("numpy permutation", IMAGENET): lambda: np.random.default_rng(seed).permutation(IMAGENET),
        ("torch randperm", IMAGENET): lambda: torch.randperm(IMAGENET),
        ("boxes, 2 views", BATCH): lambda: full.boxes(0, index_B, wh_B2),
        ("photometric, 2 views", BATCH): lambda: full.photometric(0, index_B),
    }
    timings = interleaved({name: call for (name, _), call in parts.items()}, repeats=repeats)
    return [
        {"part": name, "samples": samples, "ms": timings[name].ms, "spread": timings[name].spread, "n": repeats}
        for name, samples in parts
    ]


BENCHMARK = Benchmark(run, COLUMNS, key=("part", "samples"))
