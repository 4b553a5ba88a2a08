"""The loader for other people's loops: epochs, a cursor that resumes exactly, ranks, recipes, raw crops."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch

from fastvicreg.contracts import Cursor
from fastvicreg.errors import UserError
from fastvicreg.pipelines import ViewLoader, build_engine, open_source
from fastvicreg.pipelines.feed import AugmentedFeed
from fastvicreg.pipelines.loader import ViewBatch
from fastvicreg.pipelines.plan import train_plan
from fastvicreg.pipelines.recipes import Recipe, ViewRecipe, named_recipe

OPTIONS = {"batch_size": 4, "recipe": "small", "image_size": 24, "seed": 3, "workers": 2}


def same(left: Sequence[ViewBatch], right: Sequence[ViewBatch]) -> bool:
    """Whether both hold the same batches, to the last bit."""
    flat = [[(*batch.views, batch.label_B, batch.index_B) for batch in batches] for batches in (left, right)]
    return len(left) == len(right) and all(
        torch.equal(x, y) for a, b in zip(*flat, strict=True) for x, y in zip(a, b, strict=True)
    )


def test_it_gives_what_a_run_trains_on_epoch_after_epoch(folder: Path) -> None:
    source = open_source(folder)
    plan = train_plan(len(source), seed=3, recipe=named_recipe("small"), image_size=24)
    engine = build_engine("native", source, plan, batch_size=4)
    with ViewLoader(folder, **OPTIONS) as loader:  # type: ignore[arg-type]
        assert len(loader) == len(source) // 4
        assert loader.classes == ("a", "b")
        for epoch in (0, 1):
            batches = list(loader)
            assert len(batches) == len(loader)
            fed = [each.batch for each in AugmentedFeed(engine, plan).epoch(Cursor(epoch, 0))]
            assert same(batches, [ViewBatch(batch.views, batch.label_B, batch.index_B) for batch in fed])
        assert loader.faults().counts == {}
    engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastvicreg-native")]


def test_a_loader_that_has_loaded_the_cursor_gives_the_rest(folder: Path) -> None:
    with ViewLoader(folder, **OPTIONS) as whole, ViewLoader(folder, **OPTIONS) as resumed:  # type: ignore[arg-type]
        epochs = [list(whole) for _ in range(2)]
        stopped = ViewLoader(open_source(folder), **OPTIONS)  # type: ignore[arg-type]
        assert stopped.state_dict() == {"epoch": 0, "batch": 0}
        for number, _ in enumerate(stopped, 1):
            assert stopped.state_dict() == {"epoch": number // len(whole), "batch": number % len(whole)}
            if number == 2:
                break
        resumed.load_state_dict(stopped.state_dict())
        assert resumed.state_dict() == {"epoch": 0, "batch": 2}
        assert same(list(resumed), epochs[0][2:])
        assert same(list(resumed), epochs[1])
        assert same(list(islice(stopped, 2)), epochs[1][:2])  # a loop left early has had its epoch
        stopped.close()


def test_ranks_share_a_batch(folder: Path) -> None:
    with ViewLoader(folder, **OPTIONS) as whole:  # type: ignore[arg-type]
        batches = list(whole)
    parts = []
    for rank in range(2):
        with ViewLoader(folder, rank=rank, world_size=2, **OPTIONS) as loader:  # type: ignore[arg-type]
            parts.append(list(loader))
    for batch, left, right in zip(batches, *parts, strict=True):
        assert torch.equal(batch.index_B, torch.cat([left.index_B, right.index_B]))
        assert torch.equal(batch.views[1], torch.cat([left.views[1], right.views[1]]))


def test_more_views_leave_the_first_two_as_they_are(folder: Path) -> None:
    with ViewLoader(folder, **OPTIONS) as two, ViewLoader(folder, **OPTIONS, num_views=4) as four:  # type: ignore[arg-type]
        for own, more in zip(two, four, strict=True):
            assert len(more.views) == 4
            assert same([own], [more._replace(views=more.views[:2])])
            assert not torch.equal(more.views[2], more.views[0])


def test_raw_crops_other_recipes_and_sizes(folder: Path) -> None:
    own = Recipe("mine", (ViewRecipe(), ViewRecipe(size=16), ViewRecipe(crop_scale=(0.5, 1.0))))
    cases = {
        "supervised": (named_recipe("supervised"), [(4, 24, 24, 3)]),
        "own": (own, [(4, 24, 24, 3), (4, 16, 16, 3), (4, 24, 24, 3)]),
    }
    for recipe, shapes in cases.values():
        with ViewLoader(folder, **{**OPTIONS, "recipe": recipe}, dtype=torch.uint8) as loader:  # type: ignore[arg-type]
            views, label_B, index_B = next(iter(loader))
            assert [tuple(view.shape) for view in views] == shapes
            assert {view.dtype for view in views} == {torch.uint8}
            assert label_B.shape == index_B.shape == (4,)
    with ViewLoader(folder, **OPTIONS, dtype=torch.bfloat16) as loader:  # type: ignore[arg-type]
        assert next(iter(loader)).views[0].dtype == torch.bfloat16


def test_views_that_are_not_augmented_are_made_on_the_device_too(folder: Path) -> None:
    with ViewLoader(folder, **OPTIONS, dtype=torch.uint8, device="meta") as loader:  # type: ignore[arg-type]
        views = next(iter(loader)).views
    assert {view.device.type for view in views} == {"meta"}


def test_the_readmes_lines_run(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = next(block.partition("```")[0] for block in text.split("```python")[1:] if "ViewLoader(" in block)
    assert "batch_size=256" in code
    monkeypatch.chdir(beton.parent)
    seen: dict[str, object] = {}
    exec(code.replace("batch_size=256", "batch_size=8"), seen)
    assert tuple(seen["view_a"].shape) == tuple(seen["view_b"].shape) == (8, 3, 224, 224)  # type: ignore[attr-defined]
    seen["loader"].close()  # type: ignore[attr-defined]


def test_a_cursor_from_elsewhere_is_refused(folder: Path) -> None:
    with ViewLoader(folder, **OPTIONS) as loader:  # type: ignore[arg-type]
        for state in ({"epoch": 0, "batch": len(loader)}, {"epoch": -1, "batch": 0}):
            with pytest.raises(UserError, match=f"an epoch has {len(loader)} batches here"):
                loader.load_state_dict(state)
    with pytest.raises(UserError, match="did you mean 'official'"):
        ViewLoader(folder, batch_size=4, recipe="offical")
    with pytest.raises(UserError, match="is no place"):
        loader.load_state_dict({"epoch": 0})


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"prefetch": -1}, "--prefetch -1 is too small"),  # gave epochs without a batch
        ({"workers": -1}, "--workers -1 is too small"),
        ({"recipe": named_recipe("official"), "num_views": 4}, "num_views = 4 changes a named recipe"),
        ({"recipe": named_recipe("multicrop"), "small_size": 16}, "small_size = 16 changes a named recipe"),
    ],
)
def test_an_argument_that_would_do_nothing_or_empty_the_epoch_is_refused(
    folder: Path, option: dict[str, object], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        ViewLoader(folder, **{**OPTIONS, **option})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_an_epoch_that_a_later_one_has_ended_says_so(folder: Path, dtype: torch.dtype) -> None:
    loader = ViewLoader(folder, dtype=dtype, **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ended by a later one"):  # one batch of zip(loader, loader) came, then no more
        list(zip(loader, loader, strict=False))
    whole = iter(loader)
    seen = [next(whole) for _ in range(len(loader))]
    later = next(iter(loader))
    assert next(whole, None) is None  # its last batch had come
    assert not torch.equal(later.index_B, seen[0].index_B)
    unfinished = iter(loader)
    next(unfinished)
    loader.close()
    with pytest.raises(UserError, match=r"or by close\(\)"):
        next(unfinished)
    with pytest.raises(UserError, match="closed"):
        next(iter(loader))
